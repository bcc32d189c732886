"""A run that is stopped and resumed ends with the same bits; several ranks behave as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pathray.device import Device
from tests.builders.runs.ranks import double_model, gradients, ragged_loss, run_ranks, several, train
from tests.builders.runs.recipes import settings, stream


@pytest.fixture(scope="module", params=[1, 2, 3])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of all ranks of a group of 1, 2 or 3."""
    folder = tmp_path_factory.mktemp(f"world-{request.param}")
    if request.param == 1:
        torch.set_num_threads(1)
        return [several(Device.of("cpu"), str(folder))]
    return run_ranks(request.param, several, folder, str(folder))


@pytest.mark.parametrize("name", ["once", "thrice"])
def test_a_resumed_run_ends_with_the_same_bits(group: list[dict[str, Any]], name: str) -> None:
    assert group[0]["runs"][name]["hash"] == group[0]["runs"]["whole"]["hash"]
    assert group[0]["runs"][name]["end"] == "budget"


def test_the_overlapped_sync_too_is_equal_to_itself_on_resume(group: list[dict[str, Any]]) -> None:
    assert group[0]["runs"]["overlap_stopped"]["hash"] == group[0]["runs"]["overlap"]["hash"]


def test_all_ranks_hold_the_same_state(group: list[dict[str, Any]]) -> None:
    for name, outcome in group[0]["runs"].items():
        assert {rank["runs"][name]["hash"] for rank in group} == {outcome["hash"]}


def test_no_position_is_lost_or_doubled_over_ranks_and_resumes(group: list[dict[str, Any]]) -> None:
    for name in ("whole", "once", "thrice"):
        positions = [p for rank in group for _, micro in rank["runs"][name]["positions"] for p in micro]
        assert sorted(positions) == list(range(120))


def test_every_step_consumes_the_same_units_whatever_the_number_of_ranks(group: list[dict[str, Any]]) -> None:
    world = len(group)
    per_step = 12 // world
    for step in range(10):
        consumed: list[int] = []
        for rank in group:
            flat = [p for _, micro in rank["runs"]["whole"]["positions"] for p in micro]
            consumed += flat[step * per_step : (step + 1) * per_step]
        assert consumed == list(range(12 * step, 12 * step + 12))


def test_metrics_are_those_of_the_whole_group(group: list[dict[str, Any]]) -> None:
    rows = [rank["runs"]["whole"]["metrics"] for rank in group]
    for name in ("loss", "loss_min", "loss_max", "grad_norm", "drift", "x_mean", "lr", "wd", "loss/adversary"):
        assert len({row[name] for row in rows}) == 1, name


def test_nan_on_one_rank_is_skipped_by_all_and_logged(group: list[dict[str, Any]]) -> None:
    assert len({rank["faults"]["nan"]["hash"] for rank in group}) == 1
    nan = group[0]["faults"]["nan"]
    assert nan["steps"] == 9  # of 10
    first_step, row = nan["rows"][0]
    assert (first_step, row) == (5, {"bad_steps": 1.0, "bad_steps_total": 1.0, "last_bad_step": 4.0})


def test_a_stop_seen_by_rank_0_ends_all_ranks_at_the_same_step(group: list[dict[str, Any]]) -> None:
    assert [rank["faults"]["stop"] for rank in group] == [6] * len(group)


def test_unreadable_units_of_one_rank_stop_all_with_the_counts(group: list[dict[str, Any]]) -> None:
    (message,) = {rank["faults"]["corrupt"] for rank in group}
    assert "3 of 18 units up to step 3" in message and "0.1667" in message


def test_batch_norm_statistics_are_the_same_on_all_ranks(group: list[dict[str, Any]]) -> None:
    assert len({rank["faults"]["statistics"] for rank in group}) == 1


def test_the_gradient_does_not_depend_on_the_number_of_ranks(group: list[dict[str, Any]]) -> None:
    alone = gradients(Device.of("cpu"))
    for rank in group:
        for kind in ("flat", "overlap"):
            np.testing.assert_allclose(rank["gradients"][kind][0], alone["flat"][0], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(rank["gradients"][kind][1], alone["flat"][1], rtol=1e-12)
        np.testing.assert_allclose(rank["gradients"]["gather"], alone["gather"], rtol=1e-9, atol=1e-12)
        for kind in ("vicreg", "sigreg"):
            for got, expected in zip(rank["gradients"][kind], alone[kind], strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_the_gradient_is_that_of_the_ragged_mean_over_the_whole_batch() -> None:
    """Oracle: autograd on one tensor with all units, no accumulation, no flat buffer."""
    model, config = double_model(), settings(global_batch=12, micro_batch=12, total_images=12)
    total, weight = ragged_loss(model, next(stream(config)(0)))
    expected = torch.autograd.grad(total / weight, list(model.parameters()), allow_unused=True)
    flat = [
        v for g, p in zip(expected, model.parameters(), strict=True)
        for v in (torch.zeros_like(p) if g is None else g).reshape(-1).tolist()
    ]  # fmt: skip
    got, _ = gradients(Device.of("cpu"))["flat"]
    np.testing.assert_allclose(got, flat, rtol=1e-12, atol=1e-15)


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    device = Device.of("cpu")
    first, second = (train(device, str(tmp_path / f"{seed}"), (), seed=seed)["hash"] for seed in (1, 2))
    assert first != second
