"""A step that hangs ends its process with its stacks; the next start resumes as if nothing had happened."""

import json

import pytest
import torch

from pathray.run import hangs
from pathray.run.layout import hang_note
from pathray.store.checkpoint import save
from pathray.store.storage import Storage
from pathray.train.settings import LoopSettings
from tests.builders.runs.hanging_run import HANGING_STEP, LIMIT_S, train_hanging
from tests.builders.runs.ranks import exit_code
from tests.builders.runs.toy_run import rows, train_toy, weights
from tests.builders.runs.toy_science import write_plan


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return write_plan(tmp_path_factory.mktemp("toy") / "plan")


@pytest.fixture(scope="module")
def undisturbed(plan, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    train_toy(run, plan)
    return weights(run), [row["loss"] for row in rows(run)]


def test_a_step_that_hangs_ends_the_process_and_the_next_start_ends_bit_equal(plan, undisturbed, tmp_path):
    assert exit_code(train_hanging, str(tmp_path), plan.path) == hangs.EXIT_CODE
    note = json.loads((tmp_path / hang_note(0)).read_text())
    assert (note["step"], note["limit_s"], note["rank"]) == (HANGING_STEP, LIMIT_S, 0)
    assert note["seconds"] > LIMIT_S and "hang_forever" in note["stacks"]
    said = (tmp_path / "said").read_text()
    assert f"step {HANGING_STEP} hangs" in said and "in hang_forever" in said, "the stacks are in the log"
    assert f"step {HANGING_STEP} hangs" in (tmp_path / "log.txt").read_text()
    assert exit_code(train_hanging, str(tmp_path), plan.path) == 0
    assert "an earlier attempt ended on rank 0 because step 5 was busy" in (tmp_path / "said").read_text()
    assert (weights(tmp_path), [row["loss"] for row in rows(tmp_path)]) == undisturbed


def test_a_hang_that_holds_the_interpreter_lock_ends_the_process_too(plan, undisturbed, tmp_path):
    assert exit_code(train_hanging, str(tmp_path), plan.path, True) == hangs.EXIT_CODE
    assert (tmp_path / "hung").exists() and not (tmp_path / hang_note(0)).exists(), "nothing of Python could run"
    assert exit_code(train_hanging, str(tmp_path), plan.path) == 0
    assert (weights(tmp_path), [row["loss"] for row in rows(tmp_path)]) == undisturbed


def test_a_job_whose_attempts_hang_ends_with_an_error_that_names_the_step(tmp_path):
    store = Storage.of(tmp_path)
    assert hangs.hang_error(store, "this") is None
    for rank, time in ((0, 2.0), (1, 1.0)):
        note = {"step": 7, "seconds": 61.0, "limit_s": 60.0, "stacks": "", "rank": rank, "fit_id": "this", "time": time}
        store.write_bytes(hang_note(rank), json.dumps(note).encode())
    error = hangs.hang_error(store, "this")
    assert error is not None and "step 7 hangs on rank 0" in error.message
    assert error.where["key"] == "scaling.step_timeout_s" and str(error.where["file"]).endswith(hang_note(0))
    assert hangs.hang_error(store, "another") is None


def test_a_hang_that_the_run_has_left_behind_is_not_blamed_for_its_end(tmp_path):
    store = Storage.of(tmp_path)
    note = {"step": 7, "seconds": 61.0, "limit_s": 60.0, "stacks": "", "rank": 0, "fit_id": "this", "time": 1.0}
    store.write_bytes(hang_note(0), json.dumps(note).encode())
    for step, is_blamed in ((6, True), (7, False)):
        meta = {"images_seen": 4 * step, "step": step, "fit_id": "this"}
        save(str(tmp_path / "checkpoints"), "toy-latest", {"x": torch.zeros(1)}, meta)
        assert (hangs.hang_error(store, "this") is not None) == is_blamed


def test_an_earlier_hang_is_told_until_its_step_is_taken(tmp_path, caplog):
    store = Storage.of(tmp_path)
    note = {"step": 7, "seconds": 61.0, "rank": 0}
    store.write_bytes(hang_note(0), json.dumps(note).encode())
    hangs.log_earlier(store, 7)
    assert not caplog.text
    hangs.log_earlier(store, 6)
    assert "step 7 was busy for 61 s" in caplog.text


def test_nothing_is_watched_without_a_bound(tmp_path):
    settings = LoopSettings(seed=0, global_batch=1, micro_batch=1, total_images=1, optim={})
    watch = hangs.watch_steps(settings, Storage.of(tmp_path), 0, "fit").start()
    with watch.step(1, ("model",)):
        assert watch.look() is None
    watch.close()
