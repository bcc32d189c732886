"""Reads the store of the predecessor, so that build_store can make one of ours of it: no slide is encoded again.

    index_arrays.npz      slide ids, and for each slide: first row in its chunk, number of rows, number of the chunk
    features_<chunk>.bin  float16 or float32 [rows, D]
    coords_<chunk>.bin    int32 [rows, 2], level-0 pixels; may be missing for all chunks

Nothing is unpickled. Arrays are known by the names in NAMES; `dim` and `dtype` may be left out where the files' sizes
say them. Not here: reading a slide (mil.store.open_bags).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mil.store.format import COORD_BYTES, DTYPES
from pathray.errors import MissingFile, UserError

INDEX = "index_arrays.npz"
NAMES = {
    "ids": ("slide_ids", "slide_id", "ids", "names"),
    "offsets": ("offsets", "starts", "row_offsets"),
    "lengths": ("lengths", "num_patches", "counts", "sizes"),
    "chunks": ("chunk_ids", "chunk_map", "chunk_id", "chunks"),
    "dim": ("feat_dim", "feature_dim", "dim", "embed_dim"),
    "dtype": ("dtype", "feat_dtype", "feature_dtype"),
}
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ArrayIndex:
    """Where each slide is. offsets, lengths, chunks `[S]`: first row in the chunk, rows, number of the chunk."""

    folder: Path
    ids: tuple[str, ...]
    offsets: Ints
    lengths: Ints
    chunks: Ints
    dim: int
    dtype: np.dtype[Any]
    has_coords: bool

    def file(self, kind: str, chunk: int) -> Path:
        return _chunk_files(self.folder, kind)[chunk]


def read_array_index(folder: str) -> ArrayIndex:
    """The index of such a store, checked against its files.

    UserError for arrays of objects, missing arrays (each named), arrays of other lengths, a slide that is there twice,
    overlapping slides, and files that are missing or of another size than the index says. MissingFile for no index.
    """
    path = Path(folder) / INDEX
    return _read_index(str(path), _state(path))


def holds_arrays(folder: str) -> bool:
    """Whether a folder is the store of the predecessor."""
    return (Path(folder) / INDEX).is_file()


@lru_cache(maxsize=4)
def _read_index(path: str, state: tuple[int, int]) -> ArrayIndex:
    arrays, folder = _load(path), Path(path).parent
    ids = _texts(arrays["ids"], path)
    offsets, lengths, chunks = (_integers(arrays[key], key, len(ids), path) for key in ("offsets", "lengths", "chunks"))
    if len(set(ids)) < len(ids):
        twice = next(one for i, one in enumerate(ids) if one in ids[:i])
        raise UserError("a slide is there twice", file=path, key=twice, expected="once")
    if (bad := np.flatnonzero((lengths < 1) | (offsets < 0))).size:
        found = f"offset {offsets[bad[0]]}, length {lengths[bad[0]]}"
        raise UserError("not the rows of a slide", file=path, row=int(bad[0]), key=ids[bad[0]], found=found)
    rows, offsets = _rows_of_chunks(path, ids, offsets, lengths, chunks)
    dim, dtype = _type_of(arrays, folder, rows, path)
    has_coords = bool(_chunk_files(folder, "coords"))
    for chunk, count in rows.items():
        _check_size(folder, "features", chunk, count * dim * dtype.itemsize)
        if has_coords:
            _check_size(folder, "coords", chunk, count * COORD_BYTES)
    return ArrayIndex(folder, ids, offsets, lengths, chunks, dim, dtype, has_coords)


def _load(path: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays by their keys in NAMES. UserError naming those that are missing or would have to be unpickled."""
    found: dict[str, npt.NDArray[Any]] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            there = list(file.files)
            for key, names in NAMES.items():
                for name in (name for name in names if name in there and key not in found):
                    found[key] = _array(file, name, path)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError("not an index of arrays", file=path, found=str(e)[:200], expected=".npz") from e
    if missing := [key for key in ("ids", "offsets", "lengths", "chunks") if key not in found]:
        expected = "; ".join(" or ".join(NAMES[key]) for key in missing)
        raise UserError("the index lacks arrays", file=path, found=", ".join(there), expected=expected)
    return found


