"""What evaluators suggest to Tune and make of its answers, asked directly. No Ray is started."""

import json

import pytest

from pathray.errors import UserError
from pathray.evaluation.results import BEST, ROWS
from pathray.evaluation.settings import (
    DatasetConfig,
    EarlyStoppingConfig,
    EveryConfig,
    ExecutionConfig,
    PluginConfig,
    SelectionConfig,
    TuningConfig,
)
from pathray.store.committed import committed_dir, list_committed
from pathray.store.metrics_log import rows_of
from pathray.store.storage import StorageError
from ray_jobs.tune import evaluation_runner as evaluators
from ray_jobs.tune.evaluation_resources import Request
from ray_jobs.tune.evaluation_runner import Evaluators
from ray_jobs.tune.searchers import FINISHED

RI = "pathorob/hospitals/ri"


@pytest.fixture(autouse=True)
def always_looks(monkeypatch):
    monkeypatch.setattr(evaluators, "LOCAL_LOOK_S", -1.0)


def snapshot(run, images, index):
    meta = {"images_seen": images, "tune_index": index, "identity": {"hash": "mine"}}
    with committed_dir(f"{run}/checkpoints", f"tag-img{images}", meta) as directory:
        directory.write_bytes("encoder/artifact.json", b"{}")


def watching(run, *, stopping=False, clustering=2, given=None, **execution):
    plugin = PluginConfig(
        datasets={"hospitals": DatasetConfig("m.csv")}, apd=EveryConfig(0), clustering=EveryConfig(clustering)
    )
    early = EarlyStoppingConfig(stopping, SelectionConfig(dataset="hospitals"), patience_evals=2, min_evals=2)
    tuning = TuningConfig(True, execution=ExecutionConfig(**execution), plugins=[plugin], early_stopping=early)
    found = Evaluators(str(run), tuning, Request({"CPU": 1}, "cpu"), identity="mine", tag="tag", snapshots=given)
    found.claimed = True
    return found


def answer(value):
    return {"judged": json.dumps({"metrics": {RI: value}, "notes": []}), "evaluator_s": 1.5}


def rows(run):
    return [(row["images_seen"], row["status"]) for row in rows_of((run / ROWS).read_bytes())]


def test_the_newest_snapshot_is_suggested_and_one_that_is_being_judged_is_not_suggested_again(tmp_path):
    watch = watching(tmp_path)
    assert watch.suggest("a") is None
    snapshot(tmp_path, 0, 0)
    found = watch.suggest("a")
    assert found["images_seen"] == 0 and found["encoder"].endswith("/encoder")
    assert json.loads(found["due"]) == {"pathorob": ["ri", "clustering"]}
    assert watch.suggest("b") is None
    watch.record_trial("a", answer(0.5), False)
    assert rows(tmp_path) == [(0, "ok")] and watch.suggest("c") is None


def test_beyond_the_limit_the_oldest_waiting_ones_are_dropped_and_counted(tmp_path):
    watch = watching(tmp_path, max_pending_jobs=1)
    for i in range(4):
        snapshot(tmp_path, 100 * i, i)
    assert watch.suggest("a")["images_seen"] == 300
    assert rows(tmp_path) == [(200, "dropped"), (100, "dropped"), (0, "dropped")]
    assert watch.results.rows[-1]["tune/dropped"] == 3
    watch.record_trial("a", answer(0.5), False)
    assert watch.results.rows[-1]["due"] == {"pathorob": ["ri", "clustering"]}, "carried forward"


def test_a_queue_that_must_not_fall_behind_stops_the_training_with_an_error(tmp_path):
    watch = watching(tmp_path, max_pending_jobs=1, fail_on_backlog=True)
    for i in range(3):
        snapshot(tmp_path, 100 * i, i)
    assert watch.suggest("a") is None and watch.suggest("b") == FINISHED
    assert json.loads((tmp_path / "STOP").read_text())["reason"] == "backlog"
    assert not (tmp_path / ROWS).exists(), "nothing is dropped"
    with pytest.raises(UserError, match=r"fail_on_backlog.*3 waiting.*at most 1"):
        watch.drain()


def test_it_ends_when_training_is_over_and_everything_is_judged(tmp_path):
    watch = watching(tmp_path)
    snapshot(tmp_path, 0, 0)
    assert watch.suggest("a") is not None
    snapshot(tmp_path, 100, 1)
    watch.over.set()
    assert watch.suggest("b") is None, "one at a time"
    watch.record_trial("a", answer(0.5), False)
    assert watch.suggest("c")["images_seen"] == 100, "what came in meanwhile is not lost"
    watch.record_trial("c", answer(0.6), False)
    assert watch.suggest("d") == FINISHED


