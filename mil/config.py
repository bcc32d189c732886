"""The run config of a MIL training: every key with its default and its checks. Plain dataclasses.

Fields made with `placement` may change when a run is resumed; all others are the run's identity. Not here: how layers
are merged (pathray.config.load), and where a run executes (`runtime`, added by the job).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from mil.sections import CohortConfig, CohortPlaces
from mil.target import CLASSES, ORDINAL, SURVIVAL, TASKS
from pathray.config import sections
from pathray.config.checks import check_at_least, check_between, check_one_of, check_positive
from pathray.config.load import placement
from pathray.config.sections import CheckpointConfig, ScalingConfig, StepConfig, StreamConfig
from pathray.errors import UserError
from pathray.train.budget import resolve_budget, resolve_cadence
from pathray.train.global_batch import check_whole_batch, choose_global_batch

LOSSES = ("ce", "bce", "focal")
TIES = ("efron", "breslow")
SCHEMES = ("stratified_kfold", "group_kfold", "leave_one_group_out", "holdout", "custom_holdout", "nested", "mccv")
LOWER_IS_BETTER = ("loss", "log_loss", "brier", "mae", "mae_ranks")
LOG_EVERY = 256  # slides


@dataclass
class LabelledSlides(CohortPlaces, StreamConfig):
    """The slides, what is predicted, and how bags are read."""

    label: str = "label"  # the column
    task: str = CLASSES  # | ordinal: grades | regression: a number | survival: a time and an event
    label_map: dict[str, int] | None = None  # numbers 0 … K−1 of the classes, or grades; null: sorted by name
    time: str | None = None  # the columns of survival, instead of label
    event: str | None = None  # 1 observed, 0 censored
    max_instances: int | None = None  # tiles of a slide that are drawn at each step; null: all
    sampling: str = "uniform"  # | balanced: every class gets an equal share of the steps
    max_left_out_fraction: float = 0.05  # of the labelled slides: not in the store
    ahead: int = placement(8)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of(self, "data", task=TASKS, sampling=("uniform", "balanced"))
        check_positive(self, "data", "max_instances")
        check_between(self, "data", 0, 1, "max_left_out_fraction")
        if self.sampling == "balanced" and self.task not in (CLASSES, ORDINAL):
            expected = "data.sampling=uniform, or data.task=classification"
            raise UserError("only classes can be balanced", key="data.sampling", found=self.task, expected=expected)


@dataclass
class ModelConfig:
    """The aggregator; `arguments` are those of its class in mil/aggregators."""

    name: str = "abmil"
    arguments: dict[str, Any] = field(default_factory=dict)
    checkpointing: bool = placement(False)


@dataclass
class SplitsConfig:
    """Who trains, validates and tests: by folds of whole patients, or by files that make_splits wrote."""

    scheme: str = "stratified_kfold"  # | group_kfold | leave_one_group_out | holdout | custom_holdout | nested | mccv
    folds: int = 5  # of a k-fold; outer folds of nested
    inner_folds: int = 4  # of nested: the patients that an outer fold does not test are divided into these
    repeats: int = 10  # of mccv
    seed: int = 42
    fractions: list[float] = field(default_factory=lambda: [0.7, 0.15, 0.15])  # of holdout, mccv: train, val, test
    filter: str | None = None  # of custom_holdout: the rows of data.csv that test, such as site == "B"
    allow_duplicates: bool = placement(False)  # although a bag is in two parts under two patients
    folder: str | None = placement(None)  # splits that make_splits wrote; or one file; null: made from the keys above

    def __post_init__(self) -> None:
        check_one_of(self, "splits", scheme=self.schemes())
        check_at_least(self, "splits", 3 if self.scheme != "nested" else 2, "folds")
        check_at_least(self, "splits", 2, "inner_folds")
        check_at_least(self, "splits", 1, "repeats")
        if len(self.fractions) != 3:
            message, expected = "fractions must have three values", "[train, val, test]"
            raise UserError(message, key="splits.fractions", found=self.fractions, expected=expected)
        if bool(self.filter) != (self.scheme == "custom_holdout") and not self.folder:
            expected = "a filter with splits.scheme=custom_holdout, and none with another scheme"
            raise UserError(
                "a filter belongs to custom_holdout", key="splits.filter", found=self.filter, expected=expected
            )

    def schemes(self) -> tuple[str, ...]:
        return SCHEMES


@dataclass
class LossConfig:
    kind: str = "ce"  # of classes | bce (two of them) | focal
    smoothing: float = 0.0  # of ce
    class_weights: str = "none"  # | inverse: by the training slides of each class
    focal_gamma: float = 2.0
    auxiliary: float = 1.0  # weight of a model's own loss (CLAM, DTFD), where it has one
    ties: str = "efron"  # of survival times | breslow

    def __post_init__(self) -> None:
        check_one_of(self, "training.loss", kind=LOSSES, class_weights=("none", "inverse"), ties=TIES)
        check_between(self, "training.loss", 0, 0.999, "smoothing")
        check_at_least(self, "training.loss", 0, "focal_gamma", "auxiliary")


@dataclass
class TrainingConfig(StepConfig):
    """Budget, batch, optimizer and loss."""

    max_epochs: float = 60.0  # passes over the training slides
    slides: int | None = None  # budget in slides, instead of epochs
    batch_size_per_gpu: int = placement(1)
    global_batch: int | None = None  # null: batch_size_per_gpu x workers at the first start
    lr: float = 1e-4
    weight_decay: float = 5e-3
    warmup: float = 0.05  # share of the steps
    clip_grad: float | None = 1.0
    precision: str = "bf16"  # on accelerators: fp32 | bf16 | fp16
    seed: int = 0
    loss: LossConfig = field(default_factory=LossConfig)
    aggregator_weights_path: str | None = placement(None)  # artifact or weights file (its content is identity)
    freeze_aggregator: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "training", "max_epochs", "slides", "batch_size_per_gpu", "global_batch", "lr")
        check_positive(self, "training", "clip_grad")
        check_at_least(self, "training", 0, "weight_decay", "seed")
        check_between(self, "training", 0, 0.99, "warmup")
        check_one_of(self, "training", precision=("fp32", "bf16", "fp16"))
        self.check_steps("training")


@dataclass
class EvalConfig:
    """Validation during training, by which the best state is chosen; and intervals at the end."""

    primary: str | None = None  # metric of the validation slides; null: loss
    every: Any = field(default_factory=lambda: {"epochs": 1})
    patience: int | None = 10  # validations without a better value that end the run; null: never
    min_evals: int = 10
    resamples: int = placement(2000)  # of patients, for the intervals

    def __post_init__(self) -> None:
        check_positive(self, "eval", "patience", "min_evals", "resamples")
        resolve_cadence(self.every, global_batch=1, epoch_images=1, key="eval.every")


@dataclass
class LoggingConfig(sections.LoggingConfig):
    write_tag: str = "mil"
    experiment: str = "mil"
    log_every: int | None = None  # slides; null: a fiftieth of the budget, at most 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "logging", "log_every")


@dataclass
class RunConfig(CohortConfig):
    """One training, of one split or of all folds. `output` is the folder (or URL) of everything that it writes."""

    output: str | None = placement(None)
    data: LabelledSlides = field(default_factory=LabelledSlides)
    model: ModelConfig = field(default_factory=ModelConfig)
    splits: SplitsConfig = field(default_factory=SplitsConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    logging: LoggingConfig = placement(default_factory=LoggingConfig)
    checkpoint: CheckpointConfig = placement(default_factory=CheckpointConfig)
    scaling: ScalingConfig = placement(default_factory=ScalingConfig)

    def __post_init__(self) -> None:
        """UserError for settings of a loss of classes beside another task: they would do nothing."""
        given, plain = self.training.loss, LossConfig()
        for key in ("kind", "smoothing", "class_weights") if self.data.task != CLASSES else ():
            if (found := getattr(given, key)) != getattr(plain, key):
                message, expected = f"this is of classes alone, not of {self.data.task}", "nothing for it"
                raise UserError(message, key=f"training.loss.{key}", found=found, expected=expected)


C = TypeVar("C", bound=RunConfig)


def resolve(config: C, workers: int, rows: int, before: int | None = None) -> C:
    """`config` with the global batch and the budget in slides, for `rows` training slides; `before` is the global batch
    of the resumed run. UserError when workers x batch_size_per_gpu does not divide it, or, in survival, is not it."""
    settings = config.training
    batch = choose_global_batch(
        settings.global_batch, before, settings.batch_size_per_gpu * workers, workers,
        key="training.global_batch", micro=settings.batch_size_per_gpu, micro_key="training.batch_size_per_gpu",
    )  # fmt: skip
    if config.data.task == SURVIVAL:
        rows_at_once = settings.batch_size_per_gpu * workers
        check_whole_batch(rows_at_once, batch, "the Cox loss", "training.batch_size_per_gpu", least=2)
    asked = settings.slides or {"epochs": settings.max_epochs}
    slides = resolve_budget(asked, global_batch=batch, epoch_images=rows, key="training.max_epochs")
    return replace(config, training=replace(settings, global_batch=batch, slides=slides))
