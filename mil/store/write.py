"""Writes one slide into a store: its features, its coordinates, and its row of the index. Only blocks of rows are in
memory, so that many tasks may write at a time.

Not here: where a slide goes (mil.store.places), publishing (mil.store.build).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mil.store.cap import kept_rows
from mil.store.format import BLOCK_ROWS, coords_file, features_file, to_integers
from mil.store.open_bags import open_bag_of, state_of
from mil.store.places import BuildSettings, Place, Source
from pathray.errors import UserError
from pathray.features.read_bags import BagFile, inferred_side, stated_side
from pathray.reports.units import describe
from pathray.store.storage import Storage


@dataclass(frozen=True)
class Written:
    """A slide's row of the index and the mean of all its features `[D]`; with an `error` it has neither."""

    source: Source
    row: Mapping[str, Any] | None = None
    mean: npt.NDArray[np.float32] | None = None
    error: str = ""


def write_slide(place: Place) -> Written:
    """Write one slide at its place, and return its row of the index."""
    source = place.source
    try:
        with open_bag_of(source.path) as bag:
            return _write(place, bag)
    except UserError as e:
        return Written(source, error=describe(e))


def digest_of(bag: BagFile) -> str:
    """The digest of a bag's features and coords, as in the index's `source_sha256`: two files of equal content are
    equal, whatever their layout on disk."""
    digest = hashlib.sha256()
    for start in range(0, bag.rows, BLOCK_ROWS):
        digest.update(np.ascontiguousarray(bag.read(start, start + BLOCK_ROWS)).data)
    return _with_coords(digest, bag)


def _write(place: Place, bag: BagFile) -> Written:
    settings, source = place.settings, place.source
    kept = kept_rows(
        bag.rows, settings.max_instances, strategy=settings.cap_strategy, coords=corners(bag),
        grid=settings.cap_grid_size, seed=settings.seed, name=source.slide_id,
    )  # fmt: skip
    if len(kept) != place.rows or bag.dim != place.dim:
        raise UserError("the bag changed while the store was built", file=source.path, found=bag.rows)
    taken, given = hashlib.sha256(), hashlib.sha256()
    total, at = np.zeros(bag.dim), place.start
    with _opened(place.folder, features_file(place.chunk)) as file:
        for start in range(0, bag.rows, BLOCK_ROWS):
            block = bag.read(start, start + BLOCK_ROWS)
            taken.update(np.ascontiguousarray(block).data)
            total += block.sum(axis=0, dtype=np.float64)
            low, high = np.searchsorted(kept, (start, start + len(block)))
            stored = _stored(block[kept[low:high] - start] if high - low < len(block) else block, settings, source.path)
            given.update(stored.data)
            _write_at(file, stored, at)
            at += len(stored)
    coords, scale = _integers(bag, kept)
    with _opened(place.folder, coords_file(place.chunk)) as file:
        _write_at(file, coords, place.start)
    given.update(coords.data)
    side = stated_side(bag.tile, bag.unit)
    size, modified = state_of(source.path) if Storage.of(source.path).local else (None, None)
    row = {
        "slide_id": source.slide_id, "chunk": place.chunk, "start": place.start, "rows": len(kept),
        "listed_rows": bag.rows, "has_coords": corners(bag) is not None, "scale": scale, "unit": bag.unit,
        "side": side or inferred_side(corners(bag)), "side_stated": side is not None, "sha256": given.hexdigest(),
        "source": source.path, "source_bytes": size,
        "source_modified_ns": modified, "source_sha256": _with_coords(taken, bag),
        "encoder": str(bag.tile.get("encoder_sha256", "")),
    }  # fmt: skip
    return Written(source, row, (total / bag.rows).astype(np.float32))


def corners(bag: BagFile) -> npt.NDArray[Any] | None:
    """The corners `[N, 2]` of tiles; None for a bag without, and for the tokens of a volume."""
    return bag.coords if bag.coords is not None and bag.coords.shape[1] == 2 else None


def _stored(block: npt.NDArray[Any], settings: BuildSettings, path: str) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(block, settings.dtype)
    if settings.dtype == "float16" and not np.isfinite(stored).all():
        found = f"a value of {float(np.abs(block).max()):.4g}"
        raise UserError("features do not fit float16", file=path, key="storage.dtype", found=found, expected="float32")
    return stored


def _integers(bag: BagFile, kept: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int32], float]:
    xy = corners(bag)
    if xy is None:
        return np.zeros((len(kept), 2), np.int32), 1.0
    try:
        return to_integers(np.ascontiguousarray(xy[kept]))
    except OverflowError as e:
        raise UserError("coords do not fit", file=bag.path, key="coords", found=str(e), expected="below 2^31") from e


def _opened(folder: str, name: str) -> Any:
    try:
        return open(Path(folder) / name, "r+b", buffering=0)
    except FileNotFoundError as e:
        message, expected = "a task does not see the store's folder", "a folder that all machines share"
        raise UserError(message, file=folder, expected=expected) from e


def _write_at(file: Any, block: npt.NDArray[Any], row: int) -> None:
    """Write rows, the first at row `row`."""
    data = np.ascontiguousarray(block).data.cast("B")
    at, width = 0, data.nbytes // max(1, len(block))
    while at < data.nbytes:
        at += os.pwrite(file.fileno(), data[at:], row * width + at)


def _with_coords(digest: Any, bag: BagFile) -> str:
    if bag.coords is not None:
        digest.update(np.ascontiguousarray(bag.coords).data)
    return str(digest.hexdigest())
