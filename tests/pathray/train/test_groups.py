"""Pre-formed ragged batches train exactly: on resume, and with another number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pathray.data.plan import Plan
from pathray.device import Device
from pathray.errors import UserError
from pathray.train.recipe import TrainingStopped
from tests.builders.runs.ranks import run_ranks
from tests.builders.runs.toy_bags import BagConfig, bag_order, expected_rows, several_bags, train_bags, write_bags

CPU = Device.of("cpu")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return write_bags(tmp_path_factory.mktemp("bags") / "plan")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> dict[str, Any]:
    torch.set_num_threads(1)
    return several_bags(CPU, str(tmp_path_factory.mktemp("world-1")), plan.path)


@pytest.fixture(scope="module", params=[1, 2, 3])
def group(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, plan: Plan, alone: dict[str, Any]
) -> list[dict[str, Any]]:
    """The results of all ranks of a group of 1, 2 or 3."""
    if request.param == 1:
        return [alone]
    folder = tmp_path_factory.mktemp(f"world-{request.param}")
    return run_ranks(request.param, several_bags, folder, str(folder / "runs"), plan.path)


def test_a_resumed_run_over_groups_ends_with_the_same_bits(group: list[dict[str, Any]]) -> None:
    assert {rank[name]["hash"] for rank in group for name in ("whole", "resumed")} == {group[0]["whole"]["hash"]}
    assert {rank[name]["end"] for rank in group for name in ("whole", "resumed")} == {"budget"}


def test_every_step_has_the_same_groups_whatever_the_number_of_ranks(group: list[dict[str, Any]], plan: Plan) -> None:
    config = BagConfig()
    order = bag_order(plan, config.seed)
    expected = [(p // 12, p, expected_rows(order, plan, config, p)) for p in range(config.total_images)]
    for name in ("whole", "resumed"):
        assert sorted(unit for rank in group for unit in rank[name]["seen"]) == expected
    share = 12 // len(group)
    for number, rank in enumerate(group):
        assert {p // share % len(group) for _, p, _ in rank["whole"]["seen"]} == {number}


def test_the_sum_over_ragged_bags_is_that_of_one_rank_up_to_rounding(
    group: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    for rank in group:
        assert rank["whole"]["loss"] == pytest.approx(alone["whole"]["loss"], rel=1e-5)
        for name, value in alone["whole"]["weights"].items():
            torch.testing.assert_close(rank["whole"]["weights"][name], value, rtol=1e-4, atol=1e-6)


def test_units_of_groups_are_counted_over_ranks_and_resumes(group: list[dict[str, Any]], plan: Plan) -> None:
    config = BagConfig()
    order, x = bag_order(plan, config.seed), plan.column("x")
    rows, counts = order.members(range(config.total_images))
    for rank in group:
        for name in ("whole", "resumed"):
            assert rank[name]["units"] == counts.sum() > 2 * config.total_images
            assert rank[name]["corrupt"] == (x[rows] % config.unreadable_every == 0).sum()


def test_unreadable_units_are_judged_by_their_share_of_the_units_of_groups(tmp_path: Path, plan: Plan) -> None:
    """Every third unit cannot be read: more of them than there are positions, but a third of the units."""
    settings = {"unreadable_every": 3, "total_images": 24}
    share = train_bags(CPU, str(tmp_path / "fine"), plan.path, (), max_corrupt_fraction=0.4, **settings)
    assert 24 < share["corrupt"] < 0.4 * share["units"]
    with pytest.raises(TrainingStopped, match=r"of \d\d units up to step 1 were replaced") as error:
        train_bags(CPU, str(tmp_path / "bad"), plan.path, (), max_corrupt_fraction=0.2, **settings)
    assert isinstance(error.value, UserError) and 0.2 < float(error.value.where["found"]) < 0.45
