"""The run config of a regression: every key with its default and its checks. Plain dataclasses.

Fields made with `placement` may change when a run is resumed; all others are the run's identity. Not here: how layers
are merged (pathray.config.load), and where a run executes (`runtime`, added by the job).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pathray.config import sections
from pathray.config.checks import check_at_least, check_between, check_one_of, check_positive, check_rgb
from pathray.config.load import MISSING, placement
from pathray.config.sections import CheckpointConfig, ScalingConfig, StepConfig, StreamConfig
from pathray.errors import UserError
from pathray.train.budget import resolve_budget, resolve_cadence
from pathray.train.global_batch import choose_global_batch

CONFIGS_DIR = Path(__file__).parent / "configs"
RESNETS = ("resnet18", "resnet50")
VITS = ("vit_micro", "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge")
METRICS = ("spearman", "pearson")


@dataclass
class DataConfig(StreamConfig):
    """The table, its split and how images are read."""

    table: str = placement(MISSING)  # CSV or parquet: path, group_id, targets
    split: str = placement(MISSING)  # CSV: path, group_id, split
    genes: list[str] | None = None  # the target columns; None: y0, y1 …
    target_dim: int = 50  # number of targets
    normalize_target: bool = True  # by the training rows; reported values are in the targets' own units
    image_size: int = 224  # square images of another size are resized
    mean: list[float] | None = None  # per colour, for values in 0…1; None: as the backbone expects
    std: list[float] | None = None
    ahead_mb: int = placement(512)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "data", "target_dim", "image_size")
        check_rgb(self, "data")
        if self.genes is not None and len(self.genes) != self.target_dim:
            found = f"{len(self.genes)} genes, data.target_dim {self.target_dim}"
            raise UserError("wrong number of targets", key="data.genes", found=found, expected="equal numbers")


@dataclass
class ModelConfig:
    """The backbone below the linear head, and its initial weights."""

    backbone: str = "resnet18"  # resnet18 | resnet50 | vit_micro … vit_huge | artifact
    artifact: str | None = placement(None)  # encoder artifact (its content is identity)
    weights: str | None = placement(None)  # weights file of a named backbone (its content is identity)
    frozen: bool = False  # train the head alone; without augmentation on features that are computed once and stored
    features: str | None = placement(None)  # folder of those features; the job sets it
    patch_size: int = 16  # of a ViT
    checkpointing: bool = placement(False)

    def __post_init__(self) -> None:
        check_one_of(self, "model", backbone=(*RESNETS, *VITS, "artifact"))
        check_positive(self, "model", "patch_size")
        if (self.backbone == "artifact") != (self.artifact is not None):
            expected = "model.backbone=artifact model.artifact=FOLDER, or neither"
            raise UserError("set backbone and artifact together", key="model.artifact", expected=expected)
        if self.artifact is not None and self.weights is not None:
            raise UserError("an artifact has its own weights", key="model.weights", found=self.weights, expected="null")


@dataclass
class AugmentConfig:
    """Augmentation of training images, drawn per unit and applied on the device."""

    geometry: bool = True  # one of the eight flips and quarter turns
    stain: float = 0.05  # HED jitter: sigma of the factor and of the shift per stain; 0: off

    def __post_init__(self) -> None:
        check_between(self, "augment", 0, 1, "stain")


@dataclass
class LossConfig:
    """mse | huber | mix: (1 − w) · mse + w · (1 − r), with r Pearson's correlation over the genes of one image."""

    kind: str = "mse"
    huber_delta: float = 1.0  # in (normalised) target units
    pearson_weight: float = 0.5

    def __post_init__(self) -> None:
        check_one_of(self, "loss", kind=("mse", "huber", "mix"))
        check_positive(self, "loss", "huber_delta")
        check_between(self, "loss", 0, 1, "pearson_weight")


