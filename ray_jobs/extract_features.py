"""Slides or images through encoders → features: per slide an H5 bag per encoder, per image folder a parquet table.

    python -m ray_jobs.extract_features encoders=[runs/a/encoder] slides=slides.csv output=features
    python -m ray_jobs.extract_features encoders=[a=runs/a/encoder,b=runs/b/encoder] slides=folder output=features
    python -m ray_jobs.extract_features encoders=[runs/a/encoder] images=patches output=features

Slides: a manifest (slide_id,wsi_path,mask_path and `mpp` where the header lacks it) or a folder; bags go to
OUTPUT/ENCODER/SLIDE.h5, readable as CLAM and TRIDENT bags. Images: a folder, or a CSV or TSV with a `path` column; the
table is OUTPUT/ENCODER/features.parquet. All encoders share one read of the pixels, and each gets the preprocessing of
its own artifact. What is finished, and made of the same files, encoders and settings, is skipped; `overwrite=true` does
it again. In fp32 features are the same to 1e-5 whatever the number of actors and the batch size.

Exit code 2 when fewer than `min_success_fraction` of the slides or images are ok; everything is written all the same.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.config import MISSING, Loaded, is_set, placement
from core.errors import UserError
from core.storage import Storage
from ray_jobs.cli import Outputs, job
from ray_jobs.runtime import RuntimeConfig

if TYPE_CHECKING:
    from core.features.encoder import EncoderSpec

log = logging.getLogger(__name__)
CONFIGS_DIR = Path(__file__).parent / "configs"


@dataclass
class ExtractConfig:
    encoders: list[str] = MISSING  # artifacts: folders or URLs, or name=folder
    output: str = MISSING  # a folder or URL
    slides: str = ""  # a manifest CSV or a folder of slides
    images: str = ""  # instead of slides: a folder of images, or a CSV or TSV with a column path
    images_root: str = ""  # what relative paths of an image list are below; "" = the list's own folder
    report: str = ""  # CSV with one line per slide or image; "" = OUTPUT/report.csv
    mpp: float | None = None  # µm per pixel of the tiles; null: the spacing that the encoders were trained at
    tile_px: int | None = None  # side of a tile; null: the encoders' own. Positions are interpolated to other sizes
    overlap_px: int = 0  # shared by neighbouring tiles
    resize: bool = False  # bring tiles and images to each encoder's own size instead
    min_tissue_fraction: float = 0.2  # of a tile
    edge_tiles: bool = False  # also tiles that reach beyond the right and lower edge
    spacing_tolerance: float = 0.05  # how far a pyramid level's spacing may be off to be read as it is
    slide_mpp: float | None = None  # µm per level-0 pixel of slides that do not say; the manifest's column comes first
    pooling: str = "mean"  # of the patch tokens | cls | cls+mean
    precision: str = "fp32"  # fp32 | bf16 | fp16: of the encoder's arithmetic
    dtype: str = "float32"  # float32 | float16: of the features in the files
    slide_parquet: bool = False  # a parquet table (x, y, features) beside each bag
    min_success_fraction: float = 1.0
    overwrite: bool = placement(False)  # do finished slides and images again
    backend: str = placement("auto")  # how slides are opened: auto, tiff, tiffslide, openslide or fastslide
    accelerator: str = placement("auto")  # auto | cpu | cuda
    actors: int | None = placement(None)  # processes with the encoders in them; null: as many as CPUs or GPUs serve
    cpus_per_actor: int = placement(1)
    gpus_per_actor: float | None = placement(None)  # may be a fraction; null: 1 on cuda
    batch_size: int = placement(64)
    images_per_part: int = placement(1024)  # an unfinished part is done again
    read_threads: int = placement(2)  # in each actor
    read_timeout_s: float = placement(120.0)
    tile_cache_mb: int = placement(256)  # decoded tiles, in each actor
    runtime: RuntimeConfig = placement(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if is_set(self.output) and not self.report:
            self.report = f"{self.output.rstrip('/')}/report.csv"
        for key, allowed in (
            ("pooling", ("mean", "cls", "cls+mean")),
            ("precision", ("fp32", "bf16", "fp16")),
            ("dtype", ("float32", "float16")),
            ("accelerator", ("auto", "cpu", "cuda")),
        ):
            if getattr(self, key) not in allowed:
                raise UserError("no such choice", key=key, found=getattr(self, key), expected=" or ".join(allowed))
        for key in ("actors", "cpus_per_actor", "batch_size", "images_per_part", "read_threads", "tile_cache_mb"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError("too small", key=key, found=value, expected="at least 1")
        for key in ("mpp", "slide_mpp", "read_timeout_s", "gpus_per_actor"):
            value = getattr(self, key)
            if value is not None and not 0 < value < float("inf"):
                raise UserError("not a positive number", key=key, found=value, expected="> 0")
        for key in ("min_success_fraction", "min_tissue_fraction", "spacing_tolerance"):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError("not a fraction", key=key, found=getattr(self, key), expected="0 to 1")


def main(loaded: Loaded[ExtractConfig]) -> Outputs | None:
    config = loaded.config
    if bool(config.slides) == bool(config.images):
        found = "both" if config.slides else "neither"
        raise UserError("extract from what?", key="slides", found=found, expected="one of slides=… and images=…")
    from ray_jobs import extract_images, extract_slides

    specs = encoder_specs(config)
    work = (extract_slides.plan if config.slides else extract_images.plan)(config, specs)
    log.info("%s", work)
    if loaded.dry_run:
        return None
    Storage.of(config.output).write_bytes("extraction.yaml", loaded.yaml.encode())
    work.run()
    return Outputs({"features": config.output, "report": config.report})


def encoder_specs(config: ExtractConfig) -> dict[str, EncoderSpec]:
    """The encoders by name, their descriptions checked: before Ray starts, and without loading weights."""
    from core.features.encoder import EncoderSpec

    if not config.encoders:
        raise UserError("no encoder given", key="encoders", expected="encoders=[folder] or encoders=[name=folder,…]")
    specs = dict[str, EncoderSpec]()
    for entry in config.encoders:
        name, path = _named(entry)
        if name in specs:
            message = "two encoders would write to one folder: name them"
            raise UserError(message, key="encoders", found=name, expected="encoders=[first=…,second=…]")
        specs[name] = EncoderSpec.of(name, path)
        specs[name].dim(config.pooling)
    return specs


def _named(entry: str) -> tuple[str, str]:
    """`name=path`, or a path whose last part is the name."""
    name, separator, path = entry.partition("=")
    if not separator or "/" in name:
        name, path = entry.rstrip("/").rpartition("/")[2], entry
    if not re.fullmatch(r"[\w.+-]{1,100}", name) or name.startswith((".", "_")):
        raise UserError(
            "not a name for a folder of features", key="encoders", found=name, expected="letters and digits"
        )
    return name, path if "://" in path else os.path.abspath(path)


def agreed(specs: Mapping[str, EncoderSpec], given: float | None, key: str, attribute: str) -> float:
    """What the config says, or else what all encoders that say anything say."""
    if given is not None:
        return given
    said = {name: getattr(spec, attribute) for name, spec in specs.items() if getattr(spec, attribute) is not None}
    if len(set(said.values())) != 1:
        message = "the encoders do not agree" if said else "no encoder says"
        raise UserError(f"{message}: which should the tiles have?", key=key, found=said, expected=f"{key}=…")
    value: float = next(iter(said.values()))
    return value


if __name__ == "__main__":
    job(main, ExtractConfig, CONFIGS_DIR)
