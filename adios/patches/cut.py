"""Cuts the archives that ADIOS trains on: a slide, or a folder of images → one zip of square PNG patches.

`patch_000_448_x0_y896.png` is the first patch, of 448² pixels, with its upper left corner at (0, 896) in level-0 pixels
of its slide or in pixels of its image (before resampling). Equal files give equal bytes. Archives are written
atomically, and the comment of an archive has the fingerprint of its inputs, so that a stopped job can resume. Not here:
which slides there are, and their distribution over a cluster (ray_jobs.cut_patches).
"""

from __future__ import annotations

import io
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pathray.errors import UnreadableUnit, UserError
from pathray.features.images import read_image
from pathray.fingerprint import fingerprint
from pathray.reports.units import describe
from pathray.store.storage import Storage, StorageError, file_state
from pathray.urls import public
from pathray.wsi.backends.source import open_source
from pathray.wsi.reader import open_slide
from pathray.wsi.regions import read_regions, round_half_up
from pathray.wsi.resize import resize
from pathray.wsi.spacing import MAX_ENLARGEMENT, choose_level, enlarged_note, level_mpps, reused_note, too_coarse
from pathray.wsi.tiling import TileSpec, tile_grid, tiles_of, tissue_of

BATCH = 16  # tiles of a slide that are read at once
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every member: the current time would change the bytes
COMMENT = re.compile(rb"pathray patches ([0-9a-f]{64}) (\d+)\n$")  # fingerprint and count, at an archive's end
TAIL = 128
TOLERANCE = 0.05  # a spacing this close to the patches' own counts as equal
PLACES = ("output", "path", "mask_path", "paths", "max_enlargement")  # the bytes of an archive do not depend on these

Patch = tuple[int, int, npt.NDArray[np.uint8]]  # x, y, [size, size, 3]


@dataclass(frozen=True)
class SlideCut:
    """A slide to cut into the archive `output`. The states change when the files do; `mask_path` "" computes a mask."""

    name: str
    output: str
    path: str
    mpp0: float
    mask_path: str = ""
    state: str = ""
    mask_state: str = ""
    max_enlargement: float = MAX_ENLARGEMENT


@dataclass(frozen=True)
class ImagesCut:
    """The images of one folder, to cut into the archive `output`. `states` change when the files do. Images of `mpp` µm
    per pixel are resampled to the tiles' spacing first; None: they are not resampled."""

    name: str
    output: str
    paths: tuple[str, ...]
    mpp: float | None = None
    states: tuple[str, ...] = ()
    max_enlargement: float = MAX_ENLARGEMENT


@dataclass(frozen=True)
class CutOutcome:
    """A row of the report. `status`: ok, skipped (done before), empty (no tissue) or failed; `refused`: images that
    were left out."""

    status: str
    error: str = ""
    patches: int = 0
    refused: int = 0


def cut_if_needed(job: SlideCut | ImagesCut, spec: TileSpec) -> CutOutcome:
    """`cut`, unless the archive exists and has the same fingerprint. Faults of the data become the outcome; raises
    StorageError for an archive that cannot be written, and assertions."""
    try:
        current = _with_states(job)
        done = _count_done(current, spec)
        if done is None:
            return cut(current, spec)
        spacing = _spacing(job)
        note = reused_note([spacing], spec.mpp, job.max_enlargement) if spacing else ""
        return CutOutcome("skipped", note, done)
    except (AssertionError, StorageError):
        raise
    except Exception as e:  # a fault of the data: every decoder has errors of its own
        return CutOutcome("failed", describe(e))


def cut(job: SlideCut | ImagesCut, spec: TileSpec) -> CutOutcome:
    """Write the archive of a job. Raises what reading its slide raises, and StorageError for the archive; unusable
    images of a folder are left out and named."""
    refused = list[str]()
    patches = _of_slide(job, spec) if isinstance(job, SlideCut) else _of_images(job, spec, refused)
    count = _write(job.output, patches, spec.size_px, _fingerprint(job, spec))
    spacing = _spacing(job)
    notes = [enlarged_note(choose_level([spacing], spec.mpp, TOLERANCE), "the patches'")] if spacing else []
    if refused:
        notes.append(f"{len(refused)} images left out: {'; '.join(refused[:3])}")
    error = "; ".join(note for note in notes if note)
    if not count:
        why = error if refused else "no tile holds enough tissue"
        return CutOutcome("failed" if refused else "empty", why, 0, len(refused))
    return CutOutcome("ok", error, count, len(refused))


