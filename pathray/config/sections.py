"""Sections that the run configs of all sciences share, as they are or to inherit from. Only the schema; no torch.

A science keeps its own keys, and its own defaults where they differ, in a subclass. What is made of the sections is
in pathray.train.from_config. Not here: evaluations during a training (pathray.evaluation.settings).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from pathray.config.checks import check_accelerator, check_at_least, check_between, check_one_of, check_positive
from pathray.errors import UserError
from pathray.fingerprint import added_field, placement

REGULARISERS = {"none": 0.0, "vicreg": 1.0, "sigreg": 0.05}  # and their default weights
GRAD_SYNC = ("flat", "overlap")
WANDB_MODES = ("off", "online", "offline")


@dataclass
class DecodeConfig:
    """How units are read and decoded ahead of the training: a part of every science's `data`."""

    max_corrupt_fraction: float = placement(0.05)
    decode_on: str = placement("worker")
    threads: int = placement(2)
    ahead: int = placement(4)
    ahead_mb: int = placement(1024)
    read_timeout_s: float = placement(60.0)
    max_stalled_reads: int = placement(16)  # slow reads among the newest 1,024 that end the run when exceeded

    def __post_init__(self) -> None:
        check_positive(self, "data", "threads", "ahead", "ahead_mb", "read_timeout_s")
        check_at_least(self, "data", 0, "max_stalled_reads")
        check_between(self, "data", 0, 1, "max_corrupt_fraction")
        check_one_of(self, "data", decode_on=("worker", "cluster"))


@dataclass
class StreamConfig(DecodeConfig):
    """The same, and how many rows of the plan travel together, by the name that most sciences give that key."""

    stream_batch_size: int = placement(2048)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "data", "stream_batch_size")


@dataclass
class StepConfig:
    """How the loop takes its steps: a part of every science's section of the optimizer."""

    max_bad_steps: int = placement(10)  # steps in a row with NaN or Inf
    grad_sync: str = placement("flat")  # overlap: faster on many GPUs, exact to rounding only
    deterministic: bool = placement(False)  # reproducible kernels on a GPU, slower: bit-equal on resume there, too

    def check_steps(self, section: str) -> None:
        check_positive(self, section, "max_bad_steps")
        check_one_of(self, section, grad_sync=GRAD_SYNC)


@dataclass
class RegulariserConfig:
    """Terms against collapse in the loss of a JEPA: a part of a science's `model`. See pathray.train.regulariser."""

    regulariser: str = added_field("none")  # none | vicreg | sigreg: spreads projected mean tokens of a global batch
    regulariser_weight: float | None = added_field(None, of="regulariser")  # None: 1 for vicreg, 0.05 for sigreg
    regulariser_directions: int = added_field(256, of="regulariser")  # random directions per step of sigreg
    invariance_weight: float = added_field(1.0, of="regulariser")  # weight of the distance between a sample's views
    projection_dim: int = added_field(64, of="regulariser")
    projection_hidden: int = added_field(512)  # width of its hidden layer; 0: a linear projection

    @property
    def whole_batch(self) -> str:
        """What in the loss needs the whole global batch at once, if anything."""
        return "" if self.regulariser == "none" else f"model.regulariser={self.regulariser}"

    @property
    def resolved_regulariser_weight(self) -> float:
        given = self.regulariser_weight
        return REGULARISERS[self.regulariser] if given is None else given

    def check_regulariser(self, section: str) -> None:
        check_one_of(self, section, regulariser=tuple(REGULARISERS))
        check_positive(self, section, "regulariser_weight", "regulariser_directions", "projection_dim")
        check_at_least(self, section, 0, "invariance_weight", "projection_hidden")


@dataclass
class WandbConfig:
    """Weights & Biases, in addition to metrics.jsonl and MLflow: an extra, `pip install 'pathray[wandb]'`."""

    mode: str = "off"  # off | online | offline: kept in the run's folder, for `wandb sync`
    project: str | None = None  # None: logging.experiment
    entity: str | None = None  # None: your default
    name: str | None = None  # None: the run's folder
    tags: list[str] = field(default_factory=list)
    encoder: bool = False  # upload the final encoder as an artifact

    def __post_init__(self) -> None:
        self.mode = "off" if self.mode in ("False", "false") else self.mode  # what YAML makes of a bare off
        check_one_of(self, "logging.wandb", mode=WANDB_MODES)


@dataclass
class LoggingConfig:
    """Where a run's metrics go, and what its files are called after."""

    write_tag: str = "run"
    mlflow: bool = True
    tracking_uri: str | None = None  # None: SQLite next to the run's other outputs
    experiment: str = "pathray"
    mlflow_parent: str | None = None  # id of the MLflow run that this run belongs to, such as a sweep
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        if not self.write_tag or "/" in self.write_tag:
            raise UserError("a tag is part of a file name", key="logging.write_tag", found=self.write_tag)


@dataclass
class CheckpointConfig:
    resume: str = "auto"  # auto: from the newest committed checkpoint of the run, if any | never | a checkpoint's path
    latest_minutes: float = 10.0  # minutes between two <write_tag>-latest; 0: not by time
    latest_every: int | None = None  # images between two; None: by time alone
    keep_last_n: int = 2
    resume_changes: list[str] = field(default_factory=list)  # identity keys that may differ from the checkpoint's

    def __post_init__(self) -> None:
        check_positive(self, "checkpoint", "keep_last_n", "latest_every")
        check_at_least(self, "checkpoint", 0, "latest_minutes")


@dataclass
class ScalingConfig:
    """How a training job is spread: all of it placement."""

    workers: int = placement(1)  # 0: in the job's own process, without Ray
    accelerator: str = placement("auto")
    cpus_per_worker: float = placement(1.0)
    gpus_per_worker: float = placement(1.0)
    resources_per_worker: dict[str, float] = placement(default_factory=dict)
    threads_per_worker: int = placement(0)
    tpu_type: str | None = placement(None)  # type of slice for several TPU hosts, such as TPU-V5P
    tpu_topology: str | None = placement(None)  # shape of that slice, such as 2x2x2
    max_failures: int = placement(3)  # restarts of the workers without progress in between
    fallback_single_worker: bool | None = placement(None)  # workers that cannot start together: one; None: on TPUs
    preemption_check_steps: int = placement(0)
    collective_timeout_s: int = placement(1800)
    step_timeout_s: float | None = placement(None)  # a step that is busy for longer hangs; None: 900 on XLA, else never
    autoscaling: bool = placement(False)  # the cluster may grow on demand: do not check its size at the start

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UserError("workers must be >= 0", key="scaling.workers", found=self.workers, expected=">= 0")
        check_accelerator(self.accelerator, "scaling.accelerator")
        if self.step_timeout_s is not None:
            check_at_least(self, "scaling", 0, "step_timeout_s")

    @property
    def ranks(self) -> int:
        """How many processes train: the job's own where there are no workers."""
        return max(1, self.workers)


class RunSections(Protocol):
    """A run config with these sections: what the library makes of any science's."""

    @property
    def output(self) -> str | None: ...
    @property
    def data(self) -> DecodeConfig: ...
    @property
    def logging(self) -> LoggingConfig: ...
    @property
    def checkpoint(self) -> CheckpointConfig: ...
    @property
    def scaling(self) -> ScalingConfig: ...
