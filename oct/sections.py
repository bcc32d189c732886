"""The sections of the run config that say what the model sees and what it is: data, model, masks, augmentation.

Every key with its default and its checks; plain dataclasses. Sizes are (slow axis, depth, along a B-scan), as
everywhere in this package. Not here: the optimizer, the run as a whole (oct.config), what the options do (oct.masks,
oct.augment, oct.model).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

from oct.volume import CENTER, CROPS, Grid
from pathray.config.checks import check_at_least, check_between, check_one_of, check_positive, check_range
from pathray.config.load import placement
from pathray.config.sections import RegulariserConfig, StreamConfig
from pathray.errors import UserError
from pathray.fingerprint import added_field

MODELS = ("vit_micro", "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge")


@dataclass
class DataConfig(StreamConfig):
    """Which volumes are read, onto which grid, and how."""

    index: str | None = placement(None)  # what ray_jobs.index_oct wrote
    manifest: str | None = placement(None)  # manifest.tsv
    gcs_root: str | None = placement(None)  # folder or URL that the manifest's paths are below
    cache_dir: str | None = placement(None)  # of remote files; None: the environment's DATA_CACHE_DIR, else no cache
    cache_gb: float = placement(50.0)
    devices: list[str] = field(default_factory=list)  # of the manifest; empty: all
    regions: list[str] = placement(default_factory=list)  # anatomic regions, such as [Macula]; empty: all
    min_frames: int = placement(2)  # B-scans that a volume has at least
    split_file: str | None = placement(None)
    split: str = "train"
    image_size: list[int] = field(default_factory=lambda: [64, 384, 384])  # voxels
    allow_smaller_image: bool = placement(False)  # out of memory with one volume at a time: train on smaller_image
    smaller_image: list[int] = placement(default_factory=lambda: [64, 320, 320])  # voxels; positions are resampled
    spacing_mm: list[float] = field(default_factory=lambda: [0.05, 0.02, 0.02])
    crop: str = added_field(CENTER)  # where in depth the grid is: center of the volume | retina, told from its greys
    seed: int = 42
    file_list: str | None = placement(None)  # text file of paths below the root, one per line: only these
    max_volumes: int | None = placement(None)  # limit on files of the manifest or index, evenly spaced; None: all
    read_timeout_s: float = placement(300.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_triple(self, "data", "image_size", "smaller_image", "spacing_mm")
        check_positive(self, "data", "max_volumes", "min_frames")
        check_at_least(self, "data", 0, "cache_gb", "seed")
        check_one_of(self, "data", crop=CROPS)
        if not self.split:
            raise UserError("the name of a split is required", key="data.split", found=self.split, expected="train")

    @property
    def grid(self) -> Grid:
        """The grid that every volume is put on."""
        (d, h, w), (dz, dy, dx) = self.image_size, self.spacing_mm
        return Grid((d, h, w), (dz, dy, dx), self.crop)

    @property
    def cache_folder(self) -> str | None:
        """`cache_dir`, else the environment's DATA_CACHE_DIR."""
        return self.cache_dir or os.environ.get("DATA_CACHE_DIR") or None


