"""Reads bags of features: the layouts of Pathray, CLAM, TRIDENT and STAMP, and plain H5 files of other tools.

    features [N, D] or [1, N, D], also `feats`      floats
    coords   [N, 2]   upper left corners (x, y): level-0 pixels, or µm where an attribute `unit` says so (STAMP)

Tools differ in the unit of `coords` and in where they say how large a tile is. `Bag.positions` is in sides of a tile,
so that one slide gives equal positions in every layout. Not here: writing (pathray.features.bags).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.errors import UserError
from pathray.features.bags import open_h5

FEATURE_KEYS = ("features", "feats")
PIXELS, MICRONS = "px", "um"
UNITS = dict.fromkeys(("px", "pixel", "pixels"), PIXELS) | dict.fromkeys(
    ("um", "µm", "μm", "micron", "microns"), MICRONS
)
OF_THE_FILE = ("schema_version", "fingerprint", "provenance")  # attributes that do not describe tiles
REPEATED = 0.01  # the largest share of rows that may stand where another one does
Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class Bag:
    """`features` `[N, D]` as stored. `coords` `[N, 2]` (of volumes `[N, 3]`): int64, or float64 where the file has
    fractions; in `unit`; None if the file has none. `tile`: the attributes that describe the tiles. `provenance`: {} in
    files of other tools."""

    features: Numbers
    coords: Numbers | None
    tile: dict[str, Any]
    provenance: dict[str, Any]
    unit: str = PIXELS

    @property
    def side(self) -> float | None:
        """The side of a tile in `unit`; where the file does not say it, the least distance between two columns or rows
        of tiles. None if that cannot be told."""
        return stated_side(self.tile, self.unit) or inferred_side(self.coords)

    @property
    def positions(self) -> npt.NDArray[np.float64] | None:
        """Upper left corners `[N, 2]` (x, y) in sides of a tile; None without coords or a side, and for volumes."""
        side = self.side
        if self.coords is None or side is None or self.coords.shape[1] != 2:
            return None
        return np.asarray(self.coords, np.float64) / side


@dataclass(frozen=True)
class BagFile:
    """An open H5 file with a bag, whose features are read in ranges of rows."""

    path: str
    key: str
    rows: int
    dim: int
    dtype: np.dtype[Any]
    tile: dict[str, Any]
    provenance: dict[str, Any]
    unit: str
    _file: Any = field(repr=False)

    @cached_property
    def coords(self) -> Numbers | None:
        """`[N, 2]`, as in `Bag`. UserError where they do not match the features, are not finite, or put many rows at
        few positions."""
        if "coords" not in self._file:
            return None
        raw = np.asarray(self._file["coords"])
        raw = raw[0] if raw.ndim == 3 and raw.shape[0] == 1 else raw
        if raw.shape not in ((self.rows, 2), (self.rows, 3)) or raw.dtype.kind not in "iuf":
            found, expected = f"{raw.dtype}{list(raw.shape)}", f"numbers [{self.rows}, 2], one row per feature"
            raise UserError("coords do not match the features", file=self.path, found=found, expected=expected)
        return _checked(raw, self.path)

    def read(self, start: int = 0, stop: int | None = None) -> Numbers:
        """Features `[n, D]` of a range of rows, as stored. UserError if one is not finite."""
        stop = self.rows if stop is None else min(stop, self.rows)
        data = self._file[self.key]
        values = np.asarray(data[0, start:stop] if data.ndim == 3 else data[start:stop])
        if not np.isfinite(values).all():
            row = start + int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise UserError("features are not finite", file=self.path, row=row, key=self.key, found="NaN or inf")
        return values


@contextlib.contextmanager
def open_bag(path: str) -> Iterator[BagFile]:
    """The bag at a path or URL, for reading in parts.

    MissingFile; UserError with the reason: not H5, no features, a wrong shape or type, no rows, an unknown unit, or a
    newer version.
    """
    with open_h5(path) as file:
        key = next((k for k in FEATURE_KEYS if k in file), None)
        if key is None:
            expected = " or ".join(FEATURE_KEYS)
            raise UserError("the bag has no features", file=path, found=sorted(file), expected=expected)
        data = file[key]
        shape: tuple[int, ...] = getattr(data, "shape", ())
        shape = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
        if len(shape) != 2 or data.dtype.kind != "f":
            found = f"{getattr(data, 'dtype', type(data).__name__)}{list(shape)}"
            raise UserError("not a bag of features", file=path, key=key, found=found, expected="floats [N, D]")
        if 0 in shape:
            raise UserError("the bag is empty", file=path, key=key, found=list(shape), expected="at least one row")
        tile = _attributes(file)
        provenance = json.loads(file.attrs.get("provenance", "{}"))
        yield BagFile(path, key, shape[0], shape[1], data.dtype, tile, provenance, _unit(tile, path), file)


def read_bag(path: str) -> Bag:
    """Read a whole bag of Pathray, CLAM, TRIDENT, STAMP or another tool: ``features`` ``[N, D]``, or ``feats``; and
    ``coords`` ``[N, 2]`` in level-0 pixels or µm, where it has any.

    Raises as `open_bag`; also UserError for features or coords that are not finite, coords of another length, and
    coords that put many rows at few positions.
    """
    with open_bag(path) as bag:
        return Bag(bag.read(), bag.coords, bag.tile, bag.provenance, bag.unit)


def stated_side(tile: Mapping[str, Any], unit: str) -> float | None:
    """The side of a tile in `unit`, as the file's attributes say; None if they do not."""
    if unit == MICRONS:
        return _number(tile, "tile_size_um") or _number(tile, "tile_size")
    if (side := _number(tile, "patch_size_level0")) is not None:
        return side
    patch = _number(tile, "patch_size")
    return patch * _downsample(tile) if patch is not None else None