@dataclass
class TrainConfig(StepConfig):
    """Batch, budget and optimizer. An update uses batch_size x grad_accum_steps x workers images."""

    batch_size: int = placement(4)  # images per worker and micro-batch
    grad_accum_steps: int = placement(4)
    global_batch: int | None = None  # None: batch_size x grad_accum_steps x workers at the first start
    epochs: float = 20.0  # passes over the training rows
    images: int | None = None  # budget in images, instead of epochs
    lr: float = 3e-4
    weight_decay: float = 1e-4
    scheduler: str = "cosine"  # cosine | step (a tenth after each third) | none
    warmup: float = 0.0  # fraction of the steps, for cosine
    clip_grad: float | None = None
    amp: str = "bf16"  # on accelerators: none | bf16 | fp16; a CPU computes in float32

    def __post_init__(self) -> None:
        check_positive(self, "train", "batch_size", "grad_accum_steps", "global_batch", "epochs", "images", "lr")
        check_positive(self, "train", "clip_grad")
        check_at_least(self, "train", 0, "weight_decay")
        check_between(self, "train", 0, 0.99, "warmup")
        check_one_of(self, "train", scheduler=("cosine", "step", "none"), amp=("none", "bf16", "fp16"))
        self.check_steps("train")


@dataclass
class EvalConfig:
    """Validation during training, and how the best state is selected."""

    primary: str = "spearman"
    secondary: str = "pearson"
    samplewise: bool = False  # also report the correlations over the genes of each image
    every: Any = field(default_factory=lambda: {"epochs": 1})
    patience: int | None = None  # stop after this many validations without a better primary metric; None: never
    batch_size: int = 32
    resamples: int = 2000
    baselines: bool = True  # also fit ridge on colours, and on features of the initial backbone
    probes: dict[str, str] = field(default_factory=dict)  # name: encoder artifact; also fit ridge on its features

    def __post_init__(self) -> None:
        if taken := sorted({"colour", "initial"} & set(self.probes)):
            raise UserError("a baseline has this name", key="eval.probes", found=taken, expected="another name")
        check_one_of(self, "eval", primary=METRICS, secondary=METRICS)
        check_positive(self, "eval", "patience", "batch_size", "resamples")
        resolve_cadence(self.every, global_batch=1, epoch_images=1, key="eval.every")


LOG_EVERY = 256  # images


@dataclass
class LoggingConfig(sections.LoggingConfig):
    run_name: str | None = None  # None: <backbone>__bs<batch>x<accum>x<world>__lr<lr>__seed<seed>__<timestamp>
    write_tag: str = "regression"
    experiment: str = "regression"
    log_every: int | None = None  # images; None: a fiftieth of the budget, at most 256 images

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "logging", "log_every")
        if (name := self.run_name) is not None and (not name or "/" in name):
            raise UserError("not a valid folder name", key="logging.run_name", found=name)


@dataclass
class RunConfig:
    """One training run. `output` is the folder (or URL) that its own folder is created in."""

    output: str | None = placement(None)
    seed: int = 42
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = placement(default_factory=EvalConfig)
    logging: LoggingConfig = placement(default_factory=LoggingConfig)
    checkpoint: CheckpointConfig = placement(default_factory=CheckpointConfig)
    scaling: ScalingConfig = placement(default_factory=ScalingConfig)

    def __post_init__(self) -> None:
        if self.loss.kind == "mix" and self.data.target_dim < 2:
            found = f"data.target_dim {self.data.target_dim}"
            raise UserError("mix needs two or more genes", key="loss.kind", found=found, expected="mse or huber")
        if self.model.backbone in VITS and self.data.image_size % self.model.patch_size:
            found = f"{self.data.image_size} pixels in patches of {self.model.patch_size}"
            raise UserError("an image must be whole patches", key="data.image_size", found=found)


C = TypeVar("C", bound=RunConfig)


def resolve(config: C, workers: int, rows: int, before: int | None = None) -> C:
    """`config` with the global batch and the budget (in images) filled in; `rows` is the number of training rows,
    `before` the batch of the resumed run. UserError when workers x batch_size does not divide it."""
    train = config.train
    batch = choose_global_batch(
        train.global_batch,
        before,
        train.batch_size * train.grad_accum_steps * workers,
        workers,
        key="train.global_batch",
        micro=train.batch_size,
        micro_key="train.batch_size",
    )
    budget = train.images or {"epochs": train.epochs}
    images = resolve_budget(budget, global_batch=batch, epoch_images=rows, key="train.epochs")
    accum = batch // (workers * train.batch_size)
    return replace(config, train=replace(train, global_batch=batch, grad_accum_steps=accum, images=images))


def run_name(config: RunConfig, workers: int, timestamp: str) -> str:
    """The folder of a run: the configured name, or one made of its main settings."""
    train = config.train
    batch = f"bs{train.batch_size}x{train.grad_accum_steps}x{workers}"
    own = f"{config.model.backbone}__{batch}__lr{train.lr:g}__seed{config.seed}__{timestamp}"
    return config.logging.run_name or own
