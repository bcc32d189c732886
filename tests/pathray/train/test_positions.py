"""Digests of what each shard has trained on: by hand, in the loop, and where every rank takes rank 0's rows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pathray.data.plan import Plan
from pathray.device import Device
from pathray.run import RunSettings
from pathray.train.loop import run
from pathray.train.positions import digest
from pathray.train.recipe import TrainingStopped
from tests.builders.runs.position_ranks import LOG_EVERY, STEPS, logged
from tests.builders.runs.position_ranks import rows as rows_of_rank
from tests.builders.runs.ranks import run_ranks
from tests.builders.runs.recipes import Regression, settings, stream
from tests.builders.runs.toy_run import rows, train_toy
from tests.builders.runs.toy_science import write_plan

M, DEVICE = (1 << 64) - 1, Device.of("cpu")


def by_hand(positions: Iterable[int]) -> str:
    """Σ of SplitMix64's outputs for these seeds, in Python's whole numbers."""
    total = 0
    for position in positions:
        z = (position + 0x9E3779B97F4A7C15) & M
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M
        total = (total + (z ^ (z >> 31))) & M
    return f"{total:016x}"


def share(first: int, last: int, rank: int, world: int, batch: int = 12) -> list[int]:
    """The positions from `first` up to `last` that are a rank's."""
    return [p for p in range(first, last) if p % batch // (batch // world) == rank]


def test_the_digest_is_splitmix64s_sum_in_any_order() -> None:
    positions = [0, 1, 2**40, 17]
    assert f"{digest(positions):016x}" == by_hand(positions) == f"{digest(positions[::-1]):016x}"
    assert f"{digest([0]):016x}" == "e220a8397b1dcdaf", "the first output of the published generator for seed 0"


def test_each_line_has_what_was_trained_on_since_the_last() -> None:
    found = rows_of_rank(DEVICE)
    cuts = range(0, 12 * STEPS, LOG_EVERY)
    assert found == [{"positions": f"{a}:{a + 24}", "positions/0": by_hand(range(a, a + 24))} for a in cuts]


def test_two_ranks_log_their_own_shares_and_the_same_rows_on_both_end_the_run_after_a_step(tmp_path: Path) -> None:
    first, second = run_ranks(2, logged, tmp_path)
    assert first == second
    for a, row in zip(range(0, 12 * STEPS, LOG_EVERY), first["rows"], strict=True):
        assert row == {
            "positions": f"{a}:{a + 24}",
            **{f"positions/{rank}": by_hand(share(a, a + 24, rank, 2)) for rank in range(2)},
        }
    taken, error = first["bug"]
    assert taken == 0 and "ranks 0 and 1 have trained on the same rows of positions 0 to 12" in error


def test_rows_that_are_left_out_end_the_run() -> None:
    """Positions are right when the loop looks at them, and others when they are placed."""
    config = settings(log_every=12)

    def placed(device: Device, batch: dict[str, Any]) -> dict[str, Any]:
        micro = plain(device, batch)
        micro["position"] = micro["position"] + (micro["position"] == 7)
        return micro

    plain = Device.to_device
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Device, "to_device", placed)
        with pytest.raises(TrainingStopped, match="not trained on each of positions 0 to 12 once"):
            list(run(Regression(), stream(config), config, device=DEVICE))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return write_plan(tmp_path_factory.mktemp("toy") / "plan")


def digests(run: Path) -> list[tuple[int, str, str]]:
    return [(row["images_seen"], row["positions"], row["positions/0"]) for row in rows(run)]


def test_the_rows_of_a_resumed_run_have_the_same_digests(plan: Plan, tmp_path: Path) -> None:
    train_toy(tmp_path / "whole", plan)
    train_toy(tmp_path / "parts", plan, stop_at_step=3)
    train_toy(tmp_path / "parts", plan, RunSettings())
    whole = [(n, f"{n - 12}:{n}", by_hand(range(n - 12, n))) for n in range(12, 97, 12)]
    assert digests(tmp_path / "whole") == digests(tmp_path / "parts") == whole
