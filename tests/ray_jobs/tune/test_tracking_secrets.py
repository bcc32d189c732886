"""A login in MLflow's address reaches MLflow and nothing that is written. Starts no Ray."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from types import SimpleNamespace

import pyarrow as pa
import pytest

from ijepath.config import CONFIGS_DIR, GROUPS
from pathray.config.load import fingerprint, load_config
from pathray.config.sections import ScalingConfig
from pathray.run.outcome import Outcome
from pathray.store.metrics_log import MetricsLog
from pathray.store.storage import Storage
from ray_jobs import pretrain_ijepath
from ray_jobs.train import pretraining
from ray_jobs.train.job import TrainJob
from ray_jobs.train.tracking_feed import feed_tracking, tracked_params
from regression.config import resolve


@dataclass
class ToyFold:
    seed: int


@dataclass
class ToyConfig:
    weights: dict[str, float]
    folds: list[ToyFold]
    api_token: str = field(default="geheim")


def test_a_login_in_the_tracking_address_is_not_saved_with_the_run(tmp_path, monkeypatch):
    import ijepath.assembly  # noqa: F401  (before the digest below is another one, which it would keep)

    jobs = []
    monkeypatch.setattr(pretraining, "fit", jobs.append)
    import_module("ijepath.assembly")  # before the patch, or it keeps what is patched
    monkeypatch.setattr("ijepath.plan.identity", lambda plan: "0123")
    uri = "https://anna:geheim@mlflow.example:5000/base?token=geheim"
    argv = [
        *("data.slide_manifest_csv=slides.csv", f"output={tmp_path / 'run'}"),
        *("optimization.total_images_budget=64", f"logging.tracking_uri={uri}"),
    ]
    config = load_config(pretrain_ijepath.PretrainConfig, argv, configs_dir=CONFIGS_DIR, groups=GROUPS).config
    sources = pa.table({"wsi_path": ["s.svs"]})
    plan = SimpleNamespace(rows=100, origin=str(tmp_path / "plan"), sources=sources)
    pretraining.train(pretrain_ijepath.JOB, config, plan)
    (job,) = jobs
    saved = (tmp_path / "run" / "config_resolved.yaml").read_text()
    assert job.tracking.uri == uri
    assert "geheim" not in saved and "https://mlflow.example:5000/base" in saved
    assert "geheim" not in str(fingerprint(job.config, placement=True))
    params = tracked_params(job)
    assert "geheim" not in str(params)
    assert (params["plan"], params["science"], params["optimization.lr"]) == ("0123", "ijepath", 2e-4)
    assert params["output"] == str(tmp_path / "run") and len(params["identity"]) == 64


def test_a_login_in_the_tracking_address_is_not_saved_with_a_regression(tmp_path, monkeypatch):
    from ray_jobs import train_regression

    jobs, texts = [], []
    uri = "https://anna:geheim@mlflow.example:5000/base?token=geheim"
    argv = ["data.table=table.csv", "data.split=split.csv", "data.target_dim=3", f"logging.tracking_uri={uri}"]
    config = load_config(train_regression.TrainRegressionConfig, argv, configs_dir=train_regression.CONFIGS_DIR).config
    folder = tmp_path / "run"
    run = train_regression.Run(
        folder=str(folder),
        plan=SimpleNamespace(rows=12, origin=str(tmp_path / "plan")),
        config=resolve(config, 1, 12),
        identity={"values": {"plan": "0123"}, "hash": "beef"},
    )

    def features_for(run):  # what the job does first, before it knows of a training
        texts.append((folder / "config_resolved.yaml").read_text())
        (folder / "config_resolved.yaml").unlink()

    def fit(job):
        jobs.append(job)
        assert not (folder / "config_resolved.yaml").exists(), "it was written once, before"
        return Outcome("stopped", 8, {}, None, None)

    monkeypatch.setattr(train_regression, "ray_session", lambda *args, **kwargs: nullcontext())
    monkeypatch.setattr(train_regression, "begin", lambda *args: texts.append("begun") or "cpu")
    monkeypatch.setattr(train_regression, "features_for", features_for)
    monkeypatch.setattr(train_regression, "fit", fit)
    train_regression.work_on(run)
    (job,) = jobs
    assert job.tracking.uri == uri
    assert texts.pop(0) == "begun", "a STOP that comes while features are computed is not removed afterwards"
    assert len(texts) == 1 and "tracking_uri: https://mlflow.example:5000/base\n" in texts[0]
    assert not [path for path in folder.rglob("*") if path.is_file() and b"geheim" in path.read_bytes()]
    assert "geheim" not in "".join(texts) + str(fingerprint(job.config, placement=True)) + str(tracked_params(job))
    params = tracked_params(job)
    assert (params["plan"], params["identity"], params["train.images"]) == ("0123", "beef", 240)


def test_mlflow_has_the_config_and_the_identity_as_parameters(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    config = ToyConfig(weights={"Lung (NSCLC)/a": 0.25}, folds=[ToyFold(3)])
    job = TrainJob(print, config, "plan", str(tmp_path), ScalingConfig(), identity={"identity": "beef"})
    with feed_tracking(job, Storage.of(tmp_path)):
        MetricsLog(f"{tmp_path}/metrics.jsonl").append({"images_seen": 4, "loss": 0.5})
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("pathray").experiment_id])
    assert run.data.metrics["loss"] == 0.5
    assert run.data.params == {
        "api_token": "(redacted)", "weights.Lung _NSCLC_/a": "0.25", "folds.0.seed": "3", "identity": "beef",
    }  # fmt: skip
