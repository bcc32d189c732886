"""When a training that failed is begun anew, and when not. Starts no Ray."""

import json
from types import SimpleNamespace

import pytest
import torch

from pathray.config.sections import ScalingConfig
from pathray.errors import UserError
from pathray.run import hangs
from pathray.run.layout import hang_note, memory_note
from pathray.store.checkpoint import save
from pathray.store.storage import Storage
from ray_jobs.train import attempts
from ray_jobs.train.job import TrainJob


@pytest.fixture
def fits(monkeypatch, tmp_path):
    """`fits(end, …)`: a job whose fits end so, in turn -> (how the job ends, the numbers of the fits). A number of
    images is a checkpoint that is written before the workers fail, None none; ("micro_batch", n) is what they note when
    they run out of memory."""
    from ray.train import WorkerGroupError

    changes = []

    def write(images, fit_id):
        meta = {"images_seen": images, "fit_id": fit_id}
        save(str(tmp_path / "checkpoints"), f"toy-img{images}", {"x": torch.zeros(1)}, meta)

    def run(*ends, max_failures=3, older=()):
        scaling = ScalingConfig(accelerator="cpu", max_failures=max_failures)
        job, names, left = TrainJob(None, None, "", str(tmp_path), scaling), [], list(ends)
        for images in older:
            write(images, "another job's")

        def fit():
            end = left.pop(0)
            if isinstance(end, BaseException):
                raise end
            if end == "done":
                return SimpleNamespace(return_value={"end": "budget"})
            if isinstance(end, dict):
                return SimpleNamespace(return_value=end)
            if isinstance(end, tuple):
                Storage.of(str(tmp_path)).write_bytes(memory_note(job.fit_id), json.dumps(dict([end])).encode())
            elif end:
                write(end, job.fit_id)
            raise WorkerGroupError("a worker died", {})

        def trainer(job, store, number):
            names.append(number)
            changes.append(job.run_settings().changes)
            return SimpleNamespace(fit=fit)

        monkeypatch.setattr(attempts, "ray_trainer", trainer)
        try:
            return attempts.fit_while_it_advances(job, Storage.of(str(tmp_path))), names
        except WorkerGroupError:
            return None, names

    run.changes = changes
    return run


def test_a_training_that_advances_between_failures_goes_on_in_new_fits(fits):
    assert fits(8, 16, 24, "done") == ({"end": "budget"}, [1, 2, 3, 4])


@pytest.mark.parametrize(("ends", "attempts"), [((None,), [1]), ((8, None), [1, 2]), ((8, 16, None), [1, 2, 3])])
def test_one_that_does_not_ends(ends, attempts, fits):
    assert fits(*ends) == (None, attempts)


def test_one_that_learns_which_units_end_processes_goes_on(fits, tmp_path):
    def noting(name):
        (tmp_path / "crashes").mkdir(exist_ok=True)
        (tmp_path / "crashes" / f"{name}.json").write_text("{}")

    noting("a")
    assert fits(None, "done") == ({"end": "budget"}, [1, 2])
    assert fits(None, None) == (None, [1, 2])


def test_whoever_wants_no_restarts_gets_none(fits):
    assert fits(8, max_failures=0) == (None, [1])


def test_what_the_user_can_mend_is_not_tried_again(fits):
    with pytest.raises(UserError, match="no such file"):
        fits(8, UserError("no such file"))


def test_checkpoints_of_earlier_jobs_are_no_progress(fits):
    assert fits(None, older=(8,)) == (None, [1])


def test_an_attempt_that_ran_out_of_memory_is_followed_by_one_with_smaller_micro_batches(fits):
    again = {"end": "retry", "changes": {"micro_batch": 2}}
    assert fits(again, "done", max_failures=0) == ({"end": "budget"}, [1, 2])
    assert fits.changes == [{}, {"micro_batch": 2}]


@pytest.mark.parametrize("max_failures", [0, 3])
def test_a_group_that_notes_a_smaller_micro_batch_is_followed_by_another_however_few_failures_are_allowed(
    fits, max_failures
):
    ends = [("micro_batch", n) for n in (32, 16, 8, 4)]
    assert fits(*ends, "done", max_failures=max_failures) == ({"end": "budget"}, [1, 2, 3, 4, 5])
    assert fits(("micro_batch", 4), None, max_failures=max_failures) == (None, [1, 2]), "the same note is no progress"


@pytest.mark.parametrize("max_failures", [0, 3])
def test_attempts_that_a_hanging_step_ends_are_counted_like_any_and_told_by_the_step(fits, monkeypatch, max_failures):
    def hung(store, fit_id):
        note = {"step": 5, "seconds": 61.0, "limit_s": 60.0, "rank": 0, "fit_id": fit_id, "time": 1.0}
        store.write_bytes(hang_note(0), json.dumps(note).encode())
        return read(store, fit_id)

    read = hangs.hang_error
    monkeypatch.setattr(hangs, "hang_error", hung)
    with pytest.raises(UserError, match="step 5 hangs") as error:
        fits(None, max_failures=max_failures)
    assert error.value.where["key"] == "scaling.step_timeout_s"
    assert fits(8, "done") == ({"end": "budget"}, [1, 2]), "one that advances goes on"
