"""Reads a feature store: memory-mapped, one slide at a time. Not here: its files (mil.store.format), building it."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mil.store.format import DESCRIPTION, MEANS, SCHEMA, SCHEMA_VERSION, SLIDES, coords_file, features_file
from pathray.errors import MissingFile, UserError
from pathray.store.sealed_parquet import of_bytes

Features = npt.NDArray[np.floating[Any]]


class Store:
    """An open store. Pickles as its path. `slides` has the columns of mil.store.format.SCHEMA; slide i is its row i.

    MissingFile if there is none at `path`; UserError if it is damaged, cut short, or from a newer version.
    """

    def __init__(self, path: str) -> None:
        self.path = str(Path(path).absolute())
        self.meta = _description(Path(self.path))
        self.dim, self.dtype = int(self.meta["dim"]), np.dtype(self.meta["settings"]["dtype"])
        where = Path(self.path) / SLIDES
        self.slides: pa.Table = of_bytes(_bytes(where), str(where), "index of a feature store")
        if self.slides.schema.names != SCHEMA.names:
            raise UserError("not the index of a feature store", file=str(where), found=self.slides.schema.names[:4])
        self._columns = {name: self.slides[name].to_numpy() for name in ("chunk", "start", "rows", "scale")}
        self._check_sizes()
        self._maps: dict[str, npt.NDArray[Any]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def __len__(self) -> int:
        return int(self.slides.num_rows)

    @cached_property
    def ids(self) -> list[str]:
        return [str(name) for name in self.slides["slide_id"].to_pylist()]

    @cached_property
    def index(self) -> dict[str, int]:
        """The row of each slide id."""
        return {name: i for i, name in enumerate(self.ids)}

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Tiles of each slide `[S]`."""
        return np.asarray(self._columns["rows"], np.int64)

    @property
    def capped(self) -> list[int]:
        """The slides that have lost tiles."""
        listed = self.slides["listed_rows"].to_numpy()
        return [int(i) for i in np.flatnonzero(self._columns["rows"] < listed)]

    @property
    def means(self) -> npt.NDArray[np.float32]:
        """The mean of all features of each slide's bag `[S, D]`."""
        where = Path(self.path) / MEANS
        try:
            found: npt.NDArray[np.float32] = np.load(where, allow_pickle=False)
        except (OSError, ValueError) as e:
            raise UserError("the store is damaged", file=str(where), found=str(e)[:200]) from e
        return found

    def features(self, slide: int) -> Features:
        """Features `[N, D]`, a view of the file."""
        return self._part(slide, features_file, self.dtype, self.dim)

    def positions(self, slide: int) -> npt.NDArray[np.float32] | None:
        """Upper left corners `[N, 2]` (x, y) in sides of a tile; None for a slide without coords or side."""
        side, known = self.slides["side"][slide].as_py(), self.slides["has_coords"][slide].as_py()
        if side is None or not known:
            return None
        return np.asarray(self.stored_coords(slide) * (float(self._columns["scale"][slide]) / side), np.float32)

    def stored_coords(self, slide: int) -> npt.NDArray[np.int32]:
        """The integers `[N, 2]`; `scale` times them are coordinates in the slide's `unit`."""
        return self._part(slide, coords_file, np.dtype(np.int32), 2)

    def check(self, slide: int) -> None:
        """UserError if a slide's bytes are no longer those that were written."""
        digest = hashlib.sha256(np.ascontiguousarray(self.features(slide)).data)
        digest.update(np.ascontiguousarray(self.stored_coords(slide)).data)
        expected = self.slides["sha256"][slide].as_py()
        if digest.hexdigest() != expected:
            file = str(Path(self.path) / features_file(int(self._columns["chunk"][slide])))
            raise UserError("the store is damaged", file=file, key=self.ids[slide], expected=expected)

    def _part(self, slide: int, file: Any, dtype: np.dtype[Any], width: int) -> npt.NDArray[Any]:
        name = file(int(self._columns["chunk"][slide]))
        if name not in self._maps:
            self._maps[name] = np.memmap(Path(self.path) / name, dtype, "r").reshape(-1, width)
        start = int(self._columns["start"][slide])
        return self._maps[name][start : start + int(self._columns["rows"][slide])]

    def _check_sizes(self) -> None:
        """UserError for a file that is missing or shorter than the index says."""
        chunk, end = self._columns["chunk"], self._columns["start"] + self._columns["rows"]
        for number in np.unique(chunk).tolist():
            rows = int(end[chunk == number].max())
            for name, width in ((features_file(number), self.dim * self.dtype.itemsize), (coords_file(number), 8)):
                where = Path(self.path) / name
                size = where.stat().st_size if where.exists() else None
                if size is None or size < rows * width:
                    found = "no such file" if size is None else f"{size} bytes"
                    raise UserError("the store is damaged", file=str(where), found=found, expected=rows * width)


def _description(folder: Path) -> dict[str, Any]:
    where = folder / DESCRIPTION
    try:
        found = json.loads(_bytes(where))
        version = found["schema_version"]
    except (ValueError, KeyError, TypeError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError("not the description of a feature store", file=str(where), found=str(e)[:80]) from e
    if version > SCHEMA_VERSION:
        message, expected = "the store was written by a newer version", f"at most {SCHEMA_VERSION}"
        raise UserError(message, file=str(where), found=version, expected=expected)
    return dict(found)


def _bytes(where: Path) -> bytes:
    try:
        return where.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as e:
        raise MissingFile("no feature store", file=str(where), expected="a folder that build_store wrote") from e
