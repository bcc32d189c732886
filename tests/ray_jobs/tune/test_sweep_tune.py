"""What a sweep tells Tune, and what it makes of Tune's trials. Starts no Ray."""

import pickle
import time
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler

from pathray.errors import UserError
from pathray.search.objective import Objective
from pathray.search.space import parse_space
from pathray.store.metrics_log import MetricsLog
from ray_jobs.tune import tuner as sweep_tune
from ray_jobs.tune.board import Status, entries_of, read_statuses, write_statuses
from ray_jobs.tune.config import AshaConfig, Sweep, SweepConfig, TrainingJob
from ray_jobs.tune.tuner import Halving, Watch, domain_of
from tests.builders.bucket import BucketFileSystem, Outage
from tests.builders.jobs import wait_for
from tests.builders.runs.bucket_run import register


def trial(name: str, status: str = "RUNNING", error: Exception | None = None, **result):
    return SimpleNamespace(
        trial_id=name, status=status, last_result=result, has_reported_at_least_once=bool(result),
        config={"lr": 1.0}, get_pickled_error=lambda: error, get_error=lambda: None,
    )  # fmt: skip


def halving(folder) -> Halving:
    made = Halving(str(folder), Objective(), AshaConfig(grace_images=8, reduction_factor=2.0))
    made.set_search_properties("loss", "min")
    return made


def write_run(folder, losses: dict[int, float]) -> None:
    log = MetricsLog(str(folder / "metrics.jsonl"))
    for images, loss in losses.items():
        log.append({"images_seen": images, "loss": loss})


def test_after_a_restore_asha_judges_by_what_the_trials_before_had_reached(tmp_path):
    write_run(tmp_path / "trials" / "good", {4: 0.5, 8: 0.2, 16: 0.1})
    worse = trial("worse")
    restored, new = halving(tmp_path), halving(tmp_path)
    restored.on_trial_add(None, trial("good", "TERMINATED", images_seen=8, loss=0.2))
    for scheduler, decision in ((restored, TrialScheduler.STOP), (new, TrialScheduler.CONTINUE)):
        scheduler.on_trial_add(None, worse)
        assert scheduler.on_trial_result(None, worse, {"images_seen": 8, "loss": 0.9}) == decision
    rungs = {milestone: dict(rung) for milestone, rung in restored._brackets[0]._rungs if rung}
    assert rungs[8.0]["good"] == -0.2 and 16.0 not in rungs, "what Tune had not been told of is not judged by"


@pytest.mark.parametrize("most", [1, 2, 3, 10, 64])
def test_as_many_trials_fit_the_drivers_node_as_may_run_at_a_time(monkeypatch, most):
    monkeypatch.setattr(sweep_tune.ray.util, "get_node_ip_address", lambda: "10.0.0.1")
    first, _ = sweep_tune._resources(SweepConfig(max_concurrent=most)).bundles
    share = first["node:10.0.0.1"]
    assert most * share <= 1 < (most + 1) * share


def test_every_kind_of_dimension_is_drawn_inside_its_values():
    space = parse_space(
        {
            "a": {"uniform": [0.1, 0.2]}, "b": {"loguniform": [1e-5, 1e-3]}, "c": {"randint": [3, 6]},
            "d": {"quniform": [0.0, 1.0, 0.25]}, "e": {"choice": [[1, 2], "x"]},
        }
    )  # fmt: skip
    drawn = {key: [domain_of(d).sample(None) for _ in range(200)] for key, d in space.items()}
    assert all(0.1 <= x <= 0.2 for x in drawn["a"]) and all(1e-5 <= x <= 1e-3 for x in drawn["b"])
    assert sum(x < 1e-4 for x in drawn["b"]) in range(60, 140), "half of a decade pair lies in either decade"
    assert set(drawn["c"]) == {3, 4, 5} and set(drawn["d"]) == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert {str(x) for x in drawn["e"]} == {"[1, 2]", "x"}