def _array(file: Mapping[str, npt.NDArray[Any]], name: str, path: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(file[name])
    except ValueError as e:
        if "pickle" not in str(e):
            raise
        message = "an array of objects is not read, since a pickle can run code"
        expected = f"plain texts or numbers: save the index again with {name}={name}.astype(str)"
        raise UserError(message, file=path, key=name, found="dtype object", expected=expected) from e


def _texts(ids: npt.NDArray[Any], path: str) -> tuple[str, ...]:
    if ids.ndim != 1 or ids.dtype.kind not in "USiu" or not len(ids):
        raise UserError("not the ids of slides", file=path, found=f"{ids.dtype}{list(ids.shape)}", expected="texts [S]")
    return tuple(one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in ids.tolist())


def _integers(values: npt.NDArray[Any], key: str, count: int, path: str) -> Ints:
    """UserError unless they are `count` integers; offsets may have one more, the end."""
    if key == "offsets" and values.shape == (count + 1,):
        values = values[:-1]
    if values.shape != (count,) or values.dtype.kind not in "iu":
        found, expected = f"{values.dtype}{list(values.shape)}", f"integers [{count}], one per slide"
        raise UserError("not an array of the slides", file=path, key=NAMES[key][0], found=found, expected=expected)
    return values.astype(np.int64)


def _rows_of_chunks(
    path: str, ids: tuple[str, ...], offsets: Ints, lengths: Ints, chunks: Ints
) -> tuple[dict[int, int], Ints]:
    """The rows of each chunk, and the offsets within chunks: offsets that run on over chunks are made so. UserError for
    slides that overlap or leave a gap."""
    rows, own = dict[int, int](), offsets.copy()
    for chunk in np.unique(chunks).tolist():
        members = np.flatnonzero(chunks == chunk)
        members = members[np.argsort(offsets[members], kind="stable")]
        own[members] -= offsets[members[0]]
        ends = own[members] + lengths[members]
        if (bad := np.flatnonzero(own[members][1:] != ends[:-1])).size:
            i = int(members[bad[0] + 1])
            found, expected = f"row {own[i]} of chunk {chunk}", f"row {ends[bad[0]]}, where the slide before it ends"
            raise UserError(
                "slides overlap or leave a gap", file=path, row=i, key=ids[i], found=found, expected=expected
            )
        rows[chunk] = int(ends[-1])
    return rows, own


def _type_of(
    arrays: Mapping[str, npt.NDArray[Any]], folder: Path, rows: Mapping[int, int], path: str
) -> tuple[int, np.dtype[Any]]:
    """Width and type of the features: as the index says, what it leaves out from the size of the first chunk's file."""
    chunk = min(rows)
    width = _size(folder, "features", chunk) // rows[chunk]  # bytes of a row
    dim = int(arrays["dim"].reshape(-1)[0]) if arrays.get("dim", np.zeros(0)).size else None
    name = str(arrays["dtype"].reshape(-1)[0]) if arrays.get("dtype", np.zeros(0)).size else None
    if name is None and dim:
        name = {2: "float16", 4: "float32"}.get(width // dim)
    name = {"fp16": "float16", "fp32": "float32", "<f2": "float16", "<f4": "float32"}.get(str(name), name)
    if name not in DTYPES:
        found, expected = f"{width} bytes per row, dtype {name}", f"dtype {' or '.join(DTYPES)}, or feat_dim"
        raise UserError("the type of the features cannot be told", file=path, found=found, expected=expected)
    dtype = np.dtype(name)
    return dim or width // dtype.itemsize, dtype


def _check_size(folder: Path, kind: str, chunk: int, expected: int) -> None:
    if (found := _size(folder, kind, chunk)) != expected:
        file = str(_chunk_files(folder, kind)[chunk])
        message = "the file is not as large as the index says"
        raise UserError(message, file=file, key=f"chunk {chunk}", found=f"{found} bytes", expected=f"{expected} bytes")


def _size(folder: Path, kind: str, chunk: int) -> int:
    file = _chunk_files(folder, kind).get(chunk)
    if file is None:
        raise MissingFile("a chunk is missing", file=str(folder / f"{kind}_{chunk:03d}.bin"), key=f"chunk {chunk}")
    return file.stat().st_size


def _chunk_files(folder: Path, kind: str) -> dict[int, Path]:
    found = {path: re.fullmatch(rf"{kind}_(\d+)\.bin", path.name) for path in folder.glob(f"{kind}_*.bin")}
    return {int(match[1]): path for path, match in found.items() if match}


def _state(path: Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except OSError as e:
        raise MissingFile("no index of arrays", file=str(path), expected="a folder with index_arrays.npz") from e
    return state.st_size, state.st_mtime_ns
