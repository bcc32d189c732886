"""The run config of ADIOS: every key with its default and its checks. Plain dataclasses.

The top-level keys are those of the published command line. Fields made with `placement` may change when a run is
resumed; all others are the run's identity. Not here: how layers are merged (pathray.config.load), and where a run
executes (`runtime`, added by the job).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pathray.config import sections
from pathray.config.checks import check_at_least, check_between, check_one_of, check_positive, check_range, check_rgb
from pathray.config.load import placement
from pathray.config.sections import CheckpointConfig, ScalingConfig, StepConfig, StreamConfig
from pathray.errors import UserError
from pathray.evaluation.settings import TuningConfig
from pathray.train.budget import resolve_cadence, whole_steps
from pathray.train.global_batch import choose_global_batch

CONFIGS_DIR = Path(__file__).parent / "configs"
ARCHS = ("vit_micro", "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge")
WARMUP = 10_000  # iterations


@dataclass
class DataConfig(StreamConfig):
    """Which patches are read and how."""

    patch_px: int = 448  # side of the patches to use; others in the archives are skipped
    image_size: int = 224  # side after resizing
    mean: list[float] = field(default_factory=lambda: [0.6816, 0.5640, 0.7232])
    std: list[float] = field(default_factory=lambda: [0.1617, 0.1714, 0.1389])
    mpp: float | None = placement(None)  # of resized patches, for feature extraction; None: unknown
    archives_root: str | None = placement(None)  # where the archives are, if moved since they were indexed
    archive_window: int = 0  # > 0: shuffle within windows of this many patches from few archives, for remote storage
    max_open_archives: int = placement(64)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "data", "patch_px", "image_size", "max_open_archives", "mpp")
        check_at_least(self, "data", 0, "archive_window")
        check_rgb(self, "data")


@dataclass
class StudentConfig:
    """Further settings of the encoder, and its head."""

    registers: int = 4
    positions: str = "learned"
    qk_norm: bool = False
    drop_path: float = 0.1  # rate at the last block
    head: list[int] = field(default_factory=lambda: [2048, 2048, 256])
    checkpointing: bool = placement(False)

    def __post_init__(self) -> None:
        check_one_of(self, "student", positions=("learned", "sincos", "rope"))
        check_at_least(self, "student", 0, "registers")
        check_between(self, "student", 0, 0.999, "drop_path")
        if not self.head or min(self.head) < 1:
            raise UserError("a head is required", key="student.head", found=self.head, expected="[widths …, outputs]")


@dataclass
class MaskModelSettings:
    """Further settings of the mask model: `channels` is for adios, the others are for vit_unet."""

    channels: int = 32
    dim: int = 192
    depth: int = 12
    heads: int = 3
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        check_positive(self, "mask_model", "channels", "dim", "depth", "heads")
        check_between(self, "mask_model", 0, 0.999, "drop_path")


@dataclass
class ViewConfig:
    """Augmentation of a view, drawn per image; a strength of 0 is off."""

    scale: list[float] = field(default_factory=lambda: [0.5, 1.0])  # share of the image's area
    geometry: bool = True  # one of the eight flips and quarter turns
    stain: float = 0.1  # HED jitter: sigma of the factor and of the shift per stain
    scanner: float = 0.5  # gain per colour, gamma, blur or sharpening

    def __post_init__(self) -> None:
        check_range(self, "views", "scale")
        check_between(self, "views", 0, 1, "stain", "scanner")
        if self.scale[1] > 1:
            raise UserError("a view exceeds its image", key="views.scale", found=self.scale, expected="at most 1")


@dataclass
class CropConfig:
    """Random crops of masked views, which the student sees in addition to whole views."""

    size: int = 96  # side in pixels
    scale: list[float] = field(default_factory=lambda: [0.4, 1.0])  # share of the image's area
    rotation: float = 180.0  # degrees, to either side

    def __post_init__(self) -> None:
        check_positive(self, "crops", "size")
        check_range(self, "crops", "scale")
        check_between(self, "crops", 0, 180, "rotation")
        if self.scale[1] > 1:
            raise UserError("a crop exceeds its image", key="crops.scale", found=self.scale, expected="at most 1")


@dataclass
class OptimizationConfig(StepConfig):
    """Settings that the published command line does not have."""

    warmup_iterations: int | None = None  # from 0, linear; None: 10,000, at most a tenth of the run
    final_lr: float = 0.0  # at the end of the cosine
    mask_lr_ratio: float = 0.25  # the mask model's rate / the student's
    weight_decay: float = 0.05  # not for biases, norms and tokens
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    momentum: float = 0.9  # of sgd
    lars_trust: float = 0.02
    lars_clip: str = "ratio"  # f = min(r, 10) | larc: min(r / lr, 1)
    clip_grad: float | None = 1.0
    precision: str = "bf16"  # on accelerators: fp32 | bf16 | fp16; a CPU computes in float32

    def __post_init__(self) -> None:
        check_at_least(self, "optimization", 0, "final_lr", "weight_decay")
        check_positive(self, "optimization", "mask_lr_ratio", "lars_trust", "clip_grad")
        check_between(self, "optimization", 0, 0.999, "momentum")
        check_one_of(self, "optimization", lars_clip=("ratio", "larc"), precision=("fp32", "bf16", "fp16"))
        self.check_steps("optimization")
        if self.warmup_iterations is not None:
            check_at_least(self, "optimization", 0, "warmup_iterations")
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise UserError("AdamW needs two betas in [0, 1)", key="optimization.betas", found=self.betas)


LOG_EVERY = {"iterations": 50}


@dataclass
class LoggingConfig(sections.LoggingConfig):
    write_tag: str = "adios"
    experiment: str = "adios"
    log_every: Any = None  # images or {iterations: n}; None: a fiftieth of the budget, at most 50 iterations

    def __post_init__(self) -> None:
        key = "logging.log_every"
        if self.log_every is not None and resolve_cadence(self.log_every, global_batch=1, key=key) == 0:
            raise UserError("log_every must be > 0", key=key, found=self.log_every, expected="> 0, or null")
        super().__post_init__()


@dataclass
class RunConfig:
    """One pretraining run. `output` is the folder (or URL) of everything that the run writes."""

    output: str | None = placement(None)
    output_dir: str | None = placement(None)  # published name of `output`
    data_path: str | None = placement(None)  # folder of zips, dataset_index.pkl, or an index (parquet)
    seed: int = 42
    arch: str = "vit_base"
    patch_size: int = 16
    embed_dim: int | None = None  # None: as in `arch`, like depth and num_heads
    depth: int | None = None
    num_heads: int | None = None
    mask_model_type: str = "vit_unet"
    num_masks: int = 3
    crops_per_mask: int = 1
    mask_update_freq: int = 1
    batch_size_per_gpu: int = placement(64)  # x workers = the global batch at the first start
    global_batch: int | None = None  # None: batch_size_per_gpu x workers at the first start
    total_iterations: int = 300_000
    total_images: int | None = None  # budget in images, instead of total_iterations
    lr: float = 5e-5
    optimizer_type: str = "adamw"
    use_lars: bool = False
    alpha_sparsity: float = 0.1
    sparsity_penalty_type: str = "inverse_sin"
    sparsity_target: float | None = None  # share of the image that one mask tends to; None: one half
    initial_temp: float = 0.2
    final_temp: float = 0.05
    single_view: bool = False  # contrast an image with its masked self instead of two views of it
    viz_freq: int = placement(500)  # iterations between pictures of masks; 0: none
    save_freq: int = placement(2000)  # iterations between snapshots; tuning.tune_every replaces it with tuning on
    data: DataConfig = field(default_factory=DataConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    mask_model: MaskModelSettings = field(default_factory=MaskModelSettings)
    views: ViewConfig = field(default_factory=ViewConfig)
    crops: CropConfig = field(default_factory=CropConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    logging: LoggingConfig = placement(default_factory=LoggingConfig)
    tuning: TuningConfig = placement(default_factory=TuningConfig)
    checkpoint: CheckpointConfig = placement(default_factory=CheckpointConfig)
    scaling: ScalingConfig = placement(default_factory=ScalingConfig)

    def __post_init__(self) -> None:
        check_one_of(self, "", arch=ARCHS, mask_model_type=("vit_unet", "adios"), optimizer_type=("adamw", "sgd"))
        check_one_of(self, "", sparsity_penalty_type=("inverse_sin", "sinh_squared"))
        check_positive(
            self, "", "patch_size", "embed_dim", "depth", "num_heads", "mask_update_freq", "batch_size_per_gpu"
        )
        check_positive(self, "", "global_batch", "total_iterations", "total_images", "lr", "initial_temp", "final_temp")
        check_at_least(self, "", 0, "crops_per_mask", "alpha_sparsity", "viz_freq", "save_freq")
        check_at_least(self, "", 2, "num_masks")
        if self.sparsity_target is not None and not 0 < self.sparsity_target < 1:
            found, expected = self.sparsity_target, "a share between 0 and 1"
            raise UserError("invalid share of an image", key="sparsity_target", found=found, expected=expected)
        for key, size in (("data.image_size", self.data.image_size), ("crops.size", self.crops.size)):
            if size % self.patch_size:
                expected = f"a multiple of patch_size = {self.patch_size}"
                raise UserError("an image must be whole patches", key=key, found=size, expected=expected)
        if self.output and self.output_dir and self.output != self.output_dir:
            given = f"output={self.output} output_dir={self.output_dir}"
            raise UserError("two output folders", key="output_dir", found=given, expected="one of the two")
        self.output = self.output or self.output_dir


C = TypeVar("C", bound=RunConfig)


def warmup_steps(config: RunConfig) -> int:
    """Steps of the warm-up. UserError when the run would end before it does."""
    given = config.optimization.warmup_iterations
    if given is None:
        return min(WARMUP, config.total_iterations // 10)
    if given >= config.total_iterations:
        found, expected = given, f"fewer than total_iterations = {config.total_iterations}"
        raise UserError(
            "the warm-up exceeds the run", key="optimization.warmup_iterations", found=found, expected=expected
        )
    return given


def resolve(config: C, workers: int, before: int | None = None) -> C:
    """`config` with `global_batch` and the budget (in images and in iterations) filled in; `before` is the batch of the
    resumed run. UserError when `workers` does not divide it."""
    batch = choose_global_batch(
        config.global_batch, before, config.batch_size_per_gpu * workers, workers, key="global_batch"
    )
    if batch < 2:
        message = "the contrastive loss needs two images in a batch"
        raise UserError(message, key="global_batch", found=batch, expected="at least 2")
    images = whole_steps(config.total_images or config.total_iterations * batch, batch)
    return replace(config, global_batch=batch, total_images=images, total_iterations=images // batch)
