"""How much unreadable data a run tolerates: judged over the whole run and over the units seen lately."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import pytest

from pathray.data.order import rng
from pathray.device import Device
from pathray.train.loop import Tick, run
from pathray.train.recipe import TrainingStopped
from pathray.train.settings import LoopSettings
from pathray.train.state import TrainState
from tests.builders.runs.recipes import Regression, settings, stream

DEVICE = Device.of("cpu")


def judged(steps: int = 200, bound: float = 0.2, poll_every_steps: int = 5) -> LoopSettings:
    """Six units a step; the recent units are the last sixty."""
    return settings(
        total_images=6 * steps,
        max_corrupt_fraction=bound,
        judge_corrupt_from=30,
        judge_recent=60,
        poll_every_steps=poll_every_steps,
    )


def train(
    config: LoopSettings, corrupt: Callable[[int], bool], state: TrainState | None = None, steps: int | None = None
) -> list[Tick]:
    recipe = Regression() if state is None else state.recipe
    ticks = run(recipe, stream(config, corrupt=corrupt), config, device=DEVICE, state=state)
    return list(islice(ticks, steps))


def taken_up(config: LoopSettings, last: Tick) -> TrainState:
    """What a worker that loads the checkpoint of this tick continues with."""
    state = TrainState(Regression(), config, DEVICE)
    state.load({name: t.clone() for name, t in last.state.tensors().items()}, last.state.meta())
    return state


def half_from(position: int) -> Callable[[int], bool]:
    return lambda p: p >= position and p % 2 == 0


def test_an_outage_late_in_a_run_is_noticed_by_the_recent_units() -> None:
    with pytest.raises(TrainingStopped, match="30 of the last 60 units up to step 160 were replaced") as error:
        train(judged(), half_from(900))  # 30 of 960 units of the run are a twentieth of what it may be
    assert error.value.where["found"] == 0.5


def test_too_much_from_the_start_is_said_of_the_whole_run() -> None:
    with pytest.raises(TrainingStopped, match="15 of 30 units up to step 5 were replaced"):
        train(judged(), half_from(0))


def test_a_share_within_the_bound_never_ends_a_run_by_chance() -> None:
    def some(p: int) -> bool:
        return p >= 300 and bool(rng(0, "faults", p).random() < 0.18)

    config = judged(steps=500)
    windows = [sum(map(some, range(first, first + 60))) for first in range(0, 3000, 60)]
    assert sum(n > 0.2 * 60 for n in windows) >= 5, "many windows exceed the bound"
    assert train(config, some)[-1].end == "budget"


def test_a_resumed_run_notices_an_outage_at_the_same_step() -> None:
    config, said = judged(), []
    for stop_at in (None, 153):  # within the sixty units that are judged, not at a poll
        state = None if stop_at is None else taken_up(config, train(config, half_from(900), steps=stop_at)[-1])
        with pytest.raises(TrainingStopped) as error:
            train(config, half_from(900), state)
        said.append(str(error.value))
    assert said[0] == said[1]


def test_a_run_that_is_judged_anew_is_judged_by_the_units_from_there_on() -> None:
    config = judged(bound=0.4)
    last = train(config, lambda p: p % 3 == 0, steps=100)[-1]
    state = taken_up(config, last)
    state.health.reset_marks(state.images_seen)
    assert train(config, lambda p: p < 600, state)[-1].end == "budget", "what was replaced before does not count"
    state = taken_up(config, last)
    state.health.reset_marks(state.images_seen)
    with pytest.raises(TrainingStopped, match="15 of 30 units up to step 105 were replaced"):
        train(config, half_from(600), state)


def test_the_end_of_a_run_judges_what_few_units_there_are() -> None:
    config = judged(bound=0.4, poll_every_steps=1)
    state = taken_up(config, train(config, lambda p: False, steps=198)[-1])
    state.health.reset_marks(state.images_seen)
    with pytest.raises(TrainingStopped, match="6 of 12 units up to step 200"):
        train(config, half_from(0), state)


def test_a_checkpoint_without_marks_is_judged_since_the_start_of_the_run() -> None:
    config = judged()
    last = train(config, lambda p: p % 6 == 0, steps=100)[-1]
    meta = last.state.meta()
    del meta["health"]
    state = TrainState(Regression(), config, DEVICE)
    state.load({name: t.clone() for name, t in last.state.tensors().items()}, meta)
    with pytest.raises(TrainingStopped, match=r"of 690 units up to step 115 were|of the last 6\d\d units"):
        train(config, half_from(600), state)
