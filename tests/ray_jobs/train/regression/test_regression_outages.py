"""A regression whose bucket is away before or after its training: it ends as if nothing had happened. Starts no Ray."""

import pytest

from pathray.config.load import load_config
from pathray.run.layout import CONFIG, RESULTS, STOP
from pathray.run.outcome import Outcome
from pathray.run.stop import request_stop
from pathray.store.committed import Committed
from pathray.store.outages import through_outages
from pathray.store.storage import Storage
from ray_jobs import train_regression
from ray_jobs.regression.runs import Run
from ray_jobs.shell.cli import Outputs
from regression.config import CONFIGS_DIR
from tests.builders.bucket import BucketFileSystem, Outage
from tests.builders.runs.bucket_run import register
from tests.builders.runs.toy_science import write_plan
from tests.ray_jobs.train.regression.test_regression_jobs import KEYS

FOLDER = "bucket://store/out/run"
BEFORE, RESULT = b'{"of": "a shorter budget"}', b'{"best_primary": 0.5}'


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run in a bucket that has its results of a shorter budget; pauses between tries are short."""
    register(tmp_path, monkeypatch.setenv)
    monkeypatch.setattr("pathray.store.storage.FIRST_WAIT_S", 0.005)
    monkeypatch.setitem(through_outages.__kwdefaults__, "first_pause_s", 0.05)
    words = [*KEYS, "data.table=t.csv", "data.split=s.csv", f"output={tmp_path}", "scaling.workers=0"]
    config = load_config(train_regression.TrainRegressionConfig, words, configs_dir=CONFIGS_DIR).config
    Storage.of(FOLDER).write_bytes(RESULTS, BEFORE)
    newest = Committed(f"{FOLDER}/checkpoints/x", "x", 0.0, {}, {"images_seen": 24})
    yield Run(FOLDER, write_plan(tmp_path / "plan"), config, {}, newest)
    BucketFileSystem.outage = None


@pytest.mark.parametrize(
    ("name", "end"),
    [("metrics_24.json", "budget"), (CONFIG, "budget"), (RESULTS, "budget"), ("summary.md", "budget"),
     ("summary.md", "stopped")],
)  # fmt: skip
def test_a_regression_keeps_and_writes_its_results_when_the_bucket_is_back(run, monkeypatch, name, end):
    outcome = Outcome(end, 48, {}, None, f"{FOLDER}/encoder" if end == "budget" else None)
    monkeypatch.setattr(train_regression, "begin", lambda *given: "cpu")
    monkeypatch.setattr(train_regression, "train", lambda *given: outcome)

    def write(folder, plan, config, end, device, baselines):
        Storage.of(folder).write_bytes(RESULTS, RESULT)

    monkeypatch.setattr(train_regression, "features_for", lambda run: {})
    monkeypatch.setattr("regression.reports.report.write_results", write)
    away = BucketFileSystem.outage = Outage("write", f"store/out/run/{name}", 1.0)
    train_regression._train_and_judge(run, Storage.of(FOLDER), Outputs({"run": FOLDER}))
    assert away.refused, "storage was never away"
    store = Storage.of(FOLDER)
    assert store.read_bytes("metrics_24.json") == BEFORE and store.exists(CONFIG)
    assert store.exists(RESULTS) == (end == "budget")
    assert end != "budget" or store.read_bytes(RESULTS) == RESULT
    assert "48" in store.read_bytes("summary.md").decode()


def test_a_bucket_that_is_away_is_no_request_to_stop(run, caplog):
    asked = train_regression.is_asked_to_stop(run)
    request_stop(FOLDER)
    BucketFileSystem.outage = Outage("look", f"store/out/run/{STOP}", 3600.0)
    assert [asked(), asked()] == [False, False]
    assert caplog.text.count("could not look for STOP; retrying") == 1
    BucketFileSystem.outage = None
    assert asked()