@dataclass
class ModelConfig(RegulariserConfig):
    """Encoder, predictor and loss.

    V-JEPA 2 has 12 predictor blocks of 384. The predictor sees all tokens where the encoder sees 40%: at 9,216 tokens 6
    such blocks already cost more attention than the 12 blocks of vit_base over its visible ones. Hence 6.
    """

    name: str = "vit_base"
    patch_size: list[int] = field(default_factory=lambda: [4, 16, 16])  # voxels
    positions: str = "sincos"  # | learned | rope
    predictor: str = "transformer"  # | mlp: two layers over the mean visible token and a position; an ablation
    pred_dim: int = 384
    pred_depth: int = 6
    pred_heads: int = 0  # 0: one head per 32 dimensions, as in V-JEPA 2
    mlp_hidden: int | None = None  # of predictor=mlp; None: the encoder's width
    drop_path: float = 0.0  # rate of the encoder's last block
    checkpointing: bool = placement(False)
    loss: str = "normalized_mse"  # 2 - 2 cos | l1: V-JEPA | dense: V-JEPA 2.1, visible tokens too
    dense_weight: float = 0.5  # of a visible token next to a hidden one, for loss=dense

    def __post_init__(self) -> None:
        check_one_of(self, "model", name=MODELS, positions=("sincos", "learned", "rope"))
        check_one_of(self, "model", predictor=("transformer", "mlp"), loss=("normalized_mse", "l1", "dense"))
        _check_triple(self, "model", "patch_size")
        check_positive(self, "model", "pred_dim", "pred_depth", "mlp_hidden")
        check_at_least(self, "model", 0, "pred_heads", "dense_weight")
        check_between(self, "model", 0, 0.999, "drop_path")
        self.check_regulariser("model")
        if self.pred_dim % (2 * self.predictor_heads):
            found = f"{self.pred_dim} / {self.predictor_heads}"
            raise UserError("pred_dim / heads must be an even whole number", key="model.pred_heads", found=found)
        if self.loss == "dense" and self.predictor == "mlp":
            expected = "model.predictor=transformer"
            raise UserError("only the transformer predicts visible tokens", key="model.loss", expected=expected)

    @property
    def predictor_heads(self) -> int:
        return self.pred_heads or max(1, self.pred_dim // 32)


@dataclass
class MaskConfig:
    """Which tokens are hidden. See oct.masks."""

    kind: str = "block"  # 3-D blocks up to `ratio` | random: single tokens | vjepa: two masks of whole columns
    ratio: float = 0.6  # of all tokens, for block and random
    block_extent: list[float] = field(default_factory=lambda: [0.25, 0.5])  # of a block, share of each axis, for block
    short_blocks: int = 8  # of the first mask of vjepa
    short_scale: float = 0.15  # of the area of a B-scan, each of them
    long_blocks: int = 2  # of the second
    long_scale: float = 0.7
    aspect: list[float] = field(default_factory=lambda: [0.75, 1.5])  # depth / width of vjepa's blocks, in tokens

    def __post_init__(self) -> None:
        check_one_of(self, "mask", kind=("block", "random", "vjepa"))
        check_positive(self, "mask", "short_blocks", "long_blocks")
        check_range(self, "mask", "block_extent", "aspect")
        check_between(self, "mask", 0.01, 0.99, "ratio", "short_scale", "long_scale")
        if self.block_extent[1] > 1:
            raise UserError(
                "a block exceeds the volume", key="mask.block_extent", found=self.block_extent, expected="at most 1"
            )


@dataclass
class AugmentConfig:
    """Augmentation of a training volume; a strength of 0 is off. Depth is never flipped: a retina has an up."""

    crop: list[float] = field(default_factory=lambda: [0.8, 1.0])  # share of each axis that is kept; [1, 1]: off
    flip_lr: bool = True  # along a B-scan: a left eye for a right one
    flip_slow: bool = True  # the order of B-scans
    degrees: float = 5.0  # rotation about each axis, to either side, in mm
    translate: float = 0.05  # share of the image's extent, to either side
    scale: float = 0.05  # 1 - scale … 1 + scale, per axis
    noise: float = 0.05  # standard deviation, after normalisation

    def __post_init__(self) -> None:
        check_range(self, "augment", "crop")
        check_between(self, "augment", 0, 30, "degrees")
        check_between(self, "augment", 0, 0.5, "translate", "scale")
        check_at_least(self, "augment", 0, "noise")
        if self.crop[1] > 1:
            raise UserError("a crop exceeds the volume", key="augment.crop", found=self.crop, expected="at most 1")


def _check_triple(config: object, section: str, *keys: str) -> None:
    """UserError unless each is three positive numbers, one per axis."""
    for key in keys:
        values = getattr(config, key)
        if len(values) != 3 or not all(math.isfinite(v) and v > 0 for v in values):
            expected = "[slow axis, depth, along a B-scan], each > 0"
            raise UserError("one value per axis is required", key=f"{section}.{key}", found=values, expected=expected)
