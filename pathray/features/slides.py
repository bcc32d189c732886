"""Extracts one slide into one bag per encoder: pixels are read once, features are streamed to disk. Without Ray.

Memory does not grow with the slide: tiles are read a few batches ahead and written as soon as they are encoded. Not
here: which slides to extract, what to do about failures (ray_jobs.extract_features).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pathray.data.watchdog import exit_after
from pathray.errors import UserError
from pathray.features.bags import BagWriter
from pathray.features.encoder import EncoderSpec
from pathray.features.identity import fingerprint, identity_of, version
from pathray.features.inference import PixelBatch, Size, encode_batches, read_ahead
from pathray.features.pictures import PicturePaths, write_pictures
from pathray.features.tables import bag_to_parquet
from pathray.reports.units import describe
from pathray.store.storage import StorageError
from pathray.urls import public
from pathray.wsi.reader import SlideReader, open_slide
from pathray.wsi.regions import read_regions
from pathray.wsi.resize import resize
from pathray.wsi.spacing import MAX_ENLARGEMENT, choose_level, enlarged_note, level_mpps, too_coarse
from pathray.wsi.tiling import Tiles, TileSpec, tiles_of, tissue_of

if TYPE_CHECKING:
    from pathray.device import Device
    from pathray.features.encoder import FeatureEncoder

OPENING = 10  # opening a slide and finding its tissue may each take this many times the timeout of a tile


@dataclass(frozen=True)
class SlideSettings:
    """How slides become bags. Fields down to `dtype` determine a bag's content, the others only how it is made."""

    tiles: TileSpec
    spacing_tolerance: float = 0.05
    resize: bool = False
    pooling: str = "auto"
    precision: str = "fp32"
    dtype: str = "float32"

    max_enlargement: float = MAX_ENLARGEMENT  # of the finest level; a slide that needs more is rejected
    parquet: bool = False  # also write a table next to each bag
    batch_size: int = 64
    read_threads: int = 2
    read_timeout_s: float = 120.0
    cache_bytes: int = 256 << 20
    backend: str = "auto"


@dataclass(frozen=True)
class SlideJob:
    """A slide to extract. `bags` maps the requested encoders to the bags' paths.

    `mpp` overrides the header; `fallback_mpp` is used if the header has no spacing. `state` and `mask_state` change
    with the files.
    """

    slide_id: str
    wsi_path: str
    mask_path: str = ""
    mpp: float | None = None
    fallback_mpp: float | None = None
    state: str = ""
    mask_state: str = ""
    bags: tuple[tuple[str, str], ...] = ()
    pictures: PicturePaths | None = None


@dataclass(frozen=True)
class SlideOutcome:
    """A line of the report. `status` is ok, skipped (no bag was requested), empty (no tile has enough tissue) or
    failed."""

    status: str
    error: str = ""
    tiles: int = 0
    mpp0: float | None = None
    spacing_source: str = ""
    backend: str = ""
    source_mpp: float | None = None
    seconds: float = 0.0


def slide_identity(job: SlideJob) -> dict[str, Any]:
    """The slide and the state of its files: everything that its tiles depend on."""
    return {name: getattr(job, name) for name in ("slide_id", "state", "mask_state", "mpp", "fallback_mpp")}


def bag_identity(job: SlideJob, spec: EncoderSpec, settings: SlideSettings) -> dict[str, Any]:
    """Everything that a bag's content depends on, from which its fingerprint is computed."""
    source = {"slide": slide_identity(job), "tiles": asdict(settings.tiles)}
    return identity_of(source, spec, settings, "spacing_tolerance")


def bag_fingerprint(job: SlideJob, spec: EncoderSpec, settings: SlideSettings) -> str:
    return fingerprint(bag_identity(job, spec, settings))


def extract_slide(
    job: SlideJob,
    specs: Mapping[str, EncoderSpec],
    encoders: Mapping[str, FeatureEncoder],
    settings: SlideSettings,
    device: Device,
) -> SlideOutcome:
    """Write the bags of `job`, then its pictures. Raises what reading the slide raises, StorageError for the output,
    and EncodingError; an unfinished bag is never left behind."""
    started = time.monotonic()
    with exit_after(OPENING * settings.read_timeout_s):
        reader = open_slide(job.wsi_path, backend=settings.backend, cache_bytes=settings.cache_bytes)
    try:
        mpp0, source = spacing(job, reader)
        if coarse := too_coarse(level_mpps(reader, mpp0), settings.tiles.mpp, settings.max_enlargement):
            raise UserError(f"the slide is too coarse: {coarse}", file=public(job.wsi_path), key="max_enlargement")
        width, height = reader.level_shapes[0]
        with exit_after(OPENING * settings.read_timeout_s):
            tissue = tissue_of(reader, mpp0, job.mask_path, settings.tiles)
        tiles = tiles_of(tissue, width, height, mpp0, settings.tiles)
        choice = choose_level(level_mpps(reader, mpp0), settings.tiles.mpp, settings.spacing_tolerance)
        outcome = SlideOutcome("ok", enlarged_note(choice), len(tiles), mpp0, source, reader.backend, choice.level_mpp)
        if not len(tiles):
            outcome = replace(outcome, status="empty", error="no tile holds enough tissue")
        elif job.bags:
            _write_bags(job, specs, encoders, settings, device, reader, tiles, mpp0, outcome)
        else:
            outcome = replace(outcome, status="skipped", error="")
        outcome = _with_pictures(outcome, job, settings, reader, tissue, tiles)
    finally:
        reader.close()
    for _, path in job.bags if settings.parquet and outcome.status == "ok" else ():
        bag_to_parquet(path)
    return replace(outcome, seconds=time.monotonic() - started)


