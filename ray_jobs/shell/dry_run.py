"""The checks of `--dry-run` beyond the config: inputs exist, slides have a spacing, and how many there are.

They read headers only: no pixel is decoded, Ray is not started, nothing is written. Not here: checks before every start
of a job.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pathray.errors import MissingFile, UserError
from pathray.reports.units import check_success, describe
from pathray.store.storage import file_state
from pathray.urls import public
from pathray.wsi.spacing import MAX_ENLARGEMENT, level_mpps, too_coarse

log = logging.getLogger(__name__)
SHOWN = 10


def tell(*units: tuple[int, str]) -> None:
    """Log the last line of a dry run: the number of units that the job would process."""
    counts = ", ".join(f"{count:,} {what}" for count, what in units)
    log.info("dry run: %s; nothing was started or written", counts)


@dataclass(frozen=True)
class Slide:
    """A slide from a manifest or an index: `spacings` of its levels from an index, `mpp` from a manifest,
    `fallback_mpp` for a slide without a spacing."""

    slide_id: str
    path: str
    mask_path: str = ""
    mpp: float | None = None
    fallback_mpp: float | None = None
    spacings: tuple[float, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Needs:
    """The spacings that will be read, and how far a slide may be enlarged for them."""

    mpps: tuple[float, ...] = ()
    max_enlargement: float = MAX_ENLARGEMENT
    backend: str = "auto"


def check_slides(slides: Sequence[Slide], source: str, min_success_fraction: float, needs: Needs = Needs()) -> int:
    """The number of slides that exist, have a spacing and are fine enough. UserError, naming the others and the file
    `source` that lists them, if there are more than `min_success_fraction` allows; otherwise they are logged."""
    from ray_jobs.extract.actors import map_in_threads

    errors = map_in_threads(lambda slide: fault_of(slide, needs), slides)
    rows = [
        {"slide_id": slide.slide_id, "status": "failed" if error else "ok", "error": error}
        for slide, error in zip(slides, errors, strict=True)
    ]
    check_success(rows, "slide_id", "slides", min_success_fraction, source)
    bad = [f"{row['slide_id']}: {row['error']}" for row in rows if row["error"]]
    for line in bad[:SHOWN]:
        log.warning("would fail: %s", line)
    return len(rows) - len(bad)


def fault_of(slide: Slide, needs: Needs = Needs()) -> str:
    """Why the slide would fail, judged by its header; "" if nothing is wrong."""
    try:
        if slide.error:
            return slide.error
        file_state(slide.path)
        if slide.mask_path:
            file_state(slide.mask_path)
        spacings = slide.spacings or _spacings(slide, needs.backend)
        found = (too_coarse(spacings, mpp, needs.max_enlargement) for mpp in needs.mpps)
        return next((f"the slide is too coarse: {coarse}" for coarse in found if coarse), "")
    except AssertionError:
        raise
    except Exception as e:  # any error of a file system or decoder is a failure of this slide only
        return describe(e)


def _spacings(slide: Slide, backend: str) -> tuple[float, ...]:
    from pathray.wsi.reader import open_slide

    reader = open_slide(slide.path, backend=backend)
    try:
        mpp0 = slide.mpp or reader.mpp or slide.fallback_mpp
        if mpp0 is None:
            message = (
                "the slide does not say its pixel size: add an `mpp` column (micrometres per pixel) to the manifest"
            )
            raise UserError(message, file=public(slide.path), key="mpp", found=reader.spacing_note or None)
        return level_mpps(reader, mpp0)
    finally:
        reader.close()


def of_manifest(rows: Iterable[Any]) -> list[Slide]:
    """The slides of a manifest's rows."""
    return [Slide(r.slide_id, r.wsi_path, r.mask_path, r.mpp, error=r.error) for r in rows]


def of_index(rows: Iterable[Mapping[str, Any]]) -> list[Slide]:
    """The slides of an index's rows with status ok."""
    return [
        Slide(r["slide_id"], r["wsi_path"], r["mask_path"] or "", spacings=tuple(r["wsi_spacings_mpp"]))
        for r in rows
        if r["status"] == "ok"
    ]


def of_catalog(catalog: Any) -> list[Slide]:
    """The slides of an anchor catalog."""
    columns, found = ("slide_id", "wsi_path", "mask_path", "wsi_level0_spacing_mpp"), dict[str, Slide]()
    for batch in catalog.batches(columns, 1 << 16):
        ids = batch.column("slide_id").to_pylist()
        if len(set(ids) - found.keys()):
            for slide_id, path, mask, mpp in zip(ids, *(batch.column(c).to_pylist() for c in columns[1:]), strict=True):
                found.setdefault(slide_id, Slide(slide_id, path, mask or "", spacings=(mpp,)))
    return list(found.values())


def check_files(paths: Sequence[str], source: str, key: str) -> int:
    """The number of files. MissingFile naming the first missing one and the number of others."""
    from ray_jobs.extract.actors import ABSENT, map_in_threads, state_of

    states = map_in_threads(state_of, paths)
    lost = [path for path, state in zip(paths, states, strict=True) if state == ABSENT]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        found = f"no {public(lost[0])}{more}"
        raise MissingFile("some of the listed files do not exist", file=source, key=key, found=found)
    return len(paths)
