"""A sweep's trial without Ray: what Tune is told of a run, how a run is stopped, where it resumes. The job is a toy."""

import json
import sys
import threading
import time
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest

from pathray.config.load import Loaded
from pathray.errors import UserError
from pathray.run.layout import STOP
from pathray.run.stop import request_stop
from pathray.search.objective import Objective
from pathray.store.committed import committed_dir
from pathray.store.metrics_log import MetricsLog
from pathray.store.storage import Storage, StorageError
from ray_jobs.tune.config import TrainingJob
from ray_jobs.tune.trial import PARKED, SweepTrial, TrialSettings
from tests.builders.jobs import wait_for


@dataclass
class ToyCheckpoint:
    resume: str = "auto"
    resume_changes: list[str] = field(default_factory=list)


@dataclass
class ToyTraining:
    lr: float = 1.0
    how: str = "budget"
    steps: int = 3
    output: str | None = None
    checkpoint: ToyCheckpoint = field(default_factory=ToyCheckpoint)


def main(loaded: Loaded[ToyTraining]) -> None:
    config = loaded.config
    store = Storage.of(str(config.output))
    if config.how == "user":
        raise UserError("no slides", key="data.slides")
    log, judged = MetricsLog(store.join("metrics.jsonl")), MetricsLog(store.join("robustness.jsonl"))
    store.write_bytes("config_resolved.yaml", f"optimization: {{total_images_budget: {4 * config.steps}}}".encode())
    for step in range(1, config.steps + 1):
        log.append({"images_seen": 4 * step, "loss": config.lr / step})
        if step % 2:
            judged.append({"images_seen": 4 * step, "pathorob/x/ri": 0.1 * step})
    store.write_bytes("resolved.json", json.dumps(vars(config.checkpoint)).encode())
    while config.how == "wait" and not store.exists(STOP):
        time.sleep(0.02)


@pytest.fixture
def job(monkeypatch, tmp_path) -> TrainingJob:
    module = ModuleType("ray_jobs.toy_training")
    module.main, module.CONFIGS_DIR, module.GROUPS = main, tmp_path, ()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return TrainingJob("toy_training", ())


@pytest.fixture
def trial(job, tmp_path, monkeypatch):
    """Makes trials of one sweep, as Tune would in processes of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ray_jobs.tune.trial.POLL_S", 0.01)

    def make(name: str, metric: str = "loss", mode: str = "min", lr: float = 1.0, snapshots: int = 0, **words):
        made = SweepTrial.__new__(SweepTrial)
        made._trial_info = SimpleNamespace(trial_id=name, trial_name=name)
        settings = TrialSettings(
            str(tmp_path), job, ("lr",), Objective(metric, mode), tuple(f"{k}={v}" for k, v in words.items()),
            str(tmp_path), snapshots,
        )  # fmt: skip
        made.setup({"lr": lr}, settings)
        return made

    return make


def passing() -> StorageError:
    error = StorageError("503")
    error.passing = True
    return error


def told(trial) -> list[dict]:
    """All results until the trial is done."""
    results = [trial.step()]
    while not results[-1].get("done"):
        results.append(trial.step())
    return results


def test_every_row_with_the_objective_is_a_result_and_the_last_comes_with_the_runs_end(trial, tmp_path):
    results = told(trial("a", lr=6.0))
    assert [(r["images_seen"], r["loss"]) for r in results] == [(4, 6.0), (8, 3.0), (12, 2.0)]
    assert [r.get("end") for r in results] == [None, None, "finished"]
    assert json.loads((tmp_path / "trials" / "a" / "trial.json").read_text())["values"] == {"lr": 6.0}


def test_an_evaluators_metric_is_read_where_evaluations_stand(trial):
    results = told(trial("a", "pathorob/x/ri", "max"))
    assert [(r["images_seen"], round(r["pathorob/x/ri"], 6)) for r in results] == [(4, 0.1), (12, 0.3)]


def test_a_run_without_the_objective_is_an_error_that_names_the_metrics_there_are(trial):
    with pytest.raises(UserError, match=r"metrics.jsonl; key: objective.metric; found: 'accuracy'; expected: 'loss'"):
        told(trial("a", "accuracy", "max"))


def test_what_the_job_raises_the_trial_raises(trial):
    with pytest.raises(UserError, match="no slides .*data.slides"):
        told(trial("a", how="user"))
    with pytest.raises(UserError, match="key: steps"):
        told(trial("b", steps="many"))


def test_a_sweep_that_is_to_end_stops_the_run_and_tells_so_until_it_goes_on(trial, tmp_path):
    one = trial("a", how="wait")
    first = one.step()
    request_stop(str(tmp_path))
    parked = [one.step(), one.step()]
    token = (tmp_path / STOP).read_text()
    assert [r[PARKED] for r in parked] == [token] * 2 and "done" not in parked[0]
    assert parked[0]["images_seen"] == first["images_seen"], "nothing new is told"
    assert one.run.has_ended and (tmp_path / "trials" / "a" / STOP).exists()
    waiting = trial("b", how="wait")
    assert waiting.step()[PARKED] == token and waiting.run is None, "a trial that has not begun does not begin"


@pytest.mark.parametrize(
    ("operation", "name"), [("exists", STOP), ("read_bytes", "metrics.jsonl"), ("exists", "config")]
)
def test_a_trial_tells_every_result_though_storage_was_away(trial, monkeypatch, caplog, operation, name):
    """Also when that was after the run's end, which is known before its last rows are read."""
    one, real, missed = trial("a", lr=6.0), getattr(Storage, operation), []
    one._ensure_running()
    wait_for(lambda: one.run.has_ended, seconds=30)
    monkeypatch.setattr(type(one.run), "has_ended", property(lambda run: len(missed) >= 5))

    def away(store, file=""):
        if file.startswith(name) and len(missed) < 6:
            missed.append(file)
            raise passing()
        return real(store, file)

    monkeypatch.setattr(Storage, operation, away)
    results = told(one)
    assert len(missed) >= 5, "storage was never away"
    assert [r["loss"] for r in results] == [6.0, 3.0, 2.0] and results[-1]["end"] == "finished"
    assert caplog.text.count("could not look for") == 1


