"""A run without Ray, from its start to its end: exact resume, kills, stops, early stops, unreadable units, errors."""

import json
import signal
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pathray.data.plan import Plan
from pathray.errors import UserError
from pathray.run import RunSettings
from pathray.run.stop import request_stop
from pathray.store import checkpoint
from pathray.store.committed import list_committed
from pathray.store.storage import Storage, StorageError
from tests.builders.runs.ranks import exit_code
from tests.builders.runs.toy_run import positions_by_step, rows, seen, train_toy, weights
from tests.builders.runs.toy_science import ToyReader, write_plan

WHOLE = {step: set(range(12 * step, 12 * step + 12)) for step in range(8)}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return write_plan(tmp_path_factory.mktemp("toy") / "plan")


@pytest.fixture(scope="module")
def undisturbed(plan, tmp_path_factory):
    """A run that nothing happened to: its folder."""
    run = tmp_path_factory.mktemp("whole") / "run"
    outcome = train_toy(run, plan)
    assert (outcome.end, outcome.images_seen, outcome.unreadable) == ("budget", 96, 0)
    return run


def test_a_run_leaves_metrics_checkpoints_log_and_artifact(undisturbed):
    assert positions_by_step(undisturbed) == WHOLE
    assert [row["images_seen"] for row in rows(undisturbed)] == [12 * i for i in range(1, 9)]
    assert json.loads((undisturbed / "encoder" / "facts.json").read_text())["images_seen"] == 96
    assert "96 images, step 8: " in (undisturbed / "log.txt").read_text()
    assert weights(undisturbed)[0] == 96 and not (undisturbed / "quarantine.parquet").exists()


def test_a_stopped_and_resumed_run_ends_bit_equal_to_an_undisturbed_one(plan, undisturbed, tmp_path):
    first = train_toy(tmp_path / "run", plan, stop_at_step=2)
    assert (first.end, first.artifact) == ("stopped", None) and 0 < first.images_seen < 96
    assert not (tmp_path / "run" / "encoder").exists()
    second = train_toy(tmp_path / "run", plan)
    assert second.end == "budget" and second.checkpoint and second.artifact
    assert weights(tmp_path / "run") == weights(undisturbed)
    assert positions_by_step(tmp_path / "run") == WHOLE
    assert [row["images_seen"] for row in rows(tmp_path / "run")] == [12 * i for i in range(1, 9)]


def train_until_killed(run, plan):
    train_toy(run, Plan.open(plan), kills=[5])
    assert "ray" not in sys.modules


def test_a_killed_process_is_started_again_and_the_run_ends_bit_equal(plan, undisturbed, tmp_path):
    codes = [exit_code(train_until_killed, tmp_path / "run", plan.path) for _ in range(2)]
    assert codes == [-signal.SIGKILL, 0]
    assert (tmp_path / "run" / "killed_5").exists() and weights(tmp_path / "run") == weights(undisturbed)
    assert [row["images_seen"] for row in rows(tmp_path / "run")] == [12 * i for i in range(1, 9)]


def test_a_request_to_stop_from_an_earlier_start_is_void_unless_it_is_to_be_kept(plan, tmp_path):
    (tmp_path / "run").mkdir()
    request_stop(str(tmp_path / "run"))
    kept = train_toy(tmp_path / "run", plan, RunSettings(keep_stop=True))
    assert (kept.end, kept.images_seen) == ("stopped", 12)
    assert train_toy(tmp_path / "run", plan, total_images=96).end == "budget"
    assert not (tmp_path / "run" / "STOP").exists()


