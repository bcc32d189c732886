"""The skeleton of a pretraining job, with a science that does nothing: what is asked when, and what is left. No Ray."""

from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from pathray.config.load import placement
from pathray.config.sections import CheckpointConfig, LoggingConfig, ScalingConfig, StreamConfig
from pathray.evaluation.settings import TuningConfig
from pathray.run.outcome import Outcome
from ray_jobs.shell.cli import Outputs
from ray_jobs.shell.runtime import RuntimeConfig
from ray_jobs.train import pretraining
from ray_jobs.train.pretraining import Pretraining, pretrain


@dataclass
class NoConfig:
    output: str | None = placement("run")
    data: StreamConfig = field(default_factory=StreamConfig)
    logging: LoggingConfig = placement(default_factory=LoggingConfig)
    tuning: TuningConfig = placement(default_factory=TuningConfig)
    checkpoint: CheckpointConfig = placement(default_factory=CheckpointConfig)
    scaling: ScalingConfig = placement(default_factory=ScalingConfig)
    runtime: RuntimeConfig = placement(default_factory=RuntimeConfig)


@pytest.fixture
def job(tmp_path, monkeypatch):
    """`start(dry_run)`; what was asked for, in order, is in `asked`; `finished` is what is there already."""
    found = SimpleNamespace(asked=[], finished=None, artifact=str(tmp_path / "run" / "encoder"))

    def step(name, answer=None):
        def ask(*given):
            found.asked.append(name)
            return answer

        return ask

    @contextmanager
    def session(*given, **more):
        found.asked.append("Ray")
        yield

    config = NoConfig(output=str(tmp_path / "run"))
    science = Pretraining(
        science="nothing",
        locate=lambda config: config,
        check=step("check"),
        rehearse=step("rehearse"),
        outputs_if_finished=lambda config: found.finished,
        prepare=step("prepare"),
        resolve=lambda config, rows: config,
        total_images=lambda config: 8,
        announce=lambda asked, config, plan: {},
        exports=("mask_model",),
    )
    monkeypatch.setattr(pretraining, "ray_session", session)
    monkeypatch.setattr(pretraining, "begin", step("begin", "cpu"))
    monkeypatch.setattr(
        pretraining, "train", lambda *given: step("train", Outcome("budget", 8, {}, "checkpoint", found.artifact))()
    )
    monkeypatch.setattr(pretraining, "write_run_summary", step("summary"))
    found.start = lambda dry_run=False: pretrain(science, SimpleNamespace(config=config, dry_run=dry_run))
    return found


def test_all_is_checked_before_ray_starts_and_a_lack_of_workers_is_told_before_the_plan_is_built(job):
    outputs = job.start()
    assert job.asked == ["check", "Ray", "begin", "prepare", "train", "summary"]
    run = job.artifact.removesuffix("/encoder")
    assert outputs.paths["encoder"] == job.artifact and outputs.paths["mask_model"] == f"{run}/mask_model"
    assert outputs.paths["run"] == run and outputs.paths["checkpoint"] == "checkpoint"


def test_a_dry_run_rehearses_and_starts_nothing(job):
    assert job.start(dry_run=True) is None
    assert job.asked == ["check", "rehearse"]


def test_a_finished_run_is_left_as_it_is(job):
    job.finished = Outputs({"run": "there"})
    assert job.start().paths == {"run": "there"} and job.asked == ["check"]


def test_an_interrupted_run_names_no_artifact(job):
    job.artifact = None
    assert set(job.start().paths) == {"run", "checkpoint"}
