"""What a rank, and the process of an evaluation, make of what stands in the run folder. Starts no Ray."""

import json

import pytest

from pathray.errors import UserError
from pathray.evaluation import judge as job
from pathray.store.storage import StorageError
from ray_jobs.tune import evaluation_trial
from ray_jobs.tune.evaluation_trial import TrialSpec, evaluate_once, evaluate_with_retries

SPEC = TrialSpec((), "run", "cpu", 1, retries=2)


def test_the_neighbourhood_of_the_run_reaches_the_evaluation(monkeypatch):
    asked = []

    def judge(self, encoder, due, device, images_seen, neighbours=None):
        asked.append((encoder, due, images_seen, neighbours))
        return job.Judged({"pathorob/hospitals/ri": 0.5})

    monkeypatch.setattr(job.Judge, "judge", judge)
    due, neighbours = {"pathorob": ["ri"]}, {"hospitals": 7}
    config = {"encoder": "e", "due": json.dumps(due), "images_seen": 8, "neighbours": json.dumps(neighbours)}
    assert json.loads(evaluate_once(config, SPEC)["judged"])["metrics"] == {"pathorob/hospitals/ri": 0.5}
    assert asked == [("e", due, 8, neighbours)]


@pytest.mark.parametrize(("error", "attempts"), [(StorageError("503"), 3), (UserError("no such image"), 1)])
def test_storage_that_fails_for_a_while_is_asked_again_and_what_the_user_must_mend_is_not(monkeypatch, error, attempts):
    calls = []

    def fails(config, spec):
        calls.append(config)
        raise error

    monkeypatch.setattr(evaluation_trial, "evaluate_once", fails)
    assert str(error) in evaluate_with_retries({"encoder": "e"}, SPEC)["error"] and len(calls) == attempts
