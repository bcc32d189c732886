"""The config of what is done with a pretrained encoder: probes, fine-tuning, a sweep over the checkpoints of a run.

Fields made with `placement` may change when a fine-tuning is resumed; all others are its identity. Not here: what the
options do (the other modules of this package), and where it executes (`runtime`, added by the job).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from oct.sections import AugmentConfig
from pathray.config import sections
from pathray.config.checks import check_at_least, check_between, check_one_of, check_positive
from pathray.config.load import MISSING, placement
from pathray.config.sections import CheckpointConfig, ScalingConfig, StepConfig, StreamConfig
from pathray.errors import UserError
from pathray.train.budget import resolve_budget, resolve_cadence
from pathray.train.global_batch import choose_global_batch

KINDS = ("probe", "finetune", "sweep")
TASKS = ("classification", "regression")
SELECTED_BY = {"classification": ("balanced_accuracy", "max"), "regression": ("r2", "max")}


@dataclass
class LabelledData(StreamConfig):
    """Volumes, their labels, and who is tested."""

    index: str = placement(MISSING)  # what ray_jobs.index_oct wrote
    labels: str = placement(MISSING)  # CSV, TSV or parquet: path or person_id, and the label
    label: str = "label"  # the column
    task: str = "classification"  # | regression: of a number
    gcs_root: str | None = placement(None)  # folder or URL of the volumes, if they moved since they were indexed
    split_file: str | None = placement(None)  # of index_oct: train, val and test persons; None: folds
    folds: int = 5  # by person, every one tested once
    fold: int | None = placement(None)  # fine-tune this one alone, from 0
    seed: int = 0
    cache_dir: str | None = placement(None)  # of remote files; None: the environment's DATA_CACHE_DIR, else no cache
    cache_gb: float = placement(50.0)
    read_timeout_s: float = placement(300.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of(self, "data", task=TASKS)
        check_at_least(self, "data", 0, "cache_gb", "seed")
        check_at_least(self, "data", 2, "folds")
        if self.fold is not None and not 0 <= self.fold < self.folds:
            expected = f"0 to {self.folds - 1}, or null for all"
            raise UserError("no such fold", key="data.fold", found=self.fold, expected=expected)


@dataclass
class ModelConfig:
    """The encoder, and the head that is trained on it."""

    encoder: str | None = placement(None)  # artifact folder, such as RUN/encoder (its content is identity)
    run: str | None = placement(None)  # pretraining whose checkpoints are swept
    weights: str = "pretrained"  # | random: the encoder's architecture and inputs, weights of the seed
    head: str = "mean"  # of a fine-tuning: linear on the mean token | attentive
    heads: int = 0  # of attention in an attentive head; 0: one per 64 dimensions
    drop_path: float = 0.0  # rate of the encoder's last block, for a fine-tuning
    checkpointing: bool = placement(False)

    def __post_init__(self) -> None:
        check_one_of(self, "model", weights=("pretrained", "random"), head=("mean", "attentive"))
        check_at_least(self, "model", 0, "heads")
        check_between(self, "model", 0, 0.999, "drop_path")


@dataclass
class ProbeConfig:
    """Probes of a frozen encoder."""

    baseline: bool = True  # also probe the same network with random weights, and compare by person
    attentive: bool = True  # also fit one query's attention over all tokens
    pool: list[int] = field(default_factory=lambda: [1, 1, 1])  # tokens averaged per axis before that attention
    inner_folds: int = 5  # by person, within the training persons: the strength of the linear probe
    epochs: int = 20  # of the attentive probe, and
    min_steps: int = 200  # of its optimizer, where there are few labels
    batch: int = 16
    lrs: list[float] = field(default_factory=lambda: [1e-3, 3e-4])  # the best on a fifth of the training persons
    weight_decay: float = 0.01
    resamples: int = 2000  # of persons, for the intervals
    most_gb: float = 32.0  # of tokens of all volumes in memory, for the attentive probe

    def __post_init__(self) -> None:
        check_positive(self, "probe", "epochs", "min_steps", "batch", "resamples", "most_gb")
        check_at_least(self, "probe", 2, "inner_folds")
        check_at_least(self, "probe", 0, "weight_decay")
        if len(self.pool) != 3 or min(self.pool) < 1:
            raise UserError("one number per axis is required", key="probe.pool", found=self.pool, expected="each >= 1")
        if not self.lrs or min(self.lrs) <= 0:
            raise UserError("learning rates must be > 0", key="probe.lrs", found=self.lrs, expected="[1e-3]")


@dataclass
class OptimizationConfig(StepConfig):
    """Budget, batch and optimizer of a fine-tuning."""

    epochs: float = 20.0  # passes over the training volumes
    total_images: int | None = None  # instead of epochs
    batch_size_per_gpu: int = placement(2)
    global_batch: int | None = None  # None: batch_size_per_gpu x workers at the first start
    lr: float = 1e-4  # of the head
    layer_decay: float = 0.75  # of the learning rate from each block to the one below; 1: none
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.05
    clip_grad: float | None = 1.0
    precision: str = "bf16"  # on accelerators: fp32 | bf16 | fp16

    def __post_init__(self) -> None:
        check_positive(self, "optimization", "epochs", "total_images", "batch_size_per_gpu", "global_batch", "lr")
        check_positive(self, "optimization", "clip_grad", "layer_decay")
        check_between(self, "optimization", 0, 1, "layer_decay")
        check_between(self, "optimization", 0, 0.99, "warmup")
        check_at_least(self, "optimization", 0, "weight_decay")
        check_one_of(self, "optimization", precision=("fp32", "bf16", "fp16"))
        self.check_steps("optimization")


@dataclass
class EvalConfig:
    """Validation while fine-tuning, by which the best state is chosen."""

    every: Any = field(default_factory=lambda: {"epochs": 1})
    patience: int | None = None  # validations without a better score that end the run; None: never

    def __post_init__(self) -> None:
        check_positive(self, "eval", "patience")
        resolve_cadence(self.every, global_batch=1, epoch_images=1, key="eval.every")


@dataclass
class LoggingConfig(sections.LoggingConfig):
    write_tag: str = "oct_finetune"
    experiment: str = "oct_finetune"
    log_every: int | None = None  # images; None: a fiftieth of the budget

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "logging", "log_every")


@dataclass
class DownstreamConfig:
    """One job. `output` is the folder (or URL) of everything that it writes."""

    output: str | None = placement(None)
    kind: str = "probe"  # | finetune | sweep
    data: LabelledData = field(default_factory=LabelledData)
    model: ModelConfig = field(default_factory=ModelConfig)
    probe: ProbeConfig = placement(default_factory=ProbeConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    logging: LoggingConfig = placement(default_factory=LoggingConfig)
    checkpoint: CheckpointConfig = placement(default_factory=CheckpointConfig)
    scaling: ScalingConfig = placement(default_factory=ScalingConfig)

    def __post_init__(self) -> None:
        check_one_of(self, "", kind=KINDS)


C = TypeVar("C", bound=DownstreamConfig)


def resolve(config: C, workers: int, rows: int, before: int | None = None) -> C:
    """`config` with the global batch and the budget in images, for `rows` training volumes; `before` is the global
    batch of the resumed run. UserError when workers x batch_size_per_gpu does not divide it."""
    settings = config.optimization
    batch = choose_global_batch(
        settings.global_batch, before, settings.batch_size_per_gpu * workers, workers,
        key="optimization.global_batch", micro=settings.batch_size_per_gpu, micro_key="optimization.batch_size_per_gpu",
    )  # fmt: skip
    asked = settings.total_images or {"epochs": settings.epochs}
    images = resolve_budget(asked, global_batch=batch, epoch_images=rows, key="optimization.epochs")
    return replace(config, optimization=replace(settings, global_batch=batch, total_images=images))
