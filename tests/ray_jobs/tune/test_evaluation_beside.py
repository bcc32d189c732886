"""What a rank, and the process of an evaluation, make of what stands in the run folder. Starts no Ray."""

import json
from types import SimpleNamespace

import pytest

from pathray.errors import UserError
from pathray.evaluation import judge as job
from pathray.evaluation import results
from pathray.store.storage import Storage, StorageError
from ray_jobs.train.worker import _Worker
from ray_jobs.tune import evaluation_trial
from ray_jobs.tune.evaluation_trial import TrialSpec, attempted, judged

SPEC = TrialSpec((), "run", "cpu", 1, retries=2)


def rank(**parts):
    """A worker of its parts alone."""
    worker = _Worker.__new__(_Worker)
    vars(worker).update(rank=0, failed=None, **parts)
    return worker


@pytest.mark.parametrize("text", [b"", b"enough for today", b"5", b"\xff\xfe"])
def test_a_stop_written_by_hand_ends_the_run_whatever_stands_in_it(tmp_path, text):
    (tmp_path / "STOP").write_bytes(text)
    assert rank(store=Storage.of(tmp_path))._reason("stopped", 8) == "stopped"


@pytest.mark.parametrize("out_of_reach", ["judged", "watched"])
def test_in_sync_mode_storage_out_of_reach_does_not_end_the_training(tmp_path, monkeypatch, out_of_reach):
    def fails(*_):
        raise StorageError("cannot read: 503", file="gs://b/robustness.jsonl")

    monkeypatch.setattr(results, "judged", lambda run_dir, images: False)
    monkeypatch.setattr(results, out_of_reach, fails)
    tuning = SimpleNamespace(execution=SimpleNamespace(mode="sync"))
    told = []
    rank(
        store=Storage.of(tmp_path),
        saver=SimpleNamespace(wait=lambda: None),
        device=SimpleNamespace(broadcast_object=lambda over: told.append(over) or over),
        parts=SimpleNamespace(tuning=tuning),
    )._wait_for_evaluation(8)
    assert told == [True]


def test_the_neighbourhood_of_the_run_reaches_the_evaluation(monkeypatch):
    asked = []

    def judge(self, encoder, due, device, images_seen, neighbours=None):
        asked.append((encoder, due, images_seen, neighbours))
        return job.Judged({"pathorob/hospitals/ri": 0.5})

    monkeypatch.setattr(job.Judge, "judge", judge)
    due, neighbours = {"pathorob": ["ri"]}, {"hospitals": 7}
    config = {"encoder": "e", "due": json.dumps(due), "images_seen": 8, "neighbours": json.dumps(neighbours)}
    assert json.loads(judged(config, SPEC)["judged"])["metrics"] == {"pathorob/hospitals/ri": 0.5}
    assert asked == [("e", due, 8, neighbours)]


@pytest.mark.parametrize(("error", "attempts"), [(StorageError("503"), 3), (UserError("no such image"), 1)])
def test_storage_that_fails_for_a_while_is_asked_again_and_what_the_user_must_mend_is_not(monkeypatch, error, attempts):
    calls = []

    def fails(config, spec):
        calls.append(config)
        raise error

    monkeypatch.setattr(evaluation_trial, "judged", fails)
    assert str(error) in attempted({"encoder": "e"}, SPEC)["error"] and len(calls) == attempts


@pytest.mark.parametrize(("tuning", "numbers"), [(None, [None, None]), (object(), [None, 3])])
def test_only_snapshots_for_evaluators_have_a_number_and_may_be_removed_by_them(tmp_path, tuning, numbers):
    saved = []
    parts = SimpleNamespace(
        tag="t", identity={"hash": "h"}, placement={}, science="s", keep_last_n=2, encoder=None, tuning=tuning
    )
    saver = SimpleNamespace(save=lambda root, name, tensors, meta, also=None: saved.append(meta))
    worker = rank(parts=parts, saver=saver, job=SimpleNamespace(fit_id="f"), root=str(tmp_path))
    state = SimpleNamespace(images_seen=300, meta=lambda: {"images_seen": 300})
    for snapshot in (None, 3):
        worker._save_checkpoint(state, {}, snapshot)
    assert [meta.get("tune_index") for meta in saved] == numbers
