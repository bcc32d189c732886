"""A run on several ranks without Ray: exact resume, unreadable units, too many of them, validation."""

import json

import pyarrow.parquet as pq
import pytest

from pathray.store.committed import list_committed
from tests.builders.runs.ranks import run_ranks
from tests.builders.runs.toy_ranks import train_in_turn
from tests.builders.runs.toy_run import positions_by_step, rows, seen, weights
from tests.builders.runs.toy_science import ToyConfig, assemble, write_plan

WHOLE = {step: set(range(12 * step, 12 * step + 12)) for step in range(8)}
RUNS = (
    ("whole", {}),
    ("parts", {"stop_at_step": 2}),
    ("parts", {}),
    ("unreadable", {"unreadable_every": 10}),
    ("validated", {"validate_every": 12, "best_at": 36, "patience": 2}),
    ("corrupt", {"unreadable_every": 2, "max_corrupt_fraction": 0.1}),
)


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.heavy)])
def group(request, tmp_path_factory):
    """(the folder of the runs, how they ended on each rank, the number of ranks)."""
    folder = tmp_path_factory.mktemp(f"ranks-{request.param}")
    plan = write_plan(folder / "plan")
    configs = [ToyConfig(run=str(folder / name), **changes) for name, changes in RUNS]
    return folder, run_ranks(request.param, train_in_turn, folder, assemble, plan.path, configs), request.param


def ended(group, name):
    """How the last run of this name ended on rank 0."""
    return [end for (run, _), end in zip(RUNS, group[1][0], strict=True) if run == name][-1]


def test_a_stopped_and_resumed_run_ends_bit_equal_to_an_undisturbed_one(group):
    folder, ends, world = group
    for rank in ends:
        whole, first, second, *_ = rank
        assert (whole["end"], whole["images_seen"]) == ("budget", 96)
        assert first["end"] == "stopped" and 0 < first["images_seen"] < 96 and second["end"] == "budget"
    assert weights(folder / "whole") == weights(folder / "parts") and weights(folder / "whole")[0] == 96
    assert positions_by_step(folder / "whole") == positions_by_step(folder / "parts") == WHOLE
    assert [row["images_seen"] for row in rows(folder / "parts")] == [12 * i for i in range(1, 9)]
    owners = {(p, line["rank"]) for line in seen(folder / "whole") for p in line["position"]}
    assert len(owners) == 96 and {rank for _, rank in owners} == set(range(world)), "two ranks share a unit"


def test_unreadable_units_are_replaced_counted_and_listed(group):
    table = pq.read_table(group[0] / "unreadable" / "quarantine.parquet")
    assert ended(group, "unreadable")["end"] == "budget"
    assert ended(group, "unreadable")["unreadable"] == table.num_rows > 0
    assert set(table["reason"].to_pylist()) == {"truncated"}
    positions = table["position"].to_pylist()
    assert positions == sorted(positions) and len(set(positions)) >= len(positions) - 2
    assert {p // (12 // group[2]) % group[2] for p in positions} == set(range(group[2])), "every rank's are listed"


def test_too_many_unreadable_units_stop_all_ranks_with_the_figures(group):
    for rank in group[1]:
        assert "of 24 units up to step 2 were replaced" in rank[-1]
    assert not (group[0] / "corrupt" / "encoder").exists()


def test_the_state_that_validation_finds_best_is_kept_and_exported_and_patience_ends_the_run(group):
    run, outcome = group[0] / "validated", ended(group, "validated")
    assert (outcome["end"], outcome["images_seen"]) == ("early_stop", 60)
    (best,) = [c for c in list_committed(str(run / "checkpoints")) if c.name == "toy-best"][-1:]
    assert best.meta["images_seen"] == 36
    assert json.loads((run / "encoder" / "facts.json").read_text())["images_seen"] == 36
    scores = {row["images_seen"]: row["val/score"] for row in rows(run) if "val/score" in row}
    assert scores == {12: -24, 24: -12, 36: 0, 48: -12, 60: -24}
