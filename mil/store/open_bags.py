"""Opens the bag of a slide: an H5 file, or a slide in the predecessor's store, named FOLDER/index_arrays.npz#SLIDE_ID.

Not here: the layouts (pathray.features.read_bags, mil.store.index_arrays), which bags there are (mil.store.sources).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mil.store.index_arrays import INDEX, ArrayIndex, read_array_index
from pathray.errors import MissingFile
from pathray.features.read_bags import PIXELS, BagFile, open_bag

MARK = "#"


def paths_of(folder: str) -> dict[str, str]:
    """The name of each slide's bag, by slide id."""
    return {one: f"{Path(folder) / INDEX}{MARK}{one}" for one in read_array_index(folder).ids}


@contextlib.contextmanager
def open_bag_of(path: str) -> Iterator[BagFile]:
    """The bag at a path, an H5 file or a slide of the predecessor's store. Raises as open_bag and read_array_index."""
    index, mark, slide = path.partition(f"{INDEX}{MARK}")
    if not mark:
        with open_bag(path) as bag:
            yield bag
        return
    found = read_array_index(index)
    if slide not in found.ids:
        raise MissingFile("the store has no such slide", file=f"{index}{INDEX}", key=slide)
    yield _open_slide(found, found.ids.index(slide), path)


def state_of(path: str) -> tuple[int, int]:
    """Bytes and time of change (ns) of the file, or files, that a bag is in. OSError if one is missing."""
    index, mark, slide = path.partition(f"{INDEX}{MARK}")
    files = [Path(path)]
    if mark:
        found = read_array_index(index)
        chunk = int(found.chunks[found.ids.index(slide)]) if slide in found.ids else 0
        kinds = ("features", "coords") if found.has_coords else ("features",)
        files = [Path(index) / INDEX, *(found.file(kind, chunk) for kind in kinds)]
    states = [os.stat(file) for file in files]
    return sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)


def file_of(path: str) -> str:
    """The file that has to be there for a bag."""
    index, mark, _ = path.partition(f"{INDEX}{MARK}")
    return f"{index}{INDEX}" if mark else path


def _open_slide(index: ArrayIndex, i: int, path: str) -> BagFile:
    chunk, start, rows = int(index.chunks[i]), int(index.offsets[i]), int(index.lengths[i])

    def part(kind: str, dtype: np.dtype[Any], width: int) -> npt.NDArray[Any]:
        whole = np.memmap(index.file(kind, chunk), dtype, "r").reshape(-1, width)
        return whole[start : start + rows]

    data = {"features": part("features", index.dtype, index.dim)}
    if index.has_coords:
        data["coords"] = part("coords", np.dtype(np.int32), 2)
    return BagFile(path, "features", rows, index.dim, index.dtype, {}, {}, PIXELS, data)