def inferred_side(coords: Numbers | None) -> float | None:
    """The least distance between two columns, or two rows, of tiles; None for fewer than two of each."""
    if coords is None:
        return None
    steps = [np.diff(np.unique(coords[:, axis])) for axis in (0, 1)]
    least = [float(step.min()) for step in steps if step.size]
    return min(least) if least else None


def _checked(raw: Numbers, path: str) -> Numbers:
    if not np.isfinite(raw).all():
        row = int(np.flatnonzero(~np.isfinite(raw).all(axis=1))[0])
        raise UserError("coords are not finite", file=path, row=row, key="coords", found=raw[row].tolist())
    whole = raw.astype(np.int64)
    coords = whole if raw.dtype.kind != "f" or np.array_equal(whole, raw) else raw.astype(np.float64)
    distinct = len(np.unique(coords, axis=0))
    if len(coords) - distinct > REPEATED * len(coords):
        found, expected = f"{len(coords)} rows at {distinct} positions", "a position of its own for each tile"
        raise UserError(
            "coords put many tiles at few positions", file=path, key="coords", found=found, expected=expected
        )
    return coords


def _attributes(file: Any) -> dict[str, Any]:
    """What describes the tiles: the attributes of the file, and over them those of `coords`."""
    own = file["coords"].attrs if "coords" in file else {}
    whole = {name: value for name, value in file.attrs.items() if name not in OF_THE_FILE}
    return {name: _plain(value) for name, value in {**whole, **own}.items()}


def _unit(tile: Mapping[str, Any], path: str) -> str:
    said = str(tile.get("unit", PIXELS))
    if said.lower() not in UNITS:
        raise UserError("unknown unit of coords", file=path, key="unit", found=said, expected="px or um")
    return UNITS[said.lower()]


def _downsample(tile: Mapping[str, Any]) -> float:
    """CLAM's `downsample` of the level that its tiles were cut from: (x, y), or one number."""
    value = np.ravel(np.asarray(tile.get("downsample", 1.0)))
    return float(value[0]) if value.size and value.dtype.kind in "iuf" and value[0] > 0 else 1.0


def _number(tile: Mapping[str, Any], name: str) -> float | None:
    value = tile.get(name)
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.item() if isinstance(value, np.generic) else value
