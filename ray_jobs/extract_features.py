"""Slides, images or OCT volumes through encoders → features: bags in H5 per slide or volume, parquet tables.

    python -m ray_jobs.extract_features encoders=[runs/a/encoder] slides=slides.csv output=features
    python -m ray_jobs.extract_features encoders=[a=runs/a/encoder,b=runs/b/encoder] slides=folder output=features
    python -m ray_jobs.extract_features encoders=[runs/a/encoder] images=patches output=features
    python -m ray_jobs.extract_features encoders=[runs/oct/encoder] volumes=indexes/oct.parquet output=features

Slides are given as a manifest (slide_id,wsi_path,mask_path, and `mpp` if the header lacks it) or a folder; bags are
OUTPUT/ENCODER/SLIDE.h5, in the format of CLAM and TRIDENT. Images are given as a folder, or a CSV or TSV with a `path`
column; the table is OUTPUT/ENCODER/features.parquet. Volumes are those of an index (ray_jobs.index_oct); the table has
a row per volume, and OUTPUT/ENCODER/VOLUME.h5 has its mean token or, with tokens=true, its grid of tokens. Pixels are
read once for all encoders, and each encoder applies its artifact's own preprocessing. Results that exist for the same
files, encoders and settings are kept; `overwrite=true` makes them again. In fp32 features are equal to 1e-5 for any
number of actors and any batch size.

The exit code is 2 if fewer than `min_success_fraction` of the slides, images or volumes are ok; the others are written.
"""

from __future__ import annotations

import logging
import os
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathray.config.load import Loaded
from pathray.errors import UserError
from pathray.store.storage import Storage
from ray_jobs.extract.config import ExtractConfig
from ray_jobs.shell.cli import Outputs, job

if TYPE_CHECKING:
    from pathray.features.encoder import EncoderSpec

log = logging.getLogger(__name__)
CONFIGS_DIR = Path(__file__).parent / "configs"
SOURCES = ("slides", "images", "volumes")


def main(loaded: Loaded[ExtractConfig]) -> Outputs | None:
    config = loaded.config
    work = planner(config)(config, encoder_specs(config))
    log.info("%s", work)
    if loaded.dry_run:
        work.check()
        return None
    Storage.of(config.output).write_bytes("extraction.yaml", loaded.yaml.encode())
    work.run()
    return Outputs({"features": config.output, "report": config.report})


def planner(config: ExtractConfig) -> Any:
    """`plan` of what is extracted from. UserError unless that is one thing."""
    found = [key for key in SOURCES if getattr(config, key)]
    if len(found) != 1:
        expected = " or ".join(f"{key}=…" for key in SOURCES)
        message = "set one of slides, images and volumes"
        raise UserError(message, key="slides", found=" and ".join(found) or "none", expected=expected)
    return import_module(f"ray_jobs.extract.{found[0]}").plan


def encoder_specs(config: ExtractConfig) -> dict[str, EncoderSpec]:
    """The encoders by name, with checked descriptions, before Ray starts and without loading weights."""
    from pathray.features.encoder import EncoderSpec

    kind: type[EncoderSpec] = import_module("oct.encoding.encoder").VolumeSpec if config.volumes else EncoderSpec
    if not config.encoders:
        expected = "encoders=[folder] or encoders=[name=folder,…]"
        raise UserError("`encoders` is required", key="encoders", expected=expected)
    specs = dict[str, EncoderSpec]()
    for entry in config.encoders:
        name, path = _split_name(entry)
        if name in specs:
            message = "two encoders have the same name and would share a folder: name them"
            raise UserError(message, key="encoders", found=name, expected="encoders=[first=…,second=…]")
        specs[name] = kind.of(name, path)
        specs[name].dim(config.pooling)
    return specs


def _split_name(entry: str) -> tuple[str, str]:
    """`name=path`, or a path whose last part is the name."""
    name, separator, path = entry.partition("=")
    if not separator or "/" in name:
        name, path = entry.rstrip("/").rpartition("/")[2], entry
    if not re.fullmatch(r"[\w.+-]{1,100}", name) or name.startswith((".", "_")):
        raise UserError(
            "the encoder's name cannot be used as a folder name",
            key="encoders",
            found=name,
            expected="letters and digits",
        )
    return name, path if "://" in path else os.path.abspath(path)


if __name__ == "__main__":
    job(main, ExtractConfig, CONFIGS_DIR)