def test_a_trials_status_is_how_it_ended_and_not_how_tune_was_left(tmp_path):
    config = SweepConfig(scheduler="asha", asha=AshaConfig(grace_images=8, max_images=32))
    watch = Watch(
        str(tmp_path), Sweep(config, TrainingJob("x", ()), parse_space({"lr": {"uniform": [0, 2]}}), {}, None)
    )
    trials = [
        trial("a", "TERMINATED", images_seen=16, loss=0.1, done=True, end="finished"),
        trial("b", "TERMINATED", images_seen=8, loss=0.9, done=True),
        trial("c", "TERMINATED", images_seen=32, loss=0.2, done=True),
        trial("d", "TERMINATED", images_seen=8, loss=0.3),  # Tune calls what it had to leave terminated, too
        trial("e", "PENDING"),
        trial("f", "ERROR", error=UserError("no slides", key="data.slides"), images_seen=4, loss=1.0),
        trial("g", "ERROR", error=RuntimeError("first\nthe worker died")),
    ]
    found = [watch._status(one) for one in trials]
    assert [s.status for s in found] == [
        "finished", "stopped", "finished", "unfinished", "unfinished", "failed", "failed",
    ]  # fmt: skip
    assert found[5].error["where"]["key"] == "data.slides" and found[5].error["text"] == "no slides"
    assert found[6].error["message"] == "RuntimeError: the worker died" and found[6].error["where"] is None
    assert found[4].values == {"lr": 1.0}


def test_a_bucket_that_is_away_ends_no_sweep_and_its_stop_is_found_later(tmp_path, monkeypatch, caplog):
    from pathray.run.stop import request_stop

    register(tmp_path, monkeypatch.setenv)
    monkeypatch.setattr(sweep_tune, "LOOK_S", 0.0)
    ended, away = [], Outage("look", "store/sweep/STOP", 1.0)
    monkeypatch.setattr(sweep_tune.signal, "raise_signal", ended.append)
    watch = pickle.loads(pickle.dumps(Watch("bucket://store/sweep", None)))  # Tune saves it
    watch.refreshed = time.monotonic()
    request_stop("bucket://store/sweep")
    monkeypatch.setattr(BucketFileSystem, "outage", away)
    wait_for(lambda: watch.on_step_end(1, []) or ended, seconds=30)
    assert len(away.refused) > 1 and len(ended) == 1
    assert caplog.text.count("could not look for a stop of the sweep; retrying") == 1


def test_the_leaderboard_is_read_from_the_runs_and_knows_trials_that_have_none(tmp_path):
    from pathray.store.storage import Storage

    store = Storage.of(tmp_path)
    write_statuses(store, [Status("a", "finished", {"lr": 1.0}), Status("b", values={"lr": 2.0})])
    assert [s.trial for s in read_statuses(store)] == ["a", "b"]
    for name, began, lr, losses in (("a", 1.0, 1.0, {4: 0.5, 8: 0.2}), ("a-from-c-img8", 2.0, 3.0, {12: 0.3})):
        write_run(tmp_path / "trials" / name, losses)
        text = f'{{"trial": "a", "values": {{"lr": {lr}}}, "began": {began}}}'
        (tmp_path / "trials" / name / "trial.json").write_text(text)
    one, other = entries_of(store, Objective())
    assert (one.trial, one.best, one.last, one.images_seen) == ("a", (8, 0.2), (12, 0.3), 12)
    assert one.values == {"lr": 1.0}, "those of the run in which it was best"
    assert (other.trial, other.best, other.values) == ("b", None, {"lr": 2.0})


def test_a_watch_that_an_earlier_version_saved_still_looks_for_a_stop(tmp_path):
    watch = Watch(str(tmp_path), None)
    state = {name: value for name, value in vars(watch).items() if name != "looks"}
    restored = Watch.__new__(Watch)
    restored.__setstate__(state)
    assert restored.root == str(tmp_path) and restored.looks.look(lambda: "found", "") == "found"
