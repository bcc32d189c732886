"""The loop's mathematics, cadences and ends, on one process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pathray.device import Device
from pathray.errors import UserError
from pathray.optim.schedules import Schedule, constant
from pathray.train.loop import Tick, TrainingStopped, TrainState, run
from pathray.train.recipe import Loss, Micro, Progress
from pathray.train.settings import LoopSettings, PhaseOptim
from tests.builders.runs.recipes import WIDTH, Regression, TwoPhases, settings, stream, units

DEVICE = Device.of("cpu")


def ticks_of(recipe: Any, config: LoopSettings, **more: Any) -> list[Tick]:
    return list(run(recipe, more.pop("batches", stream(config)), config, device=DEVICE, **more))


def test_training_equals_plain_torch_adamw_step_by_step() -> None:
    """Oracle: torch.optim.AdamW, torch's clipping, the whole batch at once, in float32."""
    lr = Schedule("warmup_cosine", first=1e-3, peak=2e-2, last=1e-4, warmup=2)
    config = settings(optim={"model": PhaseOptim(lr=lr, weight_decay=constant(0.1), clip=0.5)})
    recipe = Regression()
    oracle = nn.Linear(WIDTH, 1)
    oracle.load_state_dict(recipe.modules["layer"].state_dict())
    groups = [{"params": [oracle.weight], "weight_decay": 0.1}, {"params": [oracle.bias], "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=1.0)
    for tick in run(recipe, stream(config), config, device=DEVICE):
        x, y = map(torch.from_numpy, units(6 * tick.step - 6, 6 * tick.step))
        adam.zero_grad()
        ((oracle(x).squeeze(1) - y) ** 2).mean().backward()
        nn.utils.clip_grad_norm_(oracle.parameters(), 0.5)
        for group in adam.param_groups:
            group["lr"] = lr(tick.step - 1, 10)
        adam.step()
        for name, p in recipe.modules["layer"].named_parameters():
            torch.testing.assert_close(p, dict(oracle.named_parameters())[name], rtol=1e-5, atol=1e-6)


def test_micro_batches_do_not_change_the_result() -> None:
    weights = []
    for micro in (1, 2, 3, 6):
        recipe = Regression()
        ticks_of(recipe, settings(micro_batch=micro))
        weights.append(recipe.modules["layer"].weight.detach().clone())
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-5, atol=1e-6)


def test_a_phase_trains_only_its_parameters_and_sees_those_that_just_moved() -> None:
    recipe, seen = TwoPhases(adversary_every=2, dropout=0.0), []
    plain = recipe.loss

    def watched(phase: str, micro: Micro, progress: Progress) -> Loss:
        student = [p.detach().clone() for _, p in recipe.params["student"]]
        adversary = [p.detach().clone() for _, p in recipe.params["adversary"]]
        seen.append((progress.step, phase, student, adversary))
        return plain(phase, micro, progress)

    recipe.loss = watched  # type: ignore[method-assign]
    config = settings(phases=("student", "adversary"), micro_batch=6, total_images=24)
    ticks_of(recipe, config)
    assert [(s, p) for s, p, *_ in seen] == [
        (0, "student"), (0, "adversary"), (1, "student"), (2, "student"), (2, "adversary"), (3, "student")
    ]  # fmt: skip
    for (_, phase, student, adversary), (_, _, student_after, adversary_after) in pairwise(seen):
        moved = [not all(map(torch.equal, a, b)) for a, b in ((student, student_after), (adversary, adversary_after))]
        assert moved == [phase == "student", phase == "adversary"]


def test_prepare_runs_once_per_micro_batch_even_with_two_phases() -> None:
    recipe, prepared = TwoPhases(), []
    plain = recipe.prepare

    def counted(micro: Micro, progress: Progress) -> Micro:
        prepared.append(micro["position"].tolist())
        assert not torch.is_grad_enabled()
        return plain(micro, progress)

    recipe.prepare = counted  # type: ignore[method-assign]
    ticks_of(recipe, settings(phases=("student", "adversary"), total_images=12))
    assert [p for micro in prepared for p in micro] == list(range(12))


def test_cadences_fall_on_the_step_that_reaches_them() -> None:
    config = settings(log_every=12, save_every=20, snapshot_every=35)
    ticks = ticks_of(Regression(), config)
    assert [t.images_seen for t in ticks] == list(range(6, 61, 6))
    assert [t.images_seen for t in ticks if t.metrics] == [12, 24, 36, 48, 60]
    assert [t.images_seen for t in ticks if t.save] == [24, 42, 60]
    assert [t.images_seen for t in ticks if t.snapshot] == [36]
    assert [t.end for t in ticks] == [None] * 9 + ["budget"]


def test_logged_loss_is_the_mean_least_and_greatest_of_the_window() -> None:
    """Oracle: the loss of each step by numpy in float64, on the weights of that moment."""
    config = settings(log_every=30, optim={"model": PhaseOptim(kind="sgd", lr=constant(0.05), momentum=0.0)})
    recipe, losses = Regression(), []
    before = [0.0] * WIDTH, 0.0
    for tick in run(recipe, stream(config), config, device=DEVICE):
        x, y = units(tick.images_seen - 6, tick.images_seen)
        losses.append(float(((x.astype(np.float64) @ np.array(before[0]) + before[1] - y) ** 2).mean()))
        layer = recipe.modules["layer"]
        before = layer.weight[0].tolist(), layer.bias.item()
        if tick.metrics is not None:
            assert tick.metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
            assert tick.metrics["loss_min"] == pytest.approx(min(losses), rel=1e-5)
            assert tick.metrics["loss_max"] == pytest.approx(max(losses), rel=1e-5)
            losses.clear()
    assert tick.end == "budget"


def test_metrics_have_all_figures_of_the_run_and_are_floats() -> None:
    ticks = ticks_of(TwoPhases(), settings(phases=("student", "adversary"), log_every=60))
    (metrics,) = [t.metrics for t in ticks if t.metrics]
    expected = {
        f"{k}{s}"
        for k in ("loss", "loss_min", "loss_max", "grad_norm", "lr", "wd")
        for s in ("", "/student", "/adversary")
    }
    expected |= {"step_ms", "data_wait_ms", "images_per_s", "drift", "x_mean", "teacher_norm"}
    assert expected <= set(metrics)
    assert all(isinstance(v, float) and math.isfinite(v) for v in metrics.values())
    assert metrics["loss"] == metrics["loss/student"] and metrics["loss/adversary"] < 0


def test_the_end_logs_even_when_logging_is_off() -> None:
    ticks = ticks_of(Regression(), settings(log_every=0))
    assert [t.images_seen for t in ticks if t.metrics] == [60]


def test_a_finished_run_gives_one_last_tick_and_reads_no_data() -> None:
    config = settings()
    state = ticks_of(recipe := Regression(), config)[-1].state

    def no_data(start: int) -> Iterator[dict[str, Any]]:
        raise AssertionError("opened")

    (tick,) = ticks_of(recipe, config, batches=no_data, state=state)
    assert (tick.step, tick.end, tick.metrics) == (10, "budget", None)


def test_stop_is_asked_on_the_poll_cadence_only() -> None:
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 2

    ticks = ticks_of(Regression(), settings(poll_every_steps=4), stop=stop)
    assert ticks[-1].end == "stopped" and ticks[-1].step == 8 and len(asked) == 2
    assert ticks[-1].metrics is not None, "the last tick logs what has not been logged"


def test_progress_after_a_step_is_that_of_the_step() -> None:
    recipe = Regression()
    ticks_of(recipe, settings())
    assert recipe.last == Progress(step=9, total_steps=10, global_batch=6)
    assert recipe.last.images_seen == 54 and recipe.last.total_images == 60 and recipe.last.fraction == 0.9


def poisoned(*positions: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda p: torch.isin(p, torch.tensor(positions))


def test_a_step_with_nan_changes_nothing_and_is_logged_although_logging_is_off() -> None:
    config = settings(poll_every_steps=2, max_bad_steps=3)
    recipe, weights, rows = Regression(poison=poisoned(7, 13)), [], []
    for tick in run(recipe, stream(config), config, device=DEVICE):
        weights.append(recipe.modules["layer"].weight.detach().clone())
        if tick.metrics:
            rows.append((tick.step, tick.metrics.get("bad_steps"), tick.metrics.get("last_bad_step")))
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[2], weights[3]) and torch.isfinite(weights[-1]).all()
    assert rows == [(2, 1.0, 1.0), (4, 1.0, 2.0), (10, None, None)]
    assert int(tick.state.optimizers["model"].steps) == 8
    assert math.isfinite(tick.metrics["loss"]), "a skipped step does not spoil the window"


def test_too_many_bad_steps_in_a_row_stop_the_run_and_name_the_step() -> None:
    config = settings(poll_every_steps=5, max_bad_steps=3)
    recipe = Regression(poison=poisoned(13, 19, 25))
    with pytest.raises(TrainingStopped, match="3 steps in a row, the last of them step 4"):
        ticks_of(recipe, config)
    assert torch.isfinite(recipe.modules["layer"].weight).all()


def test_bad_steps_that_are_not_in_a_row_do_not_stop_the_run() -> None:
    recipe = Regression(poison=poisoned(1, 13, 25, 37, 49))
    assert ticks_of(recipe, settings(max_bad_steps=2))[-1].end == "budget"


def test_a_bad_step_leaves_batch_norm_statistics_as_they_were() -> None:
    recipe, config = TwoPhases(), settings(phases=("student", "adversary"), max_bad_steps=3)
    plain = recipe.prepare

    def spoiled(micro: Micro, progress: Progress) -> Micro:
        micro = plain(micro, progress)
        return {**micro, "x": torch.where(micro["position"][:, None] == 9, torch.nan, micro["x"])}

    recipe.prepare = spoiled  # type: ignore[method-assign]
    means = []
    for tick in run(recipe, stream(config), config, device=DEVICE):
        means.append(recipe.modules["student"][1].running_mean.clone())
        assert all(torch.isfinite(t).all() for t in tick.state.tensors().values())
    assert torch.equal(means[0], means[1]) and not torch.equal(means[1], means[2])


def test_bad_steps_in_a_row_count_across_a_resume() -> None:
    config = settings(max_bad_steps=3, poll_every_steps=2)
    recipe = Regression(poison=poisoned(1, 7, 13))
    loop = run(recipe, stream(config), config, device=DEVICE)
    next(loop)
    state = next(loop).state
    other = Regression(poison=poisoned(1, 7, 13))
    resumed = TrainState(other, config, DEVICE)
    resumed.load({k: v.clone() for k, v in state.tensors().items()}, state.meta())
    with pytest.raises(TrainingStopped, match="3 steps in a row"):
        ticks_of(other, config, state=resumed)


def test_corrupt_units_above_the_bound_stop_the_run() -> None:
    config = settings(max_corrupt_fraction=0.2, judge_corrupt_from=30, poll_every_steps=1)
    with pytest.raises(TrainingStopped, match="15 of 30 units up to step 5"):
        ticks_of(Regression(), config, batches=stream(config, corrupt=lambda p: p % 2 == 0))
    assert ticks_of(Regression(), config, batches=stream(config, corrupt=lambda p: p % 6 == 0))[-1].end == "budget"


def test_one_corrupt_unit_at_the_start_is_not_too_much_but_with_a_bound_of_zero_it_is() -> None:
    config = settings(max_corrupt_fraction=0.05, judge_corrupt_from=60)
    assert ticks_of(Regression(), config, batches=stream(config, corrupt=lambda p: p == 0))[-1].end == "budget"
    strict = settings(max_corrupt_fraction=0.0)
    with pytest.raises(TrainingStopped, match="1 of 6 units"):
        ticks_of(Regression(), strict, batches=stream(strict, corrupt=lambda p: p == 0))


def test_batches_at_wrong_positions_are_an_assertion() -> None:
    config = settings()
    with pytest.raises(AssertionError):
        ticks_of(Regression(), config, batches=lambda start: stream(config)(start + 6))
    with pytest.raises(AssertionError, match="before the budget"):
        ticks_of(Regression(), config, batches=lambda start: iter(list(stream(config)(start))[:4]))


def test_the_stream_is_closed_when_the_consumer_leaves() -> None:
    closed, config = [], settings()

    def batches(start: int) -> Iterator[dict[str, Any]]:
        try:
            yield from stream(config)(start)
        finally:
            closed.append(True)

    loop = run(Regression(), batches, config, device=DEVICE)
    next(loop)
    loop.close()  # type: ignore[attr-defined]
    assert closed == [True]


def test_a_micro_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="must divide the global batch"):
        ticks_of(Regression(), settings(micro_batch=4))


