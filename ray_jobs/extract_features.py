"""Slides or images through encoders → features: per slide an H5 bag per encoder, per image folder a parquet table.

    python -m ray_jobs.extract_features encoders=[runs/a/encoder] slides=slides.csv output=features
    python -m ray_jobs.extract_features encoders=[a=runs/a/encoder,b=runs/b/encoder] slides=folder output=features
    python -m ray_jobs.extract_features encoders=[runs/a/encoder] images=patches output=features

Slides are given as a manifest (slide_id,wsi_path,mask_path, and `mpp` if the header lacks it) or a folder; bags are
OUTPUT/ENCODER/SLIDE.h5, in the format of CLAM and TRIDENT. Images are given as a folder, or a CSV or TSV with a `path`
column; the table is OUTPUT/ENCODER/features.parquet. Pixels are read once for all encoders, and each encoder applies
its artifact's own preprocessing. Results that exist for the same files, encoders and settings are kept;
`overwrite=true` makes them again. In fp32 features are equal to 1e-5 for any number of actors and any batch size.

The exit code is 2 if fewer than `min_success_fraction` of the slides or images are ok; everything is still written.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pathray.config.load import Loaded
from pathray.errors import UserError
from pathray.store.storage import Storage
from ray_jobs.extract.config import ExtractConfig
from ray_jobs.shell.cli import Outputs, job

if TYPE_CHECKING:
    from pathray.features.encoder import EncoderSpec

log = logging.getLogger(__name__)
CONFIGS_DIR = Path(__file__).parent / "configs"


def main(loaded: Loaded[ExtractConfig]) -> Outputs | None:
    config = loaded.config
    if bool(config.slides) == bool(config.images):
        found = "both" if config.slides else "neither"
        raise UserError("set either slides or images", key="slides", found=found, expected="slides=… or images=…")
    from ray_jobs.extract import images as extract_images
    from ray_jobs.extract import slides as extract_slides

    specs = encoder_specs(config)
    work = (extract_slides.plan if config.slides else extract_images.plan)(config, specs)
    log.info("%s", work)
    if loaded.dry_run:
        work.check()
        return None
    Storage.of(config.output).write_bytes("extraction.yaml", loaded.yaml.encode())
    work.run()
    return Outputs({"features": config.output, "report": config.report})


def encoder_specs(config: ExtractConfig) -> dict[str, EncoderSpec]:
    """The encoders by name, with checked descriptions, before Ray starts and without loading weights."""
    from pathray.features.encoder import EncoderSpec

    if not config.encoders:
        expected = "encoders=[folder] or encoders=[name=folder,…]"
        raise UserError("`encoders` is required", key="encoders", expected=expected)
    specs = dict[str, EncoderSpec]()
    for entry in config.encoders:
        name, path = _split_name(entry)
        if name in specs:
            message = "two encoders have the same name and would share a folder: name them"
            raise UserError(message, key="encoders", found=name, expected="encoders=[first=…,second=…]")
        specs[name] = EncoderSpec.of(name, path)
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
