"""Evaluators asked as Tune asks them: two of them on one run, storage that fails, a Tune that breaks. Starts no Ray."""

import json
import logging
import shutil
import time
from types import SimpleNamespace

import pytest

from pathray.config.load import load_config
from pathray.errors import UserError
from pathray.evaluation.attempts import FOLDER, Attempts
from pathray.evaluation.results import Results, has_live_evaluator
from pathray.evaluation.settings import (
    DatasetConfig,
    EarlyStoppingConfig,
    ExecutionConfig,
    PluginConfig,
    SelectionConfig,
    TuningConfig,
)
from pathray.nn.vit import ViT, ViTConfig
from pathray.store.artifact import EncoderArtifact
from pathray.store.committed import committed_dir
from pathray.store.storage import Storage, StorageError
from ray_jobs import evaluate
from ray_jobs.train import training_jobs
from ray_jobs.tune import evaluation_runner as evaluators
from ray_jobs.tune import evaluation_trial
from ray_jobs.tune.evaluation_resources import Request, request_of
from ray_jobs.tune.evaluation_runner import Evaluators
from ray_jobs.tune.searchers import FINISHED

KEY = "pathorob/hospitals/ri"
STOPPING = EarlyStoppingConfig(True, SelectionConfig("pathorob", "hospitals", "ri"), patience_evals=2, min_evals=2)


def snapshot(run, index, identity="mine"):
    meta = {"images_seen": 100 * index, "identity": {"hash": identity}, "tune_index": index}
    with committed_dir(f"{run}/checkpoints", f"tag-img{100 * index}", meta) as directory:
        directory.write_bytes("tensors.safetensors", b"t")
        directory.write_bytes("encoder/artifact.json", b"{}")
    return directory.path


def beside(run, stopping=STOPPING, **execution):
    """Evaluators that no Tune asks."""
    plugin = PluginConfig(datasets={"hospitals": DatasetConfig("m.csv")})
    tuning = TuningConfig(True, execution=ExecutionConfig(**execution), plugins=[plugin], early_stopping=stopping)
    return Evaluators(str(run), tuning, Request({"CPU": 1.0}, "cpu"), identity="mine", tag="tag")


def result(value):
    return {"judged": json.dumps({"metrics": {KEY: value}, "notes": []}), "evaluator_s": 1.0}


def judge_all(found, value=0.5):
    """Answer what is suggested until there is nothing; the images seen, in order."""
    done, found._looked = [], 0.0  # it looks at once
    while isinstance(trial := found.suggest(str(len(done))), dict):
        found.record_trial(str(len(done)), result(value), False)
        done.append(trial["images_seen"])
        found._looked = 0.0
    return done


def test_an_evaluator_that_waited_for_another_does_not_repeat_what_that_one_did(tmp_path):
    for index in range(3):
        snapshot(tmp_path, index)
    first, second = (beside(tmp_path, max_pending_jobs=9) for _ in range(2))
    first.claimed = True
    assert judge_all(first) == [200, 100, 0]
    assert second.suggest("a") is None, "not its turn"
    second.claimed = True
    assert judge_all(second) == []
    first.claimed = False
    assert first.suggest("b") is None
    snapshot(tmp_path, 3)
    assert judge_all(second) == [300]
    first.claimed = True
    assert judge_all(first) == []
    assert sorted(row["images_seen"] for row in Results(str(tmp_path), "mine").rows) == [0, 100, 200, 300]


def test_a_best_snapshot_that_cannot_be_copied_neither_bars_evaluations_nor_the_next_start(
    tmp_path, monkeypatch, caplog
):
    for index in range(4):
        path = snapshot(tmp_path, index)
        if index == 3:
            (tmp_path / "checkpoints" / path.rpartition("/")[2] / "tensors.safetensors").write_bytes(b"x")
    found = beside(tmp_path, max_pending_jobs=9)
    found.claimed = True
    assert judge_all(found, 0.9) == [300, 200, 100, 0]  # 300 is best as long as it is alone
    assert "damaged" in caplog.text
    monkeypatch.setattr(Evaluators, "_run", lambda self: None)
    with beside(tmp_path) as again:
        assert judge_all(again) == []