class Heavy(Regression):
    """Gradients that overflow fp16 until the loss scale has fallen to 2^10 and below."""

    def loss(self, phase: str, micro: Micro, progress: Progress) -> Loss:
        found = super().loss(phase, micro, progress)
        scale = self.state.scales["model"].scale
        return Loss(_Overflow.apply(found.sum, torch.where(scale > 1024, torch.inf, 1.0)), found.weight)


class _Overflow(torch.autograd.Function):
    """Identity whose gradient is multiplied: an overflow in the backward pass only."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return grads[0] * ctx.factor, None


def test_fp16_lowers_its_loss_scale_instead_of_counting_bad_steps() -> None:
    config = settings(precision="fp16", max_bad_steps=3, log_every=6)
    recipe = Heavy()
    state = TrainState(recipe, config, DEVICE)
    recipe.state = state
    ticks = ticks_of(recipe, config, state=state)
    assert ticks[-1].end == "budget"
    assert float(state.scales["model"].scale) == 1024.0  # 2^16 over the batch, 2^2, halved four times
    assert int(state.optimizers["model"].steps) == 6  # of ten
    assert int(state.health.counts[0]) == 0


@pytest.mark.parametrize("micro", [1, 3, 6])
def test_fp16_takes_the_loss_scale_out_of_gradients_before_they_are_applied(micro: int) -> None:
    """SGD, whose steps are as long as gradients are; in float32 within fp16's rounding."""
    plain, scaled = Regression(), Regression()
    optim = {"model": PhaseOptim(kind="sgd", lr=constant(1e-2), weight_decay=constant(0.0))}
    expected = ticks_of(plain, settings(optim=optim, log_every=6))
    config = settings(optim=optim, log_every=6, precision="fp16", micro_batch=micro)
    state = TrainState(scaled, config, DEVICE)
    state.scales["model"].scale.fill_(64.0)  # which overflows nowhere here
    found = ticks_of(scaled, config, state=state)
    for tick, other in zip(found, expected, strict=True):
        assert tick.metrics is not None and other.metrics is not None
        for key in ("loss", "grad_norm"):
            assert tick.metrics[key] == pytest.approx(other.metrics[key], rel=1e-2), (tick.step, key)
    weight = plain.modules["layer"].weight.detach()
    assert float(weight.abs().max()) > 0.01
    torch.testing.assert_close(scaled.modules["layer"].weight.detach(), weight, rtol=1e-2, atol=1e-4)


def test_a_checkpoint_asked_for_at_a_poll_is_due_at_that_step_and_only_once() -> None:
    asked = iter([False, True, False])
    ticks = ticks_of(Regression(), settings(poll_every_steps=3), save=lambda: next(asked))
    assert [tick.step for tick in ticks if tick.save] == [6]
