"""The config of ray_jobs.extract_features, and the values that it takes from the encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mil.sections import EncoderNames
from pathray.config.checks import check_at_least
from pathray.config.load import MISSING, flatten, is_set, placement
from pathray.errors import UserError
from pathray.wsi.spacing import MAX_ENLARGEMENT
from ray_jobs.shell.runtime import RuntimeConfig

if TYPE_CHECKING:
    from pathray.features.encoder import EncoderSpec


@dataclass
class ExtractConfig:
    encoders: list[str] = field(default_factory=list)  # artifacts: folders or URLs, or name=folder
    encoder: EncoderNames = field(default_factory=EncoderNames)  # encoder=uni2h: its artifact, spacing and tiles
    output: str = MISSING  # a folder or URL
    slides: str = ""  # a manifest CSV or a folder of slides
    images: str = ""  # instead of slides: a folder of images, or a CSV or TSV with a column path
    images_root: str = ""  # base of relative paths in an image list; "" = the list's own folder
    volumes: str = ""  # instead: an index of OCT volumes, as ray_jobs.index_oct writes it; encoders of pretrain_oct
    volumes_root: str = ""  # folder or URL of the volumes, if they moved since they were indexed
    tokens: bool = False  # of volumes: also keep each volume's grid of tokens
    token_pool: list[int] = field(default_factory=lambda: [1, 1, 1])  # tokens averaged per axis before they are kept
    report: str = ""  # CSV with one row per slide, image or volume; "" = OUTPUT/report.csv
    mpp: float | None = None  # µm per pixel of the tiles; null: the encoders' training spacing
    tile_px: int | None = None  # side of a tile; null: the encoders' own; positions are interpolated to other sizes
    overlap_px: int = 0  # overlap of neighbouring tiles
    resize: bool = False  # resize tiles and images to each encoder's own size instead
    min_tissue_fraction: float = 0.2  # least share of tissue in a tile
    edge_tiles: bool = False  # also tiles that extend beyond the right and lower edges
    spacing_tolerance: float = 0.05  # largest relative difference to use the nearest pyramid level
    slide_mpp: float | None = None  # µm per level-0 pixel of slides without a spacing; the manifest takes precedence
    pooling: str = (
        "auto"  # auto (an imported encoder's own; otherwise mean) | mean (of the patch tokens) | cls | cls+mean
    )
    precision: str = "fp32"  # fp32 | bf16 | fp16: the encoder's arithmetic
    dtype: str = "float32"  # float32 | float16: the stored features
    slide_parquet: bool = False  # also write a parquet table (x, y, features) next to each bag
    min_success_fraction: float = 1.0
    max_enlargement: float = placement(MAX_ENLARGEMENT)  # of a slide's finest level; slides that need more fail
    thumbnails: bool = placement(True)  # a picture of each slide's tissue and tiles, also as GeoJSON for QuPath
    overwrite: bool = placement(False)  # extract finished slides and images again
    backend: str = placement("auto")  # how slides are opened: auto, tiff, tiffslide, openslide, fastslide or opensdpc
    accelerator: str = placement("auto")  # auto | cpu | cuda
    actors: int | None = placement(None)  # processes that run the encoders; null: as many as fit the CPUs or GPUs
    cpus_per_actor: int = placement(1)
    gpus_per_actor: float | None = placement(None)  # may be a fraction; null: 1 on cuda
    batch_size: int = placement(64)
    images_per_part: int = placement(1024)  # an unfinished part is repeated
    read_threads: int = placement(2)  # in each actor
    read_timeout_s: float = placement(120.0)
    tile_cache_mb: int = placement(256)  # decoded tiles, in each actor
    runtime: RuntimeConfig = placement(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if is_set(self.output) and not self.report:
            self.report = f"{self.output.rstrip('/')}/report.csv"
        for key, allowed in (
            ("pooling", ("auto", "mean", "cls", "cls+mean")),
            ("precision", ("fp32", "bf16", "fp16")),
            ("dtype", ("float32", "float16")),
            ("accelerator", ("auto", "cpu", "cuda")),
        ):
            if getattr(self, key) not in allowed:
                raise UserError("unknown choice", key=key, found=getattr(self, key), expected=" or ".join(allowed))
        for key in ("actors", "cpus_per_actor", "batch_size", "images_per_part", "read_threads", "tile_cache_mb"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"{key} must be >= 1", key=key, found=value, expected=">= 1")
        check_at_least(self, "", 1, "max_enlargement")
        if len(self.token_pool) != 3 or min(self.token_pool) < 1:
            expected = "[slow axis, depth, along a B-scan], each >= 1"
            raise UserError(
                "one number per axis is required", key="token_pool", found=self.token_pool, expected=expected
            )
        for key in ("mpp", "slide_mpp", "read_timeout_s", "gpus_per_actor"):
            value = getattr(self, key)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{key} must be > 0", key=key, found=value, expected="> 0")
        for key in ("min_success_fraction", "min_tissue_fraction", "spacing_tolerance"):
            if not 0 <= getattr(self, key) <= 1:
                message = f"{key} must be between 0 and 1"
                raise UserError(message, key=key, found=getattr(self, key), expected="0 to 1")


def agree_on(specs: Mapping[str, EncoderSpec], given: float | None, key: str, attribute: str) -> float:
    """The given value, or else the common value of all encoders that have one. UserError if they differ."""
    if given is not None:
        return given
    said = {name: getattr(spec, attribute) for name, spec in specs.items() if getattr(spec, attribute) is not None}
    if len(set(said.values())) != 1:
        message = f"the encoders differ in {attribute}" if said else f"no encoder states its {attribute}"
        raise UserError(f"{message}: set {key}", key=key, found=said, expected=f"{key}=…")
    value: float = next(iter(said.values()))
    return value


def told_pooling(specs: Mapping[str, EncoderSpec], asked: str) -> str:
    """The pooling of the encoders in words; with `auto` each has its own."""
    return f"{' and '.join(sorted({spec.pooling(asked) for spec in specs.values()}))} of the tokens"


SLIDES_ONLY = ("mpp", "tile_px", "overlap_px", "edge_tiles", "slide_mpp", "slide_parquet")
VOLUMES_ONLY = ("volumes_root", "tokens", "token_pool")


def check_unused(config: ExtractConfig, keys: Sequence[str], why: str) -> None:
    """UserError for the first of the keys that was changed, though it changes nothing here."""
    usual = flatten(type(config)())
    for key, (value, _) in flatten(config).items():
        if key in keys and value != usual[key][0]:
            raise UserError(f"{key} {why}", key=key, found=value, expected=usual[key][0])
