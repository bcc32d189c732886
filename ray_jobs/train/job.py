"""What a training job needs to know, through Ray Train or in the job's own process."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pathray.config.sections import ScalingConfig, WandbConfig
from pathray.run.outcome import RunSettings

if TYPE_CHECKING:
    from pathray.evaluation.settings import TuningConfig


@dataclass
class Tracking:
    """Whether and where the run's metrics go in addition to metrics.jsonl. `uri` None: SQLite in a local run folder.
    `tags` are the MLflow run's: `mlflow.parentRunId` makes it another's child, and is the group of a run of W&B."""

    mlflow: bool = True
    uri: str | None = None
    experiment: str = "pathray"
    tags: dict[str, str] = field(default_factory=dict)
    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass
class TrainJob:
    """Everything a worker needs; pickled to it. `assemble(config, plan, world) -> pathray.train.assembly.Assembly`.

    The driver shows progress towards `total_images` (0: not known). `decode_tasks`: how many tasks of the cluster
    decode for each worker, 0 where the workers do it themselves.
    """

    assemble: Callable[..., Any]
    config: Any
    plan_path: str
    run_dir: str
    scaling: ScalingConfig
    resume: str = "auto"
    resume_changes: list[str] = field(default_factory=list)  # identity keys that may differ from the checkpoint's
    tracking: Tracking = field(default_factory=Tracking)
    start_metrics: dict[str, float] = field(default_factory=dict)
    total_images: int = 0
    decode_tasks: int = 0
    identity: dict[str, Any] = field(default_factory=dict)  # in addition to the config's: sent to MLflow, too
    accelerator: str | None = None  # what `begin` found; None: fit begins
    tuning: TuningConfig | None = None  # evaluations during the training
    identity_hash: str | None = None  # of the run, which evaluations belong to
    tag: str | None = None  # of its checkpoints
    name: str = "train"  # of its lines of progress
    owner: str = ""  # the token by which the driver owns the run's folder
    fit_id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    starting: bool = False  # its workers have not met yet, and one may train instead (ray_jobs.train.group_start)
    alone: bool = False  # one worker trains instead of several
    changes: dict[str, int] = field(default_factory=dict)  # of the loop's settings, after an attempt out of memory

    def run_settings(self) -> RunSettings:
        """What the run is told. The driver removes an older STOP, and keeps the log where a job wants one."""
        return RunSettings(
            resume=self.resume,
            resume_changes=tuple(self.resume_changes),
            fit_id=self.fit_id,
            start_metrics=self.start_metrics,
            changes=self.changes,
            keep_stop=True,
            keep_log=False,
            owner=self.owner,
        )