def _with_pictures(
    outcome: SlideOutcome,
    job: SlideJob,
    settings: SlideSettings,
    reader: SlideReader,
    tissue: npt.NDArray[Any],
    tiles: Tiles,
) -> SlideOutcome:
    """The outcome after writing the pictures, if requested. Failing to draw the slide is only noted in the outcome,
    because its features are complete."""
    if job.pictures is None or outcome.mpp0 is None:
        return outcome
    try:
        write_pictures(job.pictures, job.slide_id, reader, tissue, tiles, outcome.mpp0, settings.tiles)
    except (AssertionError, StorageError):
        raise
    except Exception as e:  # each decoder has its own exceptions
        note = f"no thumbnail: {describe(e)}"
        return replace(outcome, error=f"{outcome.error}; {note}" if outcome.error else note)
    return outcome


def spacing(job: SlideJob, reader: SlideReader) -> tuple[float, str]:
    """µm per level-0 pixel and its source: manifest, header, tags or config. UserError if no source has it."""
    if job.mpp is not None:
        return job.mpp, "manifest"
    if reader.mpp is not None:
        return reader.mpp, reader.mpp_source or "header"
    if job.fallback_mpp is not None:
        return job.fallback_mpp, "config"
    message = "the slide does not say its pixel size: add an `mpp` column to the manifest, or set slide_mpp"
    found = reader.spacing_note or None
    raise UserError(message, file=public(job.wsi_path), key="mpp", found=found, expected="micrometres per pixel")


def _write_bags(
    job: SlideJob,
    specs: Mapping[str, EncoderSpec],
    encoders: Mapping[str, FeatureEncoder],
    settings: SlideSettings,
    device: Device,
    reader: SlideReader,
    tiles: Tiles,
    mpp0: float,
    found: SlideOutcome,
) -> None:
    side = settings.tiles.size_px
    sizes = {name: specs[name].input_px(side, side, resize=settings.resize) for name, _ in job.bags}
    with contextlib.ExitStack() as stack:
        bags = {}
        for name, path in job.bags:
            identity = bag_identity(job, specs[name], settings)
            bag = BagWriter(
                path,
                tiles.coords,
                specs[name].dim(settings.pooling),
                dtype=settings.dtype,
                tile=tile_attributes(job, specs[name], settings, reader, tiles, mpp0),
                provenance={**identity, "source": _source(job, found), "encoder_name": name, "pathray": version()},
                fingerprint=fingerprint(identity),
            )
            bags[name] = stack.enter_context(bag)
        batches = tile_batches(reader, tiles, mpp0, settings, sizes)
        for rows, features in encode_batches(batches, encoders, device):
            for name, bag in bags.items():
                bag.write(int(rows[0]), features[name])


def tile_batches(
    reader: SlideReader, tiles: Tiles, mpp0: float, settings: SlideSettings, sizes: Mapping[str, Size]
) -> Iterator[PixelBatch]:
    """The tiles' pixels in raster order, each read once and resized to each encoder's input size."""
    spec, centres = settings.tiles, tiles.centres()

    def read(first: int) -> PixelBatch:
        part = centres[first : first + settings.batch_size]
        regions = read_regions(reader, part, spec.size_px, spec.mpp, mpp0=mpp0, tolerance=settings.spacing_tolerance)
        pixels = {
            size: np.stack([resize(region.pixels, *size) for region in regions]) for size in sorted(set(sizes.values()))
        }
        return PixelBatch(np.arange(first, first + len(part)), pixels, sizes)

    starts = range(0, len(tiles), settings.batch_size)
    return read_ahead(
        read,
        starts,
        threads=settings.read_threads,
        timeout_s=settings.read_timeout_s,
        name=lambda first: f"{public(reader.path)}, tile {first}",
    )


def tile_attributes(
    job: SlideJob, spec: EncoderSpec, settings: SlideSettings, reader: SlideReader, tiles: Tiles, mpp0: float
) -> dict[str, Any]:
    """The attributes that describe the tiles. The names down to `target_magnification` are TRIDENT's."""
    import json

    width, height = reader.level_shapes[0]
    of = settings.tiles
    return {
        "name": job.slide_id,
        "patch_size": of.size_px,
        "patch_size_level0": tiles.size,
        "overlap": of.overlap_px,
        "level0_width": width,
        "level0_height": height,
        "level0_magnification": max(1, round(10 / mpp0)),
        "target_magnification": max(1, round(10 / of.mpp)),
        "mpp": of.mpp,
        "mpp_level0": mpp0,
        "tile_um": of.size_um,
        "encoder": spec.name,
        "encoder_sha256": spec.description["sha256"],
        "preprocessing": json.dumps(spec.preprocessing, sort_keys=True),
        "pooling": spec.pooling(settings.pooling),
    }


def _source(job: SlideJob, found: SlideOutcome) -> dict[str, Any]:
    paths = {"wsi_path": public(job.wsi_path), "mask_path": public(job.mask_path)}
    return paths | {name: getattr(found, name) for name in ("mpp0", "spacing_source", "backend", "source_mpp")}