def test_a_run_that_is_begun_anew_in_its_folder_is_evaluated_anew_and_not_stopped_by_what_was(tmp_path):
    for index in range(4):
        snapshot(tmp_path, index)
    before = beside(tmp_path, max_pending_jobs=9)
    before.claimed = True
    assert judge_all(before) == [300, 200, 100, 0] and (tmp_path / "STOP").exists()
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "STOP").unlink()
    again = beside(tmp_path)
    again.claimed = True
    assert judge_all(again) == [] and not (tmp_path / "STOP").exists()
    snapshot(tmp_path, 0)
    assert judge_all(again) == [0]


def test_an_early_stop_is_asked_for_even_where_the_decision_cannot_be_written(tmp_path, monkeypatch):
    for index in range(4):
        snapshot(tmp_path, index)
    found = beside(tmp_path, max_pending_jobs=9)
    found.claimed = True

    def full(*_):
        raise StorageError("cannot write: no space left", file="early_stopping.json")

    monkeypatch.setattr(Results, "settle", full)
    judge_all(found, 0.5)
    assert json.loads((tmp_path / "STOP").read_bytes())["reason"] == "early_stopped"


def test_draining_ends_where_storage_does_not_answer_and_the_training_keeps_its_outcome(tmp_path, monkeypatch, caplog):
    snapshot(tmp_path, 1)
    found = beside(tmp_path)
    found.claimed, clock = True, [1000.0]

    def fails(*_):
        raise StorageError("cannot read: 503", file="gs://b/checkpoints")

    monkeypatch.setattr(Results, "snapshots", fails)
    found.drain()  # nothing is raised
    monkeypatch.setattr(evaluators, "LOCAL_LOOK_S", 0.0)
    monkeypatch.setattr(evaluators, "time", SimpleNamespace(monotonic=lambda: clock[0], time=time.time))
    assert found.suggest("a") is None
    clock[0] += evaluators.OUTAGE_S - 1
    assert found.suggest("a") is None
    clock[0] += 2
    assert found.suggest("a") == FINISHED
    assert "the next start evaluates what has not been evaluated yet" in caplog.text


def test_while_the_training_goes_on_storage_that_does_not_answer_is_asked_again(tmp_path, monkeypatch):
    snapshot(tmp_path, 1)
    found = beside(tmp_path)
    found.claimed, answer = True, Results.snapshots
    monkeypatch.setattr(Results, "snapshots", lambda self: (_ for _ in ()).throw(StorageError("503")))
    found.troubled = time.monotonic() - 1e6
    assert found.suggest("a") is None
    monkeypatch.setattr(Results, "snapshots", answer)
    found._looked = 0.0
    assert judge_all(found) == [100] and found.troubled is None


def test_an_error_in_the_bookkeeping_ends_evaluations_after_a_few_tries_and_the_training_goes_on(
    tmp_path, monkeypatch, caplog
):
    snapshot(tmp_path, 1)
    asked = []

    def decide(*_):
        asked.append(len(asked))
        raise AssertionError("a bug")

    def tune(self, attempt):
        while self.suggest("a") != FINISHED:
            assert time.monotonic() < until, "evaluations do not end"

    until = time.monotonic() + 20
    for name in ("LOCAL_LOOK_S", "ERROR_PAUSE_S", "RESTART_AFTER_S"):
        monkeypatch.setattr(evaluators, name, 0.0)
    monkeypatch.setattr(evaluators, "ALIVE_S", 0.01)
    monkeypatch.setattr("pathray.evaluation.backlog.decide", decide)
    monkeypatch.setattr(Evaluators, "_tune", tune)
    with beside(tmp_path) as found:
        found._thread.join(90)
        found._pulse.join(30)
        assert not found.is_working and not has_live_evaluator(str(tmp_path)), "nobody waits for them"
        found.drain()
    assert len(asked) == evaluators.ERRORS + 1
    assert [r.levelname for r in caplog.records if "a bug" in r.getMessage()] == ["WARNING"] * evaluators.ERRORS + [
        "ERROR"
    ]


def test_errors_in_the_bookkeeping_that_pass_are_forgotten(tmp_path, monkeypatch):
    snapshot(tmp_path, 1)
    found, clock = beside(tmp_path), [1000.0]
    found.claimed, look = True, Results.snapshots
    monkeypatch.setattr(evaluators, "time", SimpleNamespace(monotonic=lambda: clock[0], time=time.time))

    def broken(_):
        raise ValueError("a bug")

    for _ in range(2):
        monkeypatch.setattr(Results, "snapshots", broken)
        for _ in range(evaluators.ERRORS):
            found._looked = 0.0
            assert found.suggest("a") is None and found.suggest("a") is None, "not asked again before the pause"
            clock[0] += evaluators.ERROR_PAUSE_S
        monkeypatch.setattr(Results, "snapshots", look)
        found._looked = 0.0
        found.suggest("a")
        assert found.errors == 0
    assert found.running


