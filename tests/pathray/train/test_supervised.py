"""Validation, best and early stopping around the ticks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pathray.device import Device
from pathray.errors import UserError
from pathray.optim.schedules import constant
from pathray.store import checkpoint
from pathray.train.budget import resolve_cadence
from pathray.train.loop import run
from pathray.train.settings import LoopSettings, PhaseOptim
from pathray.train.state import TrainState
from pathray.train.supervised import Selected, Selection, SupervisedTick, has_ended_early, selection_state, supervise
from tests.builders.runs.recipes import Regression, TwoPhases, settings, stream, units

DEVICE = Device.of("cpu")
HELD_OUT = units(10_000, 10_064)


def held_out_error(state: TrainState) -> dict[str, float]:
    x, y = (torch.from_numpy(v) for v in HELD_OUT)
    return {"mse": float(((state.recipe.modules["layer"](x).squeeze(1) - y) ** 2).mean())}


def validated(
    recipe: Any, config: LoopSettings, validate: Any, selection: Selection, **more: Any
) -> list[SupervisedTick]:
    return list(supervise(run(recipe, stream(config), config, device=DEVICE, **more), validate, selection, DEVICE))


def scripted(values: list[float]) -> Any:
    left = iter(values)
    return lambda state: {"score": next(left)}


def test_a_toy_regression_is_learned_and_its_best_is_found() -> None:
    epoch = resolve_cadence({"epochs": 1}, global_batch=6, epoch_images=60)
    config = settings(total_images=600, optim={"model": PhaseOptim(lr=constant(0.05), clip=None)})
    selection = Selection("mse", "min", every=epoch)
    ticks = list(supervise(run(Regression(), stream(config), config, device=DEVICE), held_out_error, selection, DEVICE))
    found = [(t.images_seen, t.validation["mse"]) for t in ticks if t.validation]
    assert [images for images, _ in found] == list(range(60, 601, 60))
    assert found[-1][1] < 0.1 * found[0][1]
    best = selection_state(ticks[-1].state)
    assert best.best == min(v for _, v in found) and best.evals == 10
    assert [t.images_seen for t in ticks if t.best][-1] == best.best_images_seen


def test_validation_happens_at_the_end_although_no_cadence_falls_there() -> None:
    config = settings()
    selection = Selection("score", "max", every=42)
    ticks = list(
        supervise(run(Regression(), stream(config), config, device=DEVICE), scripted([1, 2]), selection, DEVICE)
    )
    assert [t.images_seen for t in ticks if t.validation] == [42, 60] and ticks[-1].end == "budget"


def test_a_run_that_resumes_at_its_end_has_validated_there_and_counts_it_once() -> None:
    """A kill between the last save and the export: the end falls on a cadence, too."""
    config = settings()
    selection = Selection("score", "max", every=30)
    ticks = validated(Regression(), config, scripted([1, 2]), selection)
    (again,) = validated(ticks[-1].state.recipe, config, scripted([3]), selection, state=ticks[-1].state)
    assert again.end == "budget" and again.validation is None and not again.best
    found = selection_state(again.state)
    assert found.evals == 2 and found.best == 2 and found.at == 60


def test_early_stop_after_patience_without_improvement_logs_and_closes() -> None:
    config = settings(total_images=600)
    selection = Selection("score", "max", every=12, patience=2, min_evals=3)
    closed = []

    def batches(start: int) -> Any:
        try:
            yield from stream(config)(start)
        finally:
            closed.append(True)

    values = [0.5, 0.4, 0.3, 0.9]  # after two without improvement there are only three evals: stop at the third
    ticks = list(supervise(run(Regression(), batches, config, device=DEVICE), scripted(values), selection, DEVICE))
    assert [t.validation["score"] for t in ticks if t.validation] == [0.5, 0.4, 0.3]
    assert ticks[-1].end == "early_stop" and ticks[-1].images_seen == 36 and closed == [True]
    assert ticks[-1].metrics is not None and math.isfinite(ticks[-1].metrics["loss"])


@pytest.mark.parametrize(("mode", "values", "best"), [("min", [3, 1, 2], 1), ("max", [3, 1, 5], 5)])
def test_mode_says_what_is_better(mode: str, values: list[float], best: float) -> None:
    selected, selection = Selected(), Selection("m", mode, every=1)
    for i, value in enumerate(values):
        selected.update(value, i, selection)
    assert selected.best == best


def test_a_first_nan_does_not_stick_and_a_later_one_is_no_improvement() -> None:
    selected, selection = Selected(), Selection("m", "min", every=1)
    assert [selected.update(v, i, selection) for i, v in enumerate([math.nan, 2.0, math.nan, math.inf, 1.0])] == [
        False, True, False, False, True
    ]  # fmt: skip
    assert selected.best == 1.0 and selected.best_images_seen == 4


def test_best_and_patience_survive_a_resume(tmp_path: Path) -> None:
    config = settings(total_images=120)
    selection = Selection("score", "max", every=12, patience=3)
    recipe = Regression()
    loop = supervise(run(recipe, stream(config), config, device=DEVICE), scripted([0.9, 0.1]), selection, DEVICE)
    for tick in loop:
        if tick.images_seen == 24:
            checkpoint.save(str(tmp_path), "toy-latest", tick.state.tensors(), tick.state.meta())
            break
    newest = checkpoint.latest(str(tmp_path), "toy")
    assert newest is not None
    again = Regression()
    state = TrainState(again, config, DEVICE)
    state.load(*checkpoint.load(newest.path))
    assert selection_state(state) == Selected(
        best=0.9, best_images_seen=12, at=24, evals=2, since_best=1, metric="score"
    )
    ticks = validated(again, config, scripted([0.2, 0.3, 1.0]), selection, state=state)
    assert ticks[-1].end == "early_stop" and ticks[-1].images_seen == 48


def test_a_saved_best_is_a_copy_and_does_not_follow_the_live_weights(tmp_path: Path) -> None:
    config = settings()
    for tick in run(recipe := Regression(), stream(config), config, device=DEVICE):
        if tick.step == 3:
            best = checkpoint.save(str(tmp_path), "toy-best", tick.state.tensors(), tick.state.meta())
            then = recipe.modules["layer"].weight.detach().clone()
    tensors, meta = checkpoint.load(best.path)
    assert torch.equal(tensors["model.layer.weight"], then) and meta["step"] == 3
    assert not torch.equal(recipe.modules["layer"].weight, then)


def test_validation_runs_in_evaluation_mode_without_gradients_and_changes_nothing() -> None:
    phases = ("student", "adversary")
    config = settings(phases=phases, total_images=36)

    def nosy(state: TrainState) -> dict[str, float]:
        student = state.recipe.modules["student"]
        assert not student.training and not torch.is_grad_enabled()
        torch.manual_seed(99)
        student(torch.randn(8, 6))
        return {"score": 1.0}

    watched, plain = TwoPhases(), TwoPhases()
    loop = run(watched, stream(config), config, device=DEVICE)
    assert list(supervise(loop, nosy, Selection("score", "max", every=6), DEVICE))[-1].end == "budget"
    assert list(run(plain, stream(config), config, device=DEVICE))[-1].end == "budget"
    for name, value in plain.modules.state_dict().items():
        assert torch.equal(value, watched.modules.state_dict()[name]), name
    assert watched.modules["student"].training and not watched.modules["teacher"].training


def test_a_metric_that_validation_does_not_give_is_named() -> None:
    config = settings()
    loop = supervise(
        run(Regression(), stream(config), config, device=DEVICE),
        held_out_error,
        Selection("auc", "max", every=6),
        DEVICE,
    )
    with pytest.raises(UserError, match="auc"):
        list(loop)


def test_a_direction_is_required() -> None:
    with pytest.raises(UserError, match="min or max"):
        Selection("apd", "best", every=6)


def test_a_run_whose_patience_had_run_out_is_not_to_go_on_unless_it_gets_more() -> None:
    config, selection = settings(), Selection("score", "max", every=6, patience=2)
    ticks = validated(Regression(), config, scripted([3.0, 2.0, 1.0]), selection)
    state = ticks[-1].state
    assert ticks[-1].end == "early_stop" and has_ended_early(state, selection)
    assert not has_ended_early(TrainState(Regression(), config, DEVICE), selection)
    assert not has_ended_early(state, Selection("score", "max", every=6, patience=3))
    assert not has_ended_early(state, Selection("score", "max", every=6))


def test_another_metric_is_not_compared_with_the_best_of_the_one_before() -> None:
    config = settings(total_images=24)
    first = Selection("rank", "max", every=6)
    state = TrainState(Regression(), config, DEVICE)
    one = validated(Regression(), settings(total_images=12), lambda state: {"rank": 0.9, "linear": 0.1}, first)
    state.notes.update(one[-1].state.notes)
    other = Selection("linear", "max", every=6, patience=1)
    assert not has_ended_early(state, other)
    ticks = validated(state.recipe, config, lambda state: {"rank": 0.8, "linear": 0.2}, other, state=state)
    assert ticks[0].best and selection_state(state).best == 0.2