def test_a_request_to_stop_that_storage_refuses_is_made_again(trial, tmp_path, monkeypatch, caplog):
    one, refused = trial("a", how="wait"), []
    one.step()

    def refuse(folder):
        if not refused:
            refused.append(folder)
            raise passing()
        request_stop(folder)

    monkeypatch.setattr("ray_jobs.tune.sweep_run.request_stop", refuse)
    one.cleanup()
    assert refused and one.run.has_ended and one.run.error is None
    assert "to stop; retrying: 503" in caplog.text


def test_an_error_of_the_run_ends_the_trial_also_when_it_is_one_of_storage(trial, monkeypatch):
    one = trial("a")
    one._ensure_running()
    wait_for(lambda: one.run.has_ended, seconds=30)
    one.run.error = passing()
    with pytest.raises(StorageError, match="503"):
        told(one)


def test_a_stopped_trial_waits_for_its_run(trial, tmp_path):
    one = trial("a", how="wait")
    one.step()
    assert not one.run.has_ended
    one.cleanup()
    assert one.run.has_ended and one.run.error is None


def test_a_restored_trial_goes_on_in_its_folder_with_what_is_new(trial, tmp_path):
    one = trial("a")
    assert [one.step()["images_seen"] for _ in range(2)] == [4, 8]
    again = trial("a")
    again.load_checkpoint(one.save_checkpoint(""))
    assert [r["images_seen"] for r in told(again)] == [12]
    assert [p.name for p in (tmp_path / "trials").iterdir()] == ["a"]


def test_a_trial_that_takes_over_begins_a_run_from_the_donors_snapshot_with_its_values_allowed(trial, tmp_path):
    with committed_dir(str(tmp_path / "trials" / "a" / "checkpoints"), "toy-img8", {"images_seen": 8}) as written:
        written.write_bytes("tensors", b"")
    donor = trial("a", snapshots=8)
    assert [donor.step()["images_seen"] for _ in range(2)] == [4, 8]
    pointer = donor.save_checkpoint("")
    assert (pointer["snapshot"], pointer["snapshot_images"]) == (written.path, 8)
    taker = trial("b", lr=2.0, snapshots=8)
    taker.load_checkpoint(pointer)
    assert [r["images_seen"] for r in told(taker)] == [12], "what the donor had seen is not told again"
    folder = tmp_path / "trials" / "b-from-a-img8"
    assert json.loads((folder / "resolved.json").read_text()) == {"resume": written.path, "resume_changes": ["lr"]}
    assert json.loads((folder / "trial.json").read_text())["values"] == {"lr": 2.0}
    heir = trial("b", lr=2.0)
    heir.load_checkpoint(taker.save_checkpoint(""))
    assert (heir.folder, heir.donor) == ("trials/b-from-a-img8", written.path), "and again after a restore"


def test_two_runs_never_train_in_one_folder_at_a_time(trial, tmp_path):
    one = trial("a", how="wait")
    one.step()
    other = trial("a")
    other.step()  # reads the rows that are there
    time.sleep(0.1)
    assert not other.run.has_ended and threading.active_count() >= 3
    one.cleanup()
    assert [r["images_seen"] for r in told(other)][-1] == 12