def test_tune_is_started_again_as_often_as_evaluations_come_between_its_failures(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluators, "RESTART_AFTER_S", 0.0)
    found, attempts, advances = beside(tmp_path), [], 2 * evaluators.RESTARTS

    def tune(self, attempt):
        attempts.append(attempt)
        self.judged += attempt < advances
        raise RuntimeError("a machine is gone")

    monkeypatch.setattr(Evaluators, "_tune", tune)
    found._run()
    assert attempts == list(range(advances + evaluators.RESTARTS)), "those after the last evaluation are counted"


def test_a_training_that_waits_is_told_when_nobody_evaluates_any_more(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(evaluators, "RESTART_AFTER_S", 0.0)
    monkeypatch.setattr(evaluators, "ALIVE_S", 0.01)

    def breaks(self, attempt):
        raise RuntimeError("Tune is broken")

    monkeypatch.setattr(Evaluators, "_tune", breaks)
    with caplog.at_level(logging.WARNING), beside(tmp_path) as found:
        found._thread.join(30)
        found._pulse.join(30)
        assert not found.is_working and not has_live_evaluator(str(tmp_path))
        found.drain()
    assert "no evaluations any more" in caplog.text


def test_the_sign_of_life_is_gone_when_evaluators_end(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluators, "ALIVE_S", 0.001)
    monkeypatch.setattr(Evaluators, "_tune", lambda self, attempt: self.over.wait())
    for _ in range(20):
        with beside(tmp_path) as found:
            assert has_live_evaluator(str(tmp_path))
        assert not has_live_evaluator(str(tmp_path)) and not found._pulse.is_alive()


def test_a_trial_of_a_tune_run_that_broke_is_not_recorded(tmp_path):
    snapshot(tmp_path, 1)
    found = beside(tmp_path)
    found.claimed = True
    found.suggest("a")
    found.running.clear()
    found.record_trial("a", result(0.5), False)
    assert found.results.rows == []


@pytest.mark.parametrize(
    ("workers", "each", "gpus", "share"),
    [(2, 0.8, 2, 0.2), (3, 0.4, 2, 0.6), (1, 0.75, 2, 1.0), (4, 0.25, 1, None), (2, 1.0, 3, 1.0), (3, 0.3, 1, 0.1)],
)
def test_an_evaluation_asks_for_no_larger_part_of_a_gpu_than_one_has_left(workers, each, gpus, share):
    found = request_of(ExecutionConfig(), "cuda", {"GPU": gpus}, workers * each, workers)
    assert found.resources.get("GPU") == (None if share is None else pytest.approx(share))


def test_parts_of_several_gpus_are_not_taken_for_one():
    with pytest.raises(UserError, match=r"tuning\.execution\.gpus.*0\.2 of 2 GPUs"):
        request_of(ExecutionConfig(gpus=0.4), "cuda", {"GPU": 2}, 1.6, 2)


def test_results_of_another_encoder_are_not_given_for_this_ones(tmp_path):
    shape = ViTConfig(img_size=(16, 16), patch_size=(8, 8), dim=8, depth=1, heads=1)
    how = {"preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3, "size": 16, "mpp": None}, "science": "test"}
    for name in "ab":
        EncoderArtifact.save(str(tmp_path / name), ViT(shape), **how, provenance={})

    def subject(name):
        argv = [f"snapshot={tmp_path / name}", f"output={tmp_path / 'out'}"]
        return evaluate._subject(load_config(evaluate.EvaluateConfig, argv, configs_dir=evaluate.CONFIGS_DIR).config)

    folder, (given,) = subject("a")
    encoder = json.loads((tmp_path / "a" / "artifact.json").read_bytes())["sha256"]
    Results(folder, encoder).record(given, "ok", {}, **{KEY: 0.5})
    assert subject("a") == (folder, [given])
    with pytest.raises(UserError, match=r"another encoder.*robustness\.jsonl.*output"):
        subject("b")


def test_a_run_is_over_by_its_evaluations_and_by_the_patience_of_now(tmp_path, monkeypatch):
    for index in range(4):
        snapshot(tmp_path, index)
    found = Results(str(tmp_path), "mine", STOPPING)
    for there in found.snapshots():
        found.record(there, "ok", {}, **{KEY: 0.5})  # and killed before anything was settled

    def config(patience):
        stopping = EarlyStoppingConfig(True, STOPPING.selection, patience_evals=patience, min_evals=2)
        return SimpleNamespace(
            output=str(tmp_path),
            checkpoint=SimpleNamespace(resume="auto"),
            logging=SimpleNamespace(write_tag="tag"),
            tuning=SimpleNamespace(enable=True, early_stopping=stopping),
        )

    assert training_jobs.outputs_if_early_stopped(config(2)) is not None
    found.settle()
    assert training_jobs.outputs_if_early_stopped(config(5)) is None


@pytest.mark.parametrize("content", [b"\xff\xfe", b"tuning: [", b"3", b"tuning: 3", b"tuning: {plugins: 7}"])
def test_a_damaged_config_of_a_run_is_named(tmp_path, content):
    (tmp_path / "config_resolved.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"config_resolved\.yaml"):
        evaluate.recorded_tuning(str(tmp_path))


def test_a_damaged_note_of_the_mlflow_run_is_named(tmp_path):
    (tmp_path / "mlflow_run.json").write_bytes(b'{"run_id": "a"}\xff')
    config = SimpleNamespace(mlflow=True, tracking_uri=None)
    with pytest.raises(UserError, match=r"damaged.*mlflow_run\.json.*tracking_uri"):
        evaluate._mlflow(config, Storage.of(str(tmp_path)))


def test_the_row_of_an_evaluation_says_which_metric_failed_alone(tmp_path, caplog):
    snapshot(tmp_path, 0)
    judged = {"metrics": {KEY: 0.5}, "notes": [], "failed": {"probe/hospitals/linear": "ZeroDivisionError: zero"}}
    with caplog.at_level(logging.WARNING):
        one = Evaluators(str(tmp_path), TuningConfig(), Request({"CPU": 1}, "cpu"), identity="mine")
        (found,) = one.results.snapshots()
        one.running["trial"] = (found, {"probe": ["linear"]}, time.monotonic())
        one.record_trial("trial", {"judged": json.dumps(judged), "evaluator_s": 1.0}, False)
    (row,) = Results(str(tmp_path), "mine").rows
    assert (row["status"], row[KEY], row["failed"]) == ("ok", 0.5, judged["failed"])
    assert "probe/hospitals/linear failed at 0 images" in caplog.text


def test_what_could_not_be_judged_is_told_once_in_the_log(tmp_path, caplog):
    judged = {"judged": json.dumps({"metrics": {KEY: 0.5}, "notes": ["probe/devices: too few persons"]})}
    for index in range(2):
        snapshot(tmp_path, index)
    with caplog.at_level(logging.INFO):
        one = Evaluators(str(tmp_path), TuningConfig(), Request({"CPU": 1}, "cpu"), identity="mine")
        for found in one.results.snapshots():
            one.running["trial"] = (found, {"probe": ["linear"]}, time.monotonic())
            one.record_trial("trial", {**judged, "evaluator_s": 1.0}, False)
    assert len(Results(str(tmp_path), "mine").rows) == 2
    assert caplog.text.count("not judged, or not as planned: probe/devices: too few persons") == 1


def test_a_result_that_is_no_row_is_recorded_as_failed_with_its_trace_and_not_tried_for_ever(tmp_path, caplog):
    for index in range(2):
        snapshot(tmp_path, index)
    found = beside(tmp_path, max_pending_jobs=9)
    found.claimed = True
    bad = {"judged": json.dumps({"metrics": {"status": "twice"}, "notes": []})}
    assert found.suggest("a")["images_seen"] == 100
    found.record_trial("a", bad, False)
    assert judge_all(found) == [0], "the others are judged"
    (failed, good) = Results(str(tmp_path), "mine").rows
    assert (failed["images_seen"], failed["status"], good["status"]) == (100, "failed", "ok")
    assert failed["error"].startswith("TypeError: ") and "in _note" in failed["trace"]
    assert "Traceback" in caplog.text
    found.report()
    assert "in _note" in (tmp_path / "robustness/report.html").read_text()


def test_the_trace_of_a_failed_evaluation_is_in_its_row_and_in_the_report(tmp_path):
    snapshot(tmp_path, 1)
    found = beside(tmp_path)
    found.claimed = True
    assert found.suggest("a")["snapshot"].startswith("tag-img100-")
    found.record_trial("a", {"error": "AssertionError: ", "trace": "in my_metric\nassert x > 0"}, False)
    (row,) = Results(str(tmp_path), "mine").rows
    assert (row["status"], row["error"], row["trace"]) == ("failed", "AssertionError: ", "in my_metric\nassert x > 0")
    found.report()
    assert "in my_metric" in (tmp_path / "robustness/report.html").read_text()


def test_a_result_that_storage_does_not_take_is_kept_and_recorded_once_when_it_does(tmp_path, monkeypatch):
    for index in range(2):
        snapshot(tmp_path, index)
    found, record = beside(tmp_path, max_pending_jobs=9), Results.record
    found.claimed = True
    assert found.suggest("a")["images_seen"] == 100

    def away(*given, **more):
        raise StorageError("cannot write: 503", file="robustness.jsonl")

    monkeypatch.setattr(Results, "record", away)
    found.record_trial("a", result(0.5), False)
    assert found.suggest("b") is None and found.suggest("b") is None, "nothing else is begun"
    assert found.troubled is not None and len(found._waiting_snapshots()) == 1
    monkeypatch.setattr(Results, "record", record)
    assert judge_all(found) == [0]
    assert [(row["images_seen"], row[KEY]) for row in found.results.rows] == [(100, 0.5), (0, 0.5)]


def test_what_another_evaluator_has_recorded_meanwhile_is_not_recorded_twice(tmp_path):
    snapshot(tmp_path, 1)
    first, second = beside(tmp_path), beside(tmp_path)
    for found in (first, second):
        found.claimed = True
        assert found.suggest("a")["images_seen"] == 100
    second.record_trial("a", result(0.7), False)
    first.record_trial("a", result(0.5), False)
    assert [row[KEY] for row in Results(str(tmp_path), "mine").rows] == [0.7]


def test_attempts_are_forgotten_with_the_row_and_forgiven_when_the_job_ends_on_purpose(tmp_path, monkeypatch):
    monkeypatch.setattr(Evaluators, "_run", lambda self: None)
    snapshot(tmp_path, 1)
    notes = Storage.of(str(tmp_path))
    with beside(tmp_path) as found:
        name = found.suggest("a")["snapshot"]
        Attempts(notes, name).begin()
    assert json.loads(notes.read_bytes(f"{FOLDER}/{name}.json")) == []
    found = beside(tmp_path)
    found.claimed = True
    found.suggest("a")
    found.record_trial("a", result(0.5), False)
    assert not notes.exists(f"{FOLDER}/{name}.json")


def test_an_evaluator_with_a_bug_is_tried_so_often_in_all_over_restarts_of_its_job(tmp_path, monkeypatch):
    calls = []

    def bug(config, spec):
        calls.append(config)
        if len(calls) == 1:
            raise SystemExit("the whole job is killed")
        raise AssertionError

    monkeypatch.setattr(evaluation_trial, "evaluate_once", bug)
    monkeypatch.setattr("ray.tune.report", lambda found: said.append(found))
    spec, config = evaluation_trial.TrialSpec((), str(tmp_path), "cpu", 1, retries=1), {"encoder": "e", "snapshot": "s"}
    said = []
    with pytest.raises(SystemExit):
        evaluation_trial.evaluation_trial(config, spec)
    for _ in range(3):
        evaluation_trial.evaluation_trial(config, spec)
    assert len(calls) == 3 and {found["error"] for found in said} == {"AssertionError: "}
    assert all("in bug" in found["trace"] for found in said)


def test_an_evaluation_waits_for_storage_that_is_away_without_counting_it(monkeypatch):
    monkeypatch.setattr(evaluation_trial, "FIRST_PAUSE_S", 0.001)
    calls = []

    def away(config, spec):
        calls.append(config)
        if len(calls) < 6:
            error = StorageError("cannot read: 503", file="gs://b/encoder")
            error.passing = True
            raise error
        return {"judged": "{}"}

    monkeypatch.setattr(evaluation_trial, "evaluate_once", away)
    spec = evaluation_trial.TrialSpec((), "run", "cpu", 1, retries=0)
    assert evaluation_trial.evaluate_with_retries({"encoder": "e"}, spec) == {"judged": "{}"}