def test_the_queue_is_kept_short_while_an_evaluation_takes_its_time(tmp_path):
    watch = watching(tmp_path, max_pending_jobs=2)
    snapshot(tmp_path, 0, 0)
    watch.suggest("slow")
    for i in range(1, 6):
        snapshot(tmp_path, 100 * i, i)
        assert watch.suggest("next") is None
        assert len(watch._waiting_snapshots()) <= 2
    assert rows(tmp_path) == [(100, "dropped"), (200, "dropped"), (300, "dropped")]
    watch.record_trial("slow", answer(0.5), False)
    assert watch.suggest("next")["images_seen"] == 500


def test_a_failed_evaluation_is_recorded_with_its_error_and_its_metrics_are_owed(tmp_path):
    watch = watching(tmp_path)
    snapshot(tmp_path, 0, 0)
    watch.suggest("a")
    watch.record_trial("a", {"error": "cannot read x.png", "trace": ""}, False)
    snapshot(tmp_path, 100, 1)
    assert json.loads(watch.suggest("b")["due"]) == {"pathorob": ["ri", "clustering"]}
    watch.record_trial("b", None, True)
    assert [row.get("error") for row in watch.results.rows] == ["cannot read x.png", "the evaluator's process died"]
    assert rows(tmp_path) == [(0, "failed"), (100, "failed")]


def test_an_evaluation_that_is_broken_off_as_the_job_ends_is_left_to_the_next_start(tmp_path):
    watch = watching(tmp_path)
    snapshot(tmp_path, 0, 0)
    watch.suggest("a")
    watch.abandoned.set()
    assert watch.suggest("b") == FINISHED
    watch.record_trial("a", None, True)
    assert not (tmp_path / ROWS).exists()
    assert watching(tmp_path).suggest("c")["images_seen"] == 0


def test_a_snapshot_with_nothing_due_is_recorded_without_a_trial(tmp_path):
    watch = watching(tmp_path)
    watch.cadences = {"pathorob": {"ri": 2}}
    for i in range(2):
        snapshot(tmp_path, 100 * i, i)
    watch.suggest("a")
    assert rows(tmp_path) == [(100, "ok")] and watch.suggest("b")["images_seen"] == 0


def test_early_stopping_asks_the_training_to_stop_once_patience_has_run_out(tmp_path):
    watch = watching(tmp_path, stopping=True)
    for i, value in enumerate((0.5, 0.7, 0.6, 0.65)):
        assert not (tmp_path / "STOP").exists()
        snapshot(tmp_path, 100 * i, i)
        watch.suggest(str(i))
        watch.record_trial(str(i), answer(value), False)
    assert json.loads((tmp_path / "STOP").read_text())["reason"] == "early_stopped"
    (best,) = list_committed(str(tmp_path / "checkpoints"), BEST)
    assert best.meta["images_seen"] == 100


def test_an_early_stop_that_the_training_did_not_live_to_see_is_asked_for_again(tmp_path):
    first = watching(tmp_path, stopping=True)
    for i, value in enumerate((0.7, 0.6, 0.5)):
        snapshot(tmp_path, 100 * i, i)
        first.suggest(str(i))
        first.record_trial(str(i), answer(value), False)
    (tmp_path / "STOP").unlink()
    watching(tmp_path, stopping=True).suggest("next")
    assert json.loads((tmp_path / "STOP").read_text())["reason"] == "early_stopped"


def test_no_stop_is_left_for_a_training_that_is_over(tmp_path):
    watch = watching(tmp_path, stopping=True)
    for i, value in enumerate((0.7, 0.6, 0.5)):
        snapshot(tmp_path, 100 * i, i)
        watch.suggest(str(i))
        watch.over.set()
        watch.record_trial(str(i), answer(value), False)
    assert watch.results.settle().stop and not (tmp_path / "STOP").exists()


def test_while_another_evaluates_the_run_nothing_is_suggested(tmp_path):
    watch = watching(tmp_path)
    watch.claimed = False
    snapshot(tmp_path, 0, 0)
    assert watch.suggest("a") is None and watch.running == {}


def test_storage_that_cannot_be_listed_for_a_while_is_asked_again(tmp_path, monkeypatch):
    watch = watching(tmp_path)
    snapshot(tmp_path, 0, 0)

    def away():
        raise StorageError("503", file="checkpoints")

    with monkeypatch.context() as broken:
        broken.setattr(watch.results, "snapshots", away)
        assert watch.suggest("a") is None
    assert watch.suggest("a")["images_seen"] == 0


def test_who_only_watches_a_run_removes_nothing_of_it(tmp_path):
    watch = watching(tmp_path, keep_last_n_snapshots=1)
    watch.owner = False
    for i in range(3):
        snapshot(tmp_path, 100 * i, i)
        watch.suggest(str(i))
        watch.record_trial(str(i), answer(0.5), False)
    assert len(list_committed(str(tmp_path / "checkpoints"))) == 3
    watch.owner = True
    snapshot(tmp_path, 300, 3)
    watch.suggest("3")
    watch.record_trial("3", answer(0.5), False)
    assert [c.meta["images_seen"] for c in list_committed(str(tmp_path / "checkpoints"))] == [300]
