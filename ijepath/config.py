"""The run config of I-JEPATH: every key with its default and its checks. Plain dataclasses.

`profile=name` merges a profile into `data`, which therefore has the profile's fields. Fields made with `placement` may
change when a run is resumed; all others are the run's identity. Not here: how layers are merged (pathray.config.load),
what the options do (ijepath.scales, ijepath.augment), tuning (read by the evaluators), and where a run executes
(`runtime`, added by the job).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ijepath.profile import Profile, name_by_geometry
from pathray.config import sections
from pathray.config.checks import (
    check_at_least,
    check_between,
    check_one_of,
    check_ordered,
    check_positive,
    check_range,
    check_rgb,
)
from pathray.config.load import MISSING, Group, is_set, placement
from pathray.config.sections import CheckpointConfig, DecodeConfig, RegulariserConfig, ScalingConfig, StepConfig
from pathray.errors import UserError
from pathray.evaluation.settings import TuningConfig
from pathray.train.budget import resolve_budget, resolve_cadence
from pathray.train.global_batch import check_whole_batch, choose_global_batch

CONFIGS_DIR = Path(__file__).parent / "configs"
GROUPS = (Group("profile", "data", name_by_geometry),)
MODELS = ("vit_micro", "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge")
STRATEGIES = ("stratified_weighted", "global_uniform")
POLICIES = ("skip_anchor", "skip_slide", "lower_threshold")
CONTEXT_MASKS = ("all", "block", "random")


@dataclass
class DataConfig(DecodeConfig, Profile):
    """What is read, how often and how. The geometry keys come from the profile."""

    slide_manifest_csv: str | None = placement(None)
    slide_metadata_parquet: str | None = placement(None)
    anchor_catalog_manifest: str | None = placement(None)
    batch_size_per_gpu: int = placement(32)  # x workers = the global batch at the first start; see resolve_global_batch
    sampling_strategy: str = "stratified_weighted"
    sampling_stratum_key: str = "organ"
    sampling_stratum_weights: Any = "uniform"  # uniform | proportional | {stratum: share}
    slide_window: int = 0  # > 0: shuffle within windows of this many anchors from few slides, for remote storage
    min_target_tissue_fraction: float = 0.25
    insufficient_target_policy: str = "skip_anchor"
    target_tissue_floor: float = 0.10
    target_tissue_step: float = 0.05
    align_targets_to_patch_grid: bool = False
    max_target_overlap: float = 0.25  # of one target's area
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    low_anchor_pass_warning_threshold: float = placement(1.0)
    high_anchor_pass_warning_threshold: float = placement(5.0)
    anchor_stream_batch_size: int = placement(2048)
    read_timeout_s: float = placement(120.0)
    max_open_slides: int = placement(32)
    tile_cache_mb: int = placement(256)
    tissue_cache_mb: int = placement(64)

    def __post_init__(self) -> None:
        self.validate()
        super().__post_init__()
        check_one_of(self, "data", sampling_strategy=STRATEGIES, insufficient_target_policy=POLICIES)
        check_between(self, "data", 0, 1, "min_target_tissue_fraction", "target_tissue_floor", "max_target_overlap")
        check_positive(self, "data", "batch_size_per_gpu", "anchor_stream_batch_size", "target_tissue_step")
        check_positive(self, "data", "max_open_slides", "tile_cache_mb", "tissue_cache_mb")
        check_at_least(self, "data", 0, "slide_window", "low_anchor_pass_warning_threshold")
        check_ordered(self, "data", "low_anchor_pass_warning_threshold", "high_anchor_pass_warning_threshold")
        check_ordered(self, "data", "target_tissue_floor", "min_target_tissue_fraction")
        check_rgb(self, "data")
        weights = self.sampling_stratum_weights
        if not isinstance(weights, dict) and weights not in ("uniform", "proportional"):
            expected = "uniform, proportional or a map of stratum: share"
            key = "data.sampling_stratum_weights"
            raise UserError("unknown stratum weights", key=key, found=weights, expected=expected)


@dataclass
class ModelConfig(RegulariserConfig):
    """Encoder, predictor and loss. The patch size is the profile's, `data.patch_size`."""

    name: str = "vit_small"
    pred_depth: int = 6
    pred_emb_dim: int = 192
    pred_heads: int = 0  # 0: one head per 64 dimensions, at least 3
    predict: str = "joint"  # joint: all targets of a context in one pass | separate: one pass each, as in the paper
    loss: str = "pooled"  # pooled: compare token means | tokens: compare every teacher token
    positions: str = "sincos"
    registers: int = 0
    mlp: str = "gelu"
    drop_path: float = 0.0
    layer_scale: float | None = None
    qk_norm: bool = False
    use_bfloat16: bool = True  # on accelerators; a CPU computes in float32
    checkpointing: bool = placement(False)

    def __post_init__(self) -> None:
        check_one_of(self, "model", name=MODELS, loss=("pooled", "tokens"), predict=("joint", "separate"))
        check_one_of(self, "model", positions=("sincos", "learned", "rope"), mlp=("gelu", "swiglu"))
        check_positive(self, "model", "pred_depth", "pred_emb_dim")
        check_at_least(self, "model", 0, "registers", "pred_heads")
        self.check_regulariser("model")
        check_between(self, "model", 0, 0.999, "drop_path")
        if self.pred_emb_dim % (2 * self.predictor_heads):
            found = f"{self.pred_emb_dim} / {self.predictor_heads}"
            message = "pred_emb_dim / heads must be an even whole number"
            raise UserError(message, key="model.pred_heads", found=found)

    @property
    def predictor_heads(self) -> int:
        return self.pred_heads or max(3, self.pred_emb_dim // 64)


@dataclass
class MaskConfig:
    """Which context tokens the encoder sees, and how many. None: derived from the geometry."""

    min_keep: int = 16
    context: str = "all"  # block: one square block of `context_scale` of the area | random: this share of the tokens
    context_scale: float = 1.0
    guard_tokens: int = 0  # width of an extra hidden band around each target, in tokens
    context_keep_tokens: int | None = None
    predict_tokens: int | None = None
    outside_targets: int = 0  # how many targets of each context are in a ring just outside it
    outside_ring_um: float = 32.0  # largest gap between such a target and the context's edge

    def __post_init__(self) -> None:
        check_one_of(self, "mask", context=CONTEXT_MASKS)
        check_positive(self, "mask", "min_keep", "context_scale")
        check_between(self, "mask", 0, 1, "context_scale")
        check_at_least(self, "mask", 0, "guard_tokens", "outside_targets", "outside_ring_um")
        check_positive(self, "mask", "context_keep_tokens", "predict_tokens")
        if self.context == "all" and self.context_scale != 1.0:
            key, expected = "mask.context_scale", "1, or mask.context=block or random"
            raise UserError("no context mask to scale", key=key, found=self.context_scale, expected=expected)


@dataclass
class ScalesConfig:
    """Spacings and target shapes in addition to the profile's own. With the defaults there are none."""

    same_resolution_ratio: float = 0.0  # share of the steps that read the context at the targets' spacing
    reverse_ratio: float = 0.0  # share of the steps with a fine context and coarse targets
    factors: list[float] = field(
        default_factory=lambda: [1.0]
    )  # multiplies both spacings by one of these, drawn from those that the slide has
    target_shapes: int = 1  # number of target shapes; one is drawn per step
    target_scale: list[float] = field(default_factory=lambda: [1.0, 1.0])  # factor on the area, [low, high]
    target_aspect: list[float] = field(default_factory=lambda: [1.0, 1.0])  # height / width, [low, high]

    def __post_init__(self) -> None:
        check_between(self, "scales", 0, 1, "same_resolution_ratio", "reverse_ratio")
        check_positive(self, "scales", "target_shapes")
        if self.same_resolution_ratio + self.reverse_ratio > 1:
            found = self.same_resolution_ratio + self.reverse_ratio
            raise UserError("the sum of both ratios must be at most 1", key="scales.reverse_ratio", found=found)
        if not self.factors or min(self.factors) <= 0:
            raise UserError("scale factors must be > 0", key="scales.factors", found=self.factors)
        check_range(self, "scales", "target_scale", "target_aspect")


@dataclass
class AugmentConfig:
    """Augmentation against stain and scanner shortcuts; a strength of 0 is off. See ijepath.augment."""

    stain: float = 0.0  # HED jitter: sigma of the factor and of the shift per stain
    scanner: float = 0.0  # gain per colour, gamma, blur or sharpening
    independent: bool = True  # draw for context and targets separately, so that stain does not help to predict
    normalise_brightness: bool = False
    brightness_reference: float = 0.7  # mean optical density of tissue after normalisation
    normalise_frequency: float = 0.0  # exponent of the correction towards the reference spectrum, 1 = full

    def __post_init__(self) -> None:
        check_between(self, "augment", 0, 1, "stain", "scanner", "normalise_frequency")
        check_positive(self, "augment", "brightness_reference")


@dataclass
class SiteConfig:
    """Site-adversarial head: a classifier of the site behind a gradient reversal on the context's mean feature."""

    adversarial: bool = False
    key: str = "site"  # metadata column of the manifest
    weight: float = 0.1
    hidden: int = 128

    def __post_init__(self) -> None:
        check_at_least(self, "site", 0, "weight")
        check_positive(self, "site", "hidden")


@dataclass
class OptimizationConfig(StepConfig):
    """The budget in images, the optimizer, the schedules over steps = ceil(budget / global batch)."""

    total_images_budget: Any = MISSING  # images, or {epochs: n} (passes over the anchors), or {iterations: n}
    global_batch: int | None = None  # None: data.batch_size_per_gpu x workers at the first start
    micro_batch: int | None = placement(None)  # None: a worker's whole share of a step
    ema: list[float] = field(default_factory=lambda: [0.996, 1.0])
    lr: float = 2e-4
    start_lr: float = 2e-5
    final_lr: float = 1e-6
    warmup: float = 0.1  # fraction of the steps
    weight_decay: float = 0.04
    final_weight_decay: float = 0.1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    clip_grad: float | None = None

    def __post_init__(self) -> None:
        low, high = self.ema if len(self.ema) == 2 else (1.0, 0.0)
        if not 0 <= low <= high <= 1:
            expected = "[first, last] with 0 <= first <= last <= 1"
            raise UserError("EMA momentum must rise", key="optimization.ema", found=self.ema, expected=expected)
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise UserError("AdamW needs two betas in [0, 1)", key="optimization.betas", found=self.betas)
        check_at_least(self, "optimization", 0, "lr", "start_lr", "final_lr", "weight_decay", "final_weight_decay")
        check_between(self, "optimization", 0, 0.99, "warmup")
        self.check_steps("optimization")
        check_positive(self, "optimization", "global_batch", "micro_batch", "clip_grad")
        if is_set(self.total_images_budget):
            value, key = self.total_images_budget, "optimization.total_images_budget"
            resolve_budget(value, global_batch=1, epoch_images=1, key=key)
            self.total_images_budget = int(value) if isinstance(value, float) else value


LOG_EVERY = 100_000  # images


@dataclass
class TrainingConfig:
    """How often to log and to save, in images."""

    log_every: int | None = None  # None: a fiftieth of the budget, at most 100,000 images
    save_every: int = 1_000_000  # images between snapshots; tuning.tune_every replaces it when tuning is on

    def __post_init__(self) -> None:
        check_positive(self, "training", "log_every", "save_every")


@dataclass
class PerformanceDebug:
    enable: bool = False
    log_every_images: int = 2048
    slow_step_ms: float = 250.0
    slow_data_wait_ms: float = 50.0


@dataclass
class LoggingConfig(sections.LoggingConfig):
    write_tag: str = "ijepath"
    experiment: str = "ijepath"
    step_log_every_images: Any = 0  # images, or a fraction of the budget between 0 and 1; 0: off
    performance_debug: PerformanceDebug = field(default_factory=PerformanceDebug)

    def __post_init__(self) -> None:
        key = "logging.step_log_every_images"
        resolve_cadence(self.step_log_every_images, global_batch=1, total_images=1, fractions=True, key=key)
        super().__post_init__()


@dataclass
class RunConfig:
    """One pretraining run. `output` is the folder (or URL) of everything that the run writes."""

    output: str | None = placement(None)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    scales: ScalesConfig = field(default_factory=ScalesConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    site: SiteConfig = field(default_factory=SiteConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    training: TrainingConfig = placement(default_factory=TrainingConfig)
    logging: LoggingConfig = placement(default_factory=LoggingConfig)
    tuning: TuningConfig = placement(default_factory=TuningConfig)
    checkpoint: CheckpointConfig = placement(default_factory=CheckpointConfig)
    scaling: ScalingConfig = placement(default_factory=ScalingConfig)

    def __post_init__(self) -> None:
        if self.mask.outside_targets > self.data.targets_per_context:
            expected = f"at most data.targets_per_context = {self.data.targets_per_context}"
            key = "mask.outside_targets"
            raise UserError("too many outside targets", key=key, found=self.mask.outside_targets, expected=expected)


C = TypeVar("C", bound=RunConfig)


def resolve_global_batch(config: C, workers: int, before: int | None = None) -> C:
    """`config` with `optimization.global_batch` filled in, part of the run's identity. `before` is its value in
    the resumed checkpoint. UserError when `workers` or the micro-batch do not divide it evenly, and when a regulariser
    would see a part of it or a single image."""
    settings = config.optimization
    batch = choose_global_batch(
        settings.global_batch,
        before,
        config.data.batch_size_per_gpu * workers,
        workers,
        key="optimization.global_batch",
        micro=settings.micro_batch,
        micro_key="optimization.micro_batch",
    )
    micro = settings.micro_batch or batch // workers
    if config.model.whole_batch:
        check_whole_batch(workers * micro, batch, config.model.whole_batch, "optimization.micro_batch", 2)
    return replace(config, optimization=replace(settings, global_batch=batch, micro_batch=micro))
