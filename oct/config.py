"""The run config of OCT pretraining: the optimizer, what ends and judges a run, and the run as a whole.

Fields made with `placement` may change when a run is resumed; all others are the run's identity. Not here: what is read
and what the model is (oct.sections), how layers are merged (pathray.config.load), and where a run executes (`runtime`,
added by the job).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from oct.sections import AugmentConfig, DataConfig, MaskConfig, ModelConfig
from pathray.config import sections
from pathray.config.checks import check_at_least, check_one_of, check_positive
from pathray.config.load import placement
from pathray.config.sections import CheckpointConfig, ScalingConfig, StepConfig
from pathray.errors import UserError
from pathray.evaluation.settings import TuningConfig
from pathray.train.budget import resolve_budget, resolve_cadence
from pathray.train.global_batch import check_whole_batch, choose_global_batch

__all__ = ["AugmentConfig", "DataConfig", "MaskConfig", "ModelConfig", "OptimizationConfig", "RunConfig", "resolve"]
CONFIGS_DIR = Path(__file__).parent / "configs"
LOG_EVERY = {"iterations": 50}


@dataclass
class OptimizationConfig(StepConfig):
    """The budget, the batch, the optimizer and its schedules."""

    total_epochs: float = 120  # passes over the training volumes
    total_images: int | None = None  # instead of total_epochs
    batch_size_per_gpu: int = placement(2)  # of one process at once; a step accumulates up to the global batch
    global_batch: int | None = None  # None: batch_size_per_gpu x workers at the first start
    micro_batch: int | None = placement(None)  # None: batch_size_per_gpu
    lr: float = 1.5e-3  # chosen for a global batch of 128; not scaled to others
    start_lr: float = 1e-5
    final_lr: float = 1e-6  # at the end of the cosine
    warmup: Any = None  # images, {epochs: n} or {iterations: n}; None: 10 epochs, at most a tenth of the run
    weight_decay: float = 0.05  # not for biases, norms, tokens and positions
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    clip_grad: float | None = None
    ema: list[float] = field(default_factory=lambda: [0.996, 1.0])  # a cosine from the first to the last step
    precision: str = "bf16"  # on accelerators: fp32 | bf16 | fp16; a CPU computes in float32

    def __post_init__(self) -> None:
        low, high = self.ema if len(self.ema) == 2 else (1.0, 0.0)
        if not 0 <= low <= high <= 1:
            expected = "[first, last] with 0 <= first <= last <= 1"
            raise UserError("EMA momentum must rise", key="optimization.ema", found=self.ema, expected=expected)
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise UserError("AdamW needs two betas in [0, 1)", key="optimization.betas", found=self.betas)
        check_positive(self, "optimization", "total_epochs", "total_images", "batch_size_per_gpu", "global_batch")
        check_positive(self, "optimization", "micro_batch", "clip_grad")
        check_at_least(self, "optimization", 0, "lr", "start_lr", "final_lr", "weight_decay")
        check_one_of(self, "optimization", precision=("fp32", "bf16", "fp16"))
        self.check_steps("optimization")
        resolve_cadence(self.warmup, global_batch=1, epoch_images=1, key="optimization.warmup")


@dataclass
class CollapseConfig:
    """When features have collapsed: each log line has a standard deviation and a RankMe of the newest targets."""

    stop: bool = True  # end the run after `lines` such log lines in a row; otherwise they are only logged
    lines: int = 5
    min_std: float = 0.01  # of the targets, per dimension; layer-normed, so a healthy one is near 0.5
    min_rank: float = 2.0  # of the targets; 1 is a point

    def __post_init__(self) -> None:
        check_positive(self, "collapse", "lines")
        check_at_least(self, "collapse", 0, "min_std", "min_rank")


@dataclass
class ValidationConfig:
    """The loss on held-out volumes, without augmentation and with masks that are always the same."""

    split: str = "val"
    volumes: int = 32  # at most, the same each time; 0: no validation
    every: Any = None  # images, {epochs: n} or {iterations: n}; None: once an epoch

    def __post_init__(self) -> None:
        check_at_least(self, "validation", 0, "volumes")
        resolve_cadence(self.every, global_batch=1, epoch_images=1, key="validation.every")


@dataclass
class LoggingConfig(sections.LoggingConfig):
    write_tag: str = "oct"
    experiment: str = "oct"
    log_every: Any = None  # images or {iterations: n}; None: a fiftieth of the budget, at most 50 iterations
    save_every: Any = None  # between snapshots, like log_every; None: 10 epochs; tuning.tune_every replaces it

    def __post_init__(self) -> None:
        key = "logging.log_every"
        if self.log_every is not None and resolve_cadence(self.log_every, global_batch=1, key=key) == 0:
            raise UserError("log_every must be > 0", key=key, found=self.log_every, expected="> 0, or null")
        resolve_cadence(self.save_every, global_batch=1, epoch_images=1, key="logging.save_every")
        super().__post_init__()


@dataclass
class RunConfig:
    """One pretraining run. `output` is the folder (or URL) of everything that the run writes."""

    output: str | None = placement(None)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    collapse: CollapseConfig = placement(default_factory=CollapseConfig)
    validation: ValidationConfig = placement(default_factory=ValidationConfig)
    logging: LoggingConfig = placement(default_factory=LoggingConfig)
    tuning: TuningConfig = placement(default_factory=TuningConfig)
    checkpoint: CheckpointConfig = placement(default_factory=CheckpointConfig)
    scaling: ScalingConfig = placement(default_factory=ScalingConfig)

    def __post_init__(self) -> None:
        size, patch, data = self.data.image_size, self.model.patch_size, self.data
        sizes = {"image_size": size} | ({"smaller_image": data.smaller_image} if data.allow_smaller_image else {})
        for key, own in sizes.items():
            if any(s % p for s, p in zip(own, patch, strict=True)):
                expected = f"multiples of model.patch_size = {patch}"
                raise UserError("a volume must be whole patches", key=f"data.{key}", found=own, expected=expected)
        if math.prod(self.tokens) < 4:
            raise UserError("too few tokens to hide some", key="data.image_size", found=size, expected="4 or more")

    @property
    def tokens(self) -> tuple[int, int, int]:
        """Tokens per axis."""
        d, h, w = (s // p for s, p in zip(self.data.image_size, self.model.patch_size, strict=True))
        return d, h, w


C = TypeVar("C", bound=RunConfig)


def resolve(config: C, workers: int, rows: int, before: int | None = None) -> C:
    """`config` with batch, micro-batch, budget, warm-up and cadences in images, for a plan of `rows` volumes; `before`
    is the global batch of the resumed run.

    UserError when `workers` or the micro-batch do not divide the global batch, when the warm-up is not shorter than the
    run, and when a regulariser would see a part of a batch.
    """
    settings = config.optimization
    micro = settings.micro_batch or settings.batch_size_per_gpu
    micro_key = f"optimization.{'micro_batch' if settings.micro_batch else 'batch_size_per_gpu'}"
    first, key = settings.batch_size_per_gpu * workers, "optimization.global_batch"
    batch = choose_global_batch(
        settings.global_batch, before, first, workers, key=key, micro=micro, micro_key=micro_key
    )
    if config.model.whole_batch:
        check_whole_batch(workers * micro, batch, config.model.whole_batch, micro_key, 2)
    asked, key = settings.total_images or {"epochs": settings.total_epochs}, "optimization.total_epochs"
    images = resolve_budget(asked, global_batch=batch, epoch_images=rows, key=key)
    ten = min(10 * rows, images // 10)
    cadences = ((settings.warmup, ten), (config.validation.every, rows), (config.logging.save_every, 10 * rows))
    warmup, validate, save = (
        resolve_cadence(default if value is None else value, global_batch=batch, epoch_images=rows)
        for value, default in cadences
    )
    if warmup >= images:
        found, expected = f"{warmup:,} images", f"less than the run's {images:,} images"
        raise UserError("the warm-up exceeds the run", key="optimization.warmup", found=found, expected=expected)
    return replace(
        config,
        optimization=replace(settings, global_batch=batch, micro_batch=micro, total_images=images, warmup=warmup),
        validation=replace(config.validation, every=validate),
        logging=replace(config.logging, save_every=save),
    )
