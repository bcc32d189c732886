"""Which steps count as hanging, by a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pathray.config.sections import ScalingConfig
from pathray.device import Device
from pathray.errors import UserError
from pathray.train.loop import run
from pathray.train.step_watch import FIRST_FACTOR, FIRST_STEPS, Hang, StepWatch
from tests.builders.runs.recipes import Regression, settings, stream

LIMIT_S = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> StepWatch:
    """One whose first steps are over."""
    made = StepWatch(LIMIT_S, lambda hang: None, clock=clock)
    for number in range(1, FIRST_STEPS + 1):
        with made.step(number, ("model",)):
            pass
    return made


def test_a_step_hangs_when_it_is_busy_for_longer_than_its_bound(watch: StepWatch, clock: Clock) -> None:
    with watch.step(4, ("model",)):
        clock.now += LIMIT_S
        assert watch.look() is None
        clock.now += 1
        hang = watch.look()
    assert hang is not None and (hang.step, hang.seconds, hang.limit_s) == (4, LIMIT_S + 1, LIMIT_S)
    assert "test_a_step_hangs_when" in hang.stacks
    clock.now += 100 * LIMIT_S
    assert watch.look() is None, "between steps nothing counts"


def test_waiting_for_data_does_not_count(watch: StepWatch, clock: Clock) -> None:
    with watch.step(4, ("model",)):
        clock.now += 6
        with watch.pause():
            clock.now += 100 * LIMIT_S
            assert watch.look() is None
        clock.now += 4
        assert watch.look() is None
        clock.now += 1
        hang = watch.look()
    assert hang is not None and hang.seconds == 11


def test_the_first_steps_with_the_same_phases_may_take_longer(watch: StepWatch, clock: Clock) -> None:
    with watch.step(4, ("model", "adversary")):
        clock.now += FIRST_FACTOR * LIMIT_S
        assert watch.look() is None
        clock.now += 1
        assert watch.look() is not None


def test_the_loop_counts_its_steps_and_neither_its_data_nor_its_consumer(clock: Clock) -> None:
    config, found = settings(total_images=60), list[Hang | None]()
    watch = StepWatch(LIMIT_S, lambda hang: None, clock=clock)

    def batches(start: int) -> Iterator[dict[str, Any]]:
        for batch in stream(config)(start):
            clock.now += 50 * LIMIT_S
            found.append(watch.look())
            yield batch

    class Slow(Regression):
        def after_step(self, progress: Any) -> None:
            clock.now += 2 * LIMIT_S if progress.step == 8 else 0.9 * LIMIT_S
            found.append(watch.look())

    for _ in run(Slow(), batches, config, device=Device.of("cpu"), watch=watch):
        clock.now += 50 * LIMIT_S
        found.append(watch.look())
    assert [(hang.step, hang.seconds) for hang in found if hang is not None] == [(9, 2 * LIMIT_S)]


def test_a_hang_is_told_once_from_a_thread() -> None:
    told = list[Hang]()
    watch = StepWatch(0.02, told.append).start()
    with watch.step(1, ("model",)):
        assert watch._thread is not None
        watch._thread.join(60)
    watch.close()
    assert [hang.step for hang in told] == [1]


def test_a_bound_below_zero_is_refused() -> None:
    with pytest.raises(UserError) as error:
        ScalingConfig(step_timeout_s=-1.0)
    assert error.value.where["key"] == "scaling.step_timeout_s"
