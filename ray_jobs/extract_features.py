"""Slides, images or OCT volumes through encoders → features: bags in H5 per slide or volume, parquet tables.

    python -m ray_jobs.extract_features encoders=[runs/a/encoder] slides=slides.csv output=features
    python -m ray_jobs.extract_features encoders=[a=runs/a/encoder,b=runs/b/encoder] slides=folder output=features
    python -m ray_jobs.extract_features encoders=[runs/a/encoder] images=patches output=features
    python -m ray_jobs.extract_features encoders=[runs/oct/encoder] volumes=indexes/oct.parquet output=features
    python -m ray_jobs.extract_features encoder=uni2h slides=slides.csv output=features

Slides are given as a manifest (slide_id,wsi_path,mask_path, and `mpp` if the header lacks it) or a folder; bags are
OUTPUT/ENCODER/SLIDE.h5, in the format of CLAM and TRIDENT. Images are given as a folder, or a CSV or TSV with a `path`
column; the table is OUTPUT/ENCODER/features.parquet. Volumes are those of an index (ray_jobs.index_oct); the table has
a row per volume, and OUTPUT/ENCODER/VOLUME.h5 has its mean token or, with tokens=true, its grid of tokens. Pixels are
read once for all encoders, and each encoder applies its artifact's own preprocessing and pooling. Results that exist
for the same files, encoders and settings are kept; `overwrite=true` makes them again. In fp32 features are equal to
1e-5 for any number of actors and any batch size.

encoder=univ1 (UNI), uni2h or univ2 (UNI2-h) takes the artifact in encoders/NAME, which ray_jobs.import_encoder makes of
the published files, and tiles of 224 pixels at 0.5 µm per pixel ("20x"); mpp and tile_px change that.

The exit code is 2 if fewer than `min_success_fraction` of the slides, images or volumes are ok; the others are written.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mil.sections import CONFIGS_DIR
from pathray.config.load import Group, Loaded
from pathray.errors import MissingFile, UserError
from pathray.store.storage import Storage
from ray_jobs.extract.config import ExtractConfig
from ray_jobs.shell.cli import Outputs, job

if TYPE_CHECKING:
    from pathray.features.encoder import EncoderSpec

log = logging.getLogger(__name__)
GROUPS = (Group("encoder", "encoder"),)
SOURCES = ("slides", "images", "volumes")


def main(loaded: Loaded[ExtractConfig]) -> Outputs | None:
    config = with_preset(loaded.config)
    work = planner(config)(config, encoder_specs(config))
    log.info("%s", work)
    if loaded.dry_run:
        work.check()
        return None
    Storage.of(config.output).write_bytes("extraction.yaml", loaded.yaml.encode())
    work.run()
    return Outputs({"features": config.output, "report": config.report})


def with_preset(config: ExtractConfig) -> ExtractConfig:
    """The config with the encoder that `encoder=` names, and with the spacing and the tiles of slides that go with it.

    UserError where its artifact is not there, saying how it is made, or has features of another length.
    """
    from pathray.features.encoder import EncoderSpec

    preset = config.encoder
    if preset.artifact is None:
        return config
    try:
        spec = EncoderSpec.of(preset.name, preset.artifact)
    except MissingFile as e:
        message, command = f"the encoder {preset.name} is not here", f"model={preset.name} output={preset.artifact}"
        expected = f"python -m ray_jobs.import_encoder weights=… {command}, or encoder.artifact=FOLDER"
        raise MissingFile(message, file=preset.artifact, key="encoder.artifact", expected=expected) from e
    if preset.dim is not None and (found := spec.dim("auto")) != preset.dim:
        message, expected = f"this is not {preset.name}", f"features of {preset.dim} numbers"
        raise UserError(message, file=preset.artifact, key="encoder.artifact", found=found, expected=expected)
    entry = f"{preset.name}={os.path.abspath(preset.artifact) if '://' not in preset.artifact else preset.artifact}"
    config = replace(config, encoders=[*config.encoders, entry])
    if not config.slides:
        return config
    return replace(config, mpp=config.mpp or preset.mpp, tile_px=config.tile_px or preset.tile_px)


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
        expected = "encoders=[folder], encoders=[name=folder,…] or encoder=uni2h"
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
    job(main, ExtractConfig, CONFIGS_DIR, GROUPS)
