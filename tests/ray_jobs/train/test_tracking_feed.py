"""Where a job's metrics go by its `logging`: MLflow is in tests/ray_jobs/tune, here is W&B, offline."""

from types import SimpleNamespace

import pytest

from adios.config import CONFIGS_DIR, RunConfig
from pathray.config.load import load_config
from pathray.config.sections import LoggingConfig, ScalingConfig, WandbConfig
from pathray.errors import UserError
from pathray.run.layout import WANDB_RUN
from pathray.run.tracking.tracked import numbers_of
from pathray.store.metrics_log import rows_of
from pathray.store.storage import Storage
from ray_jobs.train import tracking_feed
from ray_jobs.train.job import TrainJob
from ray_jobs.train.tracking_feed import check_tracking, feed_tracking, missing_tracking, tracking_of
from ray_jobs.train.trainer import fit
from tests.builders.runs.offline_wandb import offline_runs
from tests.builders.runs.toy_science import ToyConfig, assemble, write_plan


def job_of(run, plan, **changes):
    logging = LoggingConfig(mlflow=False, experiment="toys", wandb=WandbConfig("offline", tags=["t"]))
    scaling = ScalingConfig(workers=0, accelerator="cpu")
    tracking = tracking_of(SimpleNamespace(logging=logging))
    config = ToyConfig(run=str(run), **changes)
    return TrainJob(assemble, config, plan.path, str(run), scaling, tracking=tracking, identity={"identity": "x"})


def test_a_stopped_and_resumed_training_is_one_run_of_wandb_with_the_rows_of_its_metrics(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="W&B is an extra: pip install 'pathray[wandb]'")
    monkeypatch.setattr("pathray.run.tracking.wandb_process.END_S", 120.0)
    run, plan = tmp_path / "run", write_plan(tmp_path / "plan")
    run.mkdir()
    assert fit(job_of(run, plan, stop_at_step=3)).end == "stopped"
    assert fit(job_of(run, plan)).end == "budget"
    first, second = offline_runs(run)
    assert first.run_id == second.run_id and (first.project, first.name, first.tags) == ("toys", "run", ["t"])
    told = [{k: v for k, v in row.items() if not k.startswith("_")} for row in first.rows + second.rows]
    assert told == [numbers_of(row) for row in rows_of((run / "metrics.jsonl").read_bytes())] and len(told) == 8
    assert second.config["global_batch"] == 12 and second.config["identity"] == "x"
    assert second.summary["outputs/encoder"] == str(run / "encoder")
    assert second.summary["outputs/checkpoint"].startswith(str(run / "checkpoints"))


def test_nothing_is_mirrored_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *given, **more: pytest.fail("a process was started"))
    job = TrainJob(assemble, ToyConfig(), "", str(tmp_path), ScalingConfig())
    job.tracking.mlflow = False
    with feed_tracking(job, Storage.of(tmp_path)):
        pass
    assert not (tmp_path / WANDB_RUN).exists()


@pytest.mark.parametrize("word", ["off", "offline", "online"])
def test_yaml_and_words_name_the_mode(word, tmp_path):
    (tmp_path / "own.yaml").write_text(f"logging:\n  wandb:\n    mode: {word}\n")
    for argv in (["--config", str(tmp_path / "own.yaml")], [f"logging.wandb.mode={word}"]):
        config = load_config(RunConfig, argv, configs_dir=CONFIGS_DIR).config
        assert config.logging.wandb.mode == word


def test_a_job_that_wants_wandb_where_it_is_not_installed_is_refused_before_it_starts(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_tracking(SimpleNamespace(logging=LoggingConfig()))
    with pytest.raises(UserError, match="wandb is not installed"):
        check_tracking(SimpleNamespace(logging=LoggingConfig(wandb=WandbConfig("online"))))


@pytest.mark.parametrize(
    ("record", "left"), [(None, "online"), ('{"finished": false}', "online"), ('{"finished": true}', "off")]
)
def test_only_what_wandb_was_not_told_of_a_finished_run_is_sent(tmp_path, record, left):
    if record:
        (tmp_path / WANDB_RUN).write_text(record)
    config = SimpleNamespace(logging=LoggingConfig(wandb=WandbConfig("online")))
    missing = missing_tracking(config, Storage.of(tmp_path))
    assert missing.wandb.mode == left and not missing.mlflow, "SQLite next to the run has all"
    assert tracking_feed.tracking_of(config).wandb.mode == "online"
