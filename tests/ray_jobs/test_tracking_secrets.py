"""A login in MLflow's address reaches MLflow and nothing that is written. Starts no Ray."""

from types import SimpleNamespace

from core.config import fingerprint, load_config
from ijepath.config import CONFIGS_DIR, GROUPS
from ray_jobs import pretrain_ijepath


def test_a_login_in_the_tracking_address_is_not_saved_with_the_run(tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(pretrain_ijepath, "fit", jobs.append)
    uri = "https://anna:geheim@mlflow.example:5000/base?token=geheim"
    argv = [
        *("data.slide_manifest_csv=slides.csv", f"output={tmp_path / 'run'}"),
        *("optimization.total_images_budget=64", f"logging.tracking_uri={uri}"),
    ]
    config = load_config(pretrain_ijepath.PretrainConfig, argv, configs_dir=CONFIGS_DIR, groups=GROUPS).config
    plan = SimpleNamespace(rows=100, origin=str(tmp_path / "plan"))
    pretrain_ijepath.train(config, pretrain_ijepath.Inputs("index", "catalog", plan))
    (job,) = jobs
    saved = (tmp_path / "run" / "config_resolved.yaml").read_text()
    assert job.tracking.uri == uri
    assert "geheim" not in saved and "https://mlflow.example:5000/base" in saved
    assert "geheim" not in str(fingerprint(job.config, placement=True))