def test_a_stop_from_outside_checkpoints_and_ends_cleanly(plan, tmp_path):
    run = tmp_path / "run"

    def ask():
        deadline = time.monotonic() + 60
        while not list(run.glob("seen-*.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.01)
        request_stop(str(run), "early_stopped")

    thread = threading.Thread(target=ask)
    thread.start()
    outcome = train_toy(run, plan, total_images=12 * 5000)
    thread.join()
    assert outcome.end == "early_stopped" and outcome.images_seen < 12 * 5000
    assert weights(run)[0] == outcome.images_seen and outcome.artifact


# --- validation -------------------------------------------------------------------------------------------------------


def test_the_state_that_validation_finds_best_is_kept_and_exported_and_patience_ends_the_run(plan, tmp_path):
    run = tmp_path / "run"
    outcome = train_toy(run, plan, validate_every=12, best_at=36, patience=2)
    assert (outcome.end, outcome.images_seen) == ("early_stop", 60)
    (best,) = [c for c in list_committed(str(run / "checkpoints")) if c.name == "toy-best"][-1:]
    assert best.meta["images_seen"] == 36
    assert json.loads((run / "encoder" / "facts.json").read_text())["images_seen"] == 36
    scores = {row["images_seen"]: row["val/score"] for row in rows(run) if "val/score" in row}
    assert scores == {12: -24, 24: -12, 36: 0, 48: -12, 60: -24}
    steps = len(seen(run))
    assert train_toy(run, plan, validate_every=12, best_at=36, patience=2).end == "early_stop"
    assert len(seen(run)) == steps, "what patience has ended takes no step when it is started again"


def test_a_stopped_run_resumes_with_the_best_and_the_patience_that_it_had(plan, tmp_path):
    stopped = train_toy(tmp_path / "run", plan, validate_every=12, best_at=24, patience=3, stop_at_step=2)
    assert (stopped.end, stopped.artifact) == ("stopped", None)
    outcome = train_toy(tmp_path / "run", plan, validate_every=12, best_at=24, patience=3)
    assert (outcome.end, outcome.images_seen) == ("early_stop", 60)
    assert json.loads((tmp_path / "run" / "encoder" / "facts.json").read_text())["images_seen"] == 24


# --- unreadable units -------------------------------------------------------------------------------------------------


def test_unreadable_units_are_replaced_counted_and_listed_once_also_after_a_kill(plan, tmp_path):
    whole = train_toy(tmp_path / "whole", plan, unreadable_every=10)
    table = pq.read_table(tmp_path / "whole" / "quarantine.parquet")
    assert whole.unreadable == table.num_rows > 0 and set(table["reason"].to_pylist()) == {"truncated"}
    run = tmp_path / "run"
    train_toy(run, plan, unreadable_every=10, stop_at_step=4)
    beyond = sorted(list_committed(str(run / "checkpoints")), key=lambda c: c.meta["images_seen"])[-1]
    Storage.of(run).remove(f"checkpoints/{beyond.path.rpartition('/')[2]}")  # as if it had died before that save
    parts = {path.name for path in (run / "quarantine").iterdir()}
    assert train_toy(run, plan, unreadable_every=10).unreadable == whole.unreadable
    assert pq.read_table(run / "quarantine.parquet").equals(table)
    assert weights(run) == weights(tmp_path / "whole") and parts


def test_what_ends_a_run_is_in_the_quarantine_report(plan, tmp_path):
    with pytest.raises(UserError, match="no readable unit found for position"):
        train_toy(tmp_path / "run", plan, unreadable_every=1)
    found = pq.read_table(tmp_path / "run" / "quarantine.parquet").to_pylist()
    assert {row["reason"] for row in found} == {"truncated"} and len(found) >= 16
    assert "no readable unit" in (tmp_path / "run" / "log.txt").read_text()


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unreadable_every": 2, "max_corrupt_fraction": 0.1}, "of 24 units up to step 2 were replaced"),
        ({"bad_at_step": 2}, r"NaN|Inf|finite"),
        ({"micro_batch": 5}, "must divide"),
    ],
)
def test_a_run_that_cannot_continue_ends_with_the_figures_and_no_artifact(plan, tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        train_toy(tmp_path / "run", plan, **changes)
    assert not (tmp_path / "run" / "encoder").exists()


def test_resuming_with_another_identity_is_refused_with_both_values_and_may_be_allowed(plan, tmp_path):
    train_toy(tmp_path / "run", plan, total_images=24)
    before = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    with pytest.raises(UserError, match="total_images: 24 in the checkpoint, 48 now"):
        train_toy(tmp_path / "run", plan, total_images=48)
    with pytest.raises(UserError, match="already holds checkpoints of a run"):
        train_toy(tmp_path / "run", plan, RunSettings(resume="never"), total_images=24)
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == before
    longer = RunSettings(resume_changes=("total_images",))
    assert train_toy(tmp_path / "run", plan, longer, total_images=48).images_seen == 48


def test_a_damaged_checkpoint_ends_the_run_and_never_becomes_fresh_weights(plan, tmp_path):
    run = tmp_path / "run"
    train_toy(run, plan, stop_at_step=3)
    before, steps = {p.name for p in (run / "checkpoints").iterdir()}, len(seen(run))
    newest = checkpoint.latest(str(run / "checkpoints"), "toy").path
    tensors = Path(newest) / checkpoint.TENSORS
    tensors.write_bytes(tensors.read_bytes()[:-4] + b"\xff\xff\xff\xff")
    with pytest.raises(UserError) as error:
        train_toy(run, plan)
    assert newest in str(error.value)
    assert len(seen(run)) == steps, "no step was taken"
    assert {p.name for p in (run / "checkpoints").iterdir()} == before


def test_storage_that_refuses_a_save_ends_the_run_with_its_words(plan, tmp_path, monkeypatch):
    def refuse(self, name, data):
        raise StorageError("cannot write: no space left", file=name)

    monkeypatch.setattr("pathray.run.quarantine.Faults.write", lambda self, seen: refuse(self, "quarantine", b""))
    with pytest.raises(UserError, match="no space left"):
        train_toy(tmp_path / "run", plan)
    assert not list((tmp_path / "run").glob("checkpoints/*")) and not (tmp_path / "run" / "encoder").exists()


def test_the_reader_of_an_assembly_is_left_as_it_was(plan, tmp_path):
    from pathray.device import Device
    from pathray.run import train
    from tests.builders.runs.toy_science import ToyConfig, assemble

    (tmp_path / "run").mkdir()
    parts = assemble(ToyConfig(run=str(tmp_path / "run"), total_images=24), plan, 1)
    train(parts, plan, str(tmp_path / "run"), Device.of("cpu"))
    assert isinstance(parts.reader, ToyReader)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_out_of_memory_asks_for_a_smaller_micro_batch_that_takes_the_same_units(plan, tmp_path, caplog):
    run = tmp_path / "run"
    first = train_toy(run, plan, micro_batch=6, memory_for=4, memory_from_step=3, save_every=12)
    assert (first.end, first.changes, first.artifact) == ("retry", {"micro_batch": 3}, None)
    assert first.checkpoint is not None
    assert "out of memory with micro_batch=6; the next attempt takes micro_batch=3" in caplog.text
    again = RunSettings(changes=first.changes)
    second = train_toy(run, plan, again, micro_batch=6, memory_for=4, memory_from_step=3, save_every=12)
    assert second.end == "budget" and positions_by_step(run) == WHOLE
    assert {len(line["position"]) for line in seen(run) if line["step"] >= 4} == {3}


def test_out_of_memory_with_one_unit_is_the_users_to_mend(plan, tmp_path):
    with pytest.raises(UserError, match="out of memory with a micro-batch of one unit"):
        train_toy(tmp_path / "run", plan, micro_batch=1, memory_for=0, memory_from_step=1)
