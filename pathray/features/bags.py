"""Writes bags: the features of one slide's tiles in one H5 file, in the layout of CLAM and TRIDENT.

    features [N, D]   float16 or float32
    coords   [N, 2]   int64, upper left corners (x, y) in level-0 pixels, raster order; attributes describe the tiles
    attributes of the file: schema_version, fingerprint, provenance (JSON)

A volume's bag has its tokens instead: coords [N, 3] are their first voxels (slow axis, depth, along a B-scan), and
`pooled` [D] is one vector of the whole volume. A bag is published as a whole or not at all. Equal inputs give equal
bytes. Not here: reading bags, also those of other tools (pathray.features.read_bags), extraction from slides
(pathray.features.slides).
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.errors import UserError
from pathray.features.publish import clear_errors, replacing
from pathray.store.storage import Storage

SCHEMA_VERSION = 1
DTYPES = ("float16", "float32")


class BagWriter:
    """Writes the bag of one slide in ranges of rows, with memory for one range, and publishes it when complete.

    A context manager: `write` all rows in any order; leaving the block publishes the file, and leaving it with an error
    leaves nothing behind. For remote storage the file is written to the local disk and uploaded. Raises StorageError if
    it cannot be written, UserError for features that are not finite or do not fit `dtype`.
    """

    def __init__(
        self,
        path: str,
        coords: npt.NDArray[np.int64],
        dim: int,
        *,
        dtype: str,
        tile: Mapping[str, Any],
        provenance: Mapping[str, Any],
        fingerprint: str,
        pooled: npt.NDArray[Any] | None = None,
    ) -> None:
        assert dtype in DTYPES and coords.ndim == 2 and coords.shape[1] in (2, 3) and len(coords) > 0, coords.shape
        self.path, self.dtype, self._left = path, np.dtype(dtype), np.ones(len(coords), np.bool_)
        import h5py

        with clear_errors(path), contextlib.ExitStack() as stack:
            partial = stack.enter_context(replacing(path))
            self._file = stack.enter_context(h5py.File(partial, "w"))
            self._features = self._file.create_dataset("features", (len(coords), dim), self.dtype)
            placed = self._file.create_dataset("coords", data=coords.astype(np.int64))
            placed.attrs.update(tile)
            self._features.attrs["name"] = tile["name"]
            if pooled is not None:
                check_finite(pooled, pooled, path)
                self._file.create_dataset("pooled", data=pooled.astype(np.float32))
            about = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint}
            self._file.attrs.update(about | {"provenance": json.dumps(provenance, sort_keys=True, allow_nan=False)})
            self._stack = stack.pop_all()

    def write(self, start: int, features: npt.NDArray[Any]) -> None:
        """Write `features` ``[n, D]`` to the rows from `start` on. Each row must be written once."""
        stop = start + len(features)
        assert self._left[start:stop].all(), "rows written twice"
        with np.errstate(over="ignore"):
            stored = features.astype(self.dtype)
        check_finite(features, stored, self.path)
        with clear_errors(self.path):
            self._features[start:stop] = stored
        self._left[start:stop] = False

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:  # the caller's error, not the output's: it propagates unchanged
            self._stack.__exit__(kind, error, trace)
            return
        with clear_errors(self.path), self._stack:
            assert not self._left.any(), f"{int(self._left.sum())} rows of {self.path} were never written"


@dataclass(frozen=True)
class BagSummary:
    """A bag's fingerprint as given to its writer, its number of rows, and the spacings of its tiles and of the
    level that was read (None if not recorded)."""

    fingerprint: str
    rows: int
    mpp: float | None = None
    source_mpp: float | None = None


def read_summary(path: str) -> BagSummary | None:
    """The summary of a bag written by Pathray; None if there is no readable one. Reads no features."""
    try:
        with open_h5(path) as file:
            whole = "features" in file and "coords" in file and len(file["features"]) == len(file["coords"])
            if not whole or "fingerprint" not in file.attrs:
                return None
            source = json.loads(file.attrs.get("provenance", "{}")).get("source", {})
            mpp = _plain(file["coords"].attrs.get("mpp"))
            return BagSummary(str(file.attrs["fingerprint"]), len(file["coords"]), mpp, source.get("source_mpp"))
    except (UserError, ValueError, AttributeError):
        return None


def check_finite(features: npt.NDArray[Any], stored: npt.NDArray[Any], path: str) -> None:
    """UserError if features are not finite, or are no longer finite when `stored`."""
    if np.isfinite(stored).all():
        return
    if np.isfinite(features).all():
        found = f"a value of {float(np.abs(features).max()):.4g}"
        raise UserError("features do not fit float16", file=path, key="dtype", found=found, expected="float32")
    raise UserError("the encoder's features are not finite", file=path, found="NaN or inf")


@contextlib.contextmanager
def open_h5(path: str) -> Iterator[Any]:
    """The H5 file at a path or URL, opened read-only. Raises MissingFile, and UserError if it is not H5 or too new."""
    import h5py

    folder, _, name = path.rpartition("/")
    store = Storage.of(folder or ".")
    with store.open(name) as raw, contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(h5py.File(raw, "r"))
        except (OSError, RuntimeError, io.UnsupportedOperation) as e:
            raise UserError("not an H5 file, or damaged", file=path, found=str(e)[:200]) from e
        version = int(file.attrs.get("schema_version", 0))
        if "fingerprint" in file.attrs and version > SCHEMA_VERSION:
            message = "the bag was written by a newer version"
            raise UserError(message, file=path, found=version, expected=f"at most {SCHEMA_VERSION}")
        yield file


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