def _spacing(job: SlideCut | ImagesCut) -> float | None:
    """The finest µm per pixel of the source, if known."""
    return job.mpp0 if isinstance(job, SlideCut) else job.mpp


def _with_states(job: SlideCut | ImagesCut) -> SlideCut | ImagesCut:
    if isinstance(job, ImagesCut):
        return replace(job, states=tuple(file_state(path) for path in job.paths))
    mask_state = file_state(job.mask_path) if job.mask_path else ""
    return replace(job, state=file_state(job.path), mask_state=mask_state)


def _fingerprint(job: SlideCut | ImagesCut, spec: TileSpec) -> str:
    """Digest of everything that an archive's bytes depend on, but not of where its source is."""
    facts = {k: v for k, v in asdict(job).items() if k not in PLACES}
    tiles = asdict(spec)
    if isinstance(job, ImagesCut):
        used = ("size_px", "overlap_px", "mpp") if job.mpp else ("size_px", "overlap_px")
        tiles = {name: tiles[name] for name in used}
    return str(fingerprint({"job": facts, "tiles": tiles})["hash"])


def _count_done(job: SlideCut | ImagesCut, spec: TileSpec) -> int | None:
    """How many patches the archive has, if its fingerprint is that of the job. Reads its last bytes only."""
    try:
        source = open_source(job.output)
    except UserError:  # usually it does not exist yet
        return None
    try:
        match = COMMENT.search(source.read_many([(max(0, source.size - TAIL), TAIL)])[0])
    finally:
        source.close()
    return int(match[2]) if match and match[1].decode() == _fingerprint(job, spec) else None


def _of_slide(job: SlideCut, spec: TileSpec) -> Iterator[Patch]:
    reader = open_slide(job.path)
    try:
        if coarse := too_coarse(level_mpps(reader, job.mpp0), spec.mpp, job.max_enlargement):
            raise UserError(f"the slide is too coarse: {coarse}", file=public(job.path), key="max_enlargement")
        width, height = reader.level_shapes[0]
        tiles = tiles_of(tissue_of(reader, job.mpp0, job.mask_path, spec), width, height, job.mpp0, spec)
        centres = tiles.centres()
        for first in range(0, len(tiles), BATCH):
            regions = read_regions(reader, centres[first : first + BATCH], spec.size_px, spec.mpp, mpp0=job.mpp0)
            for (x, y), region in zip(tiles.coords[first : first + BATCH].tolist(), regions, strict=True):
                yield x, y, region.pixels
    finally:
        reader.close()


def _of_images(job: ImagesCut, spec: TileSpec, refused: list[str]) -> Iterator[Patch]:
    size, step = spec.size_px, spec.size_px - spec.overlap_px
    scale = job.mpp / spec.mpp if job.mpp else 1.0
    if job.mpp and (coarse := too_coarse([job.mpp], spec.mpp, job.max_enlargement)):
        raise UserError(f"the images are too coarse: {coarse}", key="max_enlargement", found=job.mpp)
    for path in job.paths:
        name = path.rpartition("/")[2]
        try:
            pixels = read_image(path)
        except (UserError, UnreadableUnit) as e:
            refused.append(f"{name}: {e}")
            continue
        height, width = (max(1, round_half_up(side * scale)) for side in pixels.shape[:2])
        if min(height, width) < size:
            resampled = f" at {spec.mpp:g} µm" if job.mpp else ""
            refused.append(f"{name}: {width} x {height} pixels{resampled}, expected at least {size} x {size}")
            continue
        pixels = resize(pixels, width, height)
        for y in tile_grid(height, size, step).tolist():
            for x in tile_grid(width, size, step).tolist():
                yield round_half_up(x / scale), round_half_up(y / scale), pixels[y : y + size, x : x + size]


def _write(output: str, patches: Iterable[Patch], size: int, made_of: str) -> int:
    """Write an archive of the patches and publish it when complete; returns their number. If there are none, no archive
    is left, nor an earlier one."""
    folder, _, name = output.rpartition("/")
    count = 0
    with tempfile.TemporaryDirectory(prefix="pathray-") as scratch:
        path = Path(scratch) / "patches.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for x, y, pixels in patches:
                info = zipfile.ZipInfo(f"patch_{count:03d}_{size}_x{x}_y{y}.png", EPOCH)
                info.external_attr, info.create_system = 0o644 << 16, 3
                archive.writestr(info, _png(pixels))
                count += 1
            archive.comment = f"pathray patches {made_of} {count}\n".encode()
        store = Storage.of(folder or ".")
        if count:
            store.put(path, name)
        else:
            store.remove(name)
    return count


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "png")
    return file.getvalue()
