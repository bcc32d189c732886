"""Tissue inside a context, for drawing its targets: shares of small cells, read on demand into a bounded cache.

A slide's mask is read at the coarsest level that is fine enough for the cells, in blocks around the contexts. Small
masks, images and computed masks are reduced whole and stored compactly. Not here: anchors (ijepath.indexing.anchors).
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from pathray.wsi.reader import SlideReader, open_mask

CELLS_PER_TARGET = 8  # along one side of the profile's target
BLOCK = 64  # cells along one side of a block
WHOLE_PIXELS = 1 << 22  # a mask level up to this size is read at once
MASK_CACHE_BYTES = 4 << 20  # decoded mask tiles kept per open mask
WAIT_S = 60.0  # for a thread that reads the same; a read that hangs must not block the others for ever

Shares = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """The tissue of a rectangle of a slide, as an integral image over its cells (`[h + 1, w + 1]`, in cells).

    `origin` is the rectangle's first cell, `cell` the size of a cell in level-0 pixels, both (x, y).
    """

    integral: Floats
    origin: tuple[int, int]
    cell: tuple[float, float]

    def share(self, boxes: Floats) -> Floats:
        """Tissue share `[N]` of boxes (x0, y0, x1, y1) in level-0 pixels `[N, 4]`; tissue is uniform in a cell."""
        x = boxes[:, 0::2] / self.cell[0] - self.origin[0]
        y = boxes[:, 1::2] / self.cell[1] - self.origin[1]
        area = (
            self._at(x[:, 1], y[:, 1])
            - self._at(x[:, 0], y[:, 1])
            - self._at(x[:, 1], y[:, 0])
            + self._at(x[:, 0], y[:, 0])
        )
        whole = (x[:, 1] - x[:, 0]) * (y[:, 1] - y[:, 0])
        shares: Floats = np.clip(area / whole, 0.0, 1.0)
        return shares

    def _at(self, x: Floats, y: Floats) -> Floats:
        """The integral at fractional cell coordinates: bilinear, which is exact for uniform cells."""
        height, width = self.integral.shape
        x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
        i, j = np.minimum(x.astype(np.int64), width - 2), np.minimum(y.astype(np.int64), height - 2)
        u, v = x - i, y - j
        top = (1 - u) * self.integral[j, i] + u * self.integral[j, i + 1]
        bottom = (1 - u) * self.integral[j + 1, i] + u * self.integral[j + 1, i + 1]
        values: Floats = (1 - v) * top + v * bottom
        return values


@dataclass(frozen=True)
class _Cells:
    """How a slide's mask is divided into cells: `factor` x `factor` pixels of `level`."""

    level: int
    factor: int
    cell: tuple[float, float]
    shape: tuple[int, int]  # cells (height, width)
    whole: bool
    nbytes: int = 256


@dataclass(frozen=True)
class Blocks:
    """Shares of a whole mask in blocks of BLOCK² cells, equal ones stored once; as bits where all are 0 or 255.

    A computed mask is mostly blocks of all tissue or all glass, so it takes about a fiftieth of its cells' bytes.
    """

    place: npt.NDArray[np.int32]  # [rows, columns] of blocks: index into `kinds`
    kinds: Shares  # [n, BLOCK * BLOCK], or [n, BLOCK * BLOCK / 8] as bits

    @classmethod
    def of(cls, shares: Shares) -> Blocks:
        """From shares `[h, w]`."""
        rows, columns = (-(-side // BLOCK) for side in shares.shape)
        padded = np.pad(shares, ((0, rows * BLOCK - shares.shape[0]), (0, columns * BLOCK - shares.shape[1])))
        if not np.any((shares > 0) & (shares < 255)):
            padded = np.packbits(padded, axis=1)
        cut = padded.reshape(rows, BLOCK, columns, -1).swapaxes(1, 2).reshape(rows * columns, -1)
        kinds, place = np.unique(cut.view(f"V{cut.shape[1]}").ravel(), return_inverse=True)
        return cls(place.reshape(rows, columns).astype(np.int32), kinds.view(np.uint8).reshape(kinds.size, -1))

    @property
    def nbytes(self) -> int:
        return self.place.nbytes + self.kinds.nbytes

    def part(self, top: int, bottom: int, left: int, right: int) -> Shares:
        """The shares `[bottom - top, right - left]` of a box of cells inside the mask."""
        row, column = top // BLOCK, left // BLOCK
        place = self.place[row : -(-bottom // BLOCK), column : -(-right // BLOCK)]
        blocks = self.kinds[place].reshape(*place.shape, BLOCK, -1)
        cells: Shares = blocks.swapaxes(1, 2).reshape(place.shape[0] * BLOCK, -1)
        if blocks.shape[-1] < BLOCK:
            cells = np.unpackbits(cells, axis=1) * np.uint8(255)
        y, x = row * BLOCK, column * BLOCK
        return cells[top - y : bottom - y, left - x : right - x]


class TissueCache:
    """A cache of slides' tissue shares, at most `max_bytes`. Thread-safe; empty after a fork or unpickling.

    `cell_um` is the wanted size of a cell; in a coarser mask a cell is one of its pixels.
    """

    def __init__(self, cell_um: float, max_bytes: int = 64 << 20, max_open: int = 32) -> None:
        self.cell_um, self.max_bytes, self.max_open = cell_um, max_bytes, max_open
        self._clear()

    def window(self, slide: SlideReader, mask_path: str, mpp0: float, box: tuple[float, float, float, float]) -> Window:
        """The tissue of `box` (level-0 pixels) of a slide. Outside the slide there is none.

        `mask_path` "" computes a mask from the slide. Raises what opening or reading a mask or slide raises.
        """
        key = _key(slide, mask_path, mpp0)
        cells: _Cells = self._once((key, -1, -1), lambda: self._layout(slide, mask_path, mpp0))
        i0, j0 = int(np.floor(box[0] / cells.cell[0])), int(np.floor(box[1] / cells.cell[1]))
        i1, j1 = int(np.ceil(box[2] / cells.cell[0])), int(np.ceil(box[3] / cells.cell[1]))
        share = np.zeros((j1 - j0, i1 - i0), np.uint8)
        height, width = cells.shape
        top, bottom, left, right = max(j0, 0), min(j1, height), max(i0, 0), min(i1, width)
        if bottom > top and right > left:
            if cells.whole:
                whole: Blocks = self._once((key, 0, 0), lambda: Blocks.of(self._whole(slide, mask_path, mpp0, cells)))
                part = whole.part(top, bottom, left, right)
            else:
                part = self._around(mask_path, key, cells, (top, bottom, left, right))
            share[top - j0 : bottom - j0, left - i0 : right - i0] = part
        integral = np.zeros((share.shape[0] + 1, share.shape[1] + 1))
        integral[1:, 1:] = np.cumsum(np.cumsum(share, axis=0, dtype=np.float64), axis=1) / 255.0
        return Window(integral, (i0, j0), cells.cell)

    @property
    def nbytes(self) -> int:
        return self._bytes

    def _layout(self, slide: SlideReader, mask_path: str, mpp0: float) -> _Cells:
        width, height = slide.level_shapes[0]
        wanted = self.cell_um / mpp0
        if not mask_path:
            from pathray.wsi.tissue import MASK_MPP

            size = tuple(max(1, round(side * mpp0 / MASK_MPP)) for side in (width, height))
            return _Cells(0, 1, (width / size[0], height / size[1]), (size[1], size[0]), True)
        mask = self._mask(mask_path)
        scales = [width / w for w, _ in mask.level_shapes]
        serving = [i for i, scale in enumerate(scales) if scale <= wanted]
        level = max(serving, key=lambda i: scales[i]) if serving else int(np.argmin(scales))
        w, h = mask.level_shapes[level]
        factor = max(1, int(wanted / scales[level]))
        cell = (width / w * factor, height / h * factor)
        whole = mask.backend == "image" or w * h <= WHOLE_PIXELS
        return _Cells(level, factor, cell, (-(-h // factor), -(-w // factor)), whole)

    def _whole(self, slide: SlideReader, mask_path: str, mpp0: float, cells: _Cells) -> Shares:
        if not mask_path:
            return compute_shares(slide, mpp0, cells.shape)
        return self._read(mask_path, cells, (0, 0), cells.shape)

    def _around(self, mask_path: str, key: str, cells: _Cells, box: tuple[int, int, int, int]) -> Shares:
        """The cells of `box` (top, bottom, left, right) from the blocks that cover it."""
        top, bottom, left, right = box
        rows, columns = range(top // BLOCK, -(-bottom // BLOCK)), range(left // BLOCK, -(-right // BLOCK))

        def block(row: int, column: int) -> Shares:
            first = row * BLOCK, column * BLOCK
            found: Shares = self._once((key, row, column), lambda: self._read(mask_path, cells, first, (BLOCK, BLOCK)))
            return found

        covering: Shares = np.block([[block(row, column) for column in columns] for row in rows])
        top, left = top - rows[0] * BLOCK, left - columns[0] * BLOCK
        return covering[top : top + box[1] - box[0], left : left + box[3] - box[2]]

    def _read(self, mask_path: str, cells: _Cells, first: tuple[int, int], size: tuple[int, int]) -> Shares:
        """`size` cells of a mask from the cell `first` on, both (row, column)."""
        mask, f = self._mask(mask_path), cells.factor
        pixels = mask.read_level(cells.level, first[1] * f, first[0] * f, size[1] * f, size[0] * f) > 0  # outside: 0
        if mask.backend == "image":  # it holds the whole image, which is not needed again
            with self._lock:
                self._masks.pop(mask_path, None)
        counts = pixels.reshape(size[0], f, size[1], f).sum(axis=(1, 3))
        shares: Shares = np.round(counts * (255.0 / f**2)).astype(np.uint8)
        return shares

    def _mask(self, path: str) -> SlideReader:
        self._reset_after_fork()
        with self._lock:
            mask = self._masks.get(path)
            if mask is not None:
                self._masks.move_to_end(path)
                return mask
        mask = open_mask(path, cache_bytes=MASK_CACHE_BYTES)
        with self._lock:
            mask = self._masks.setdefault(path, mask)
            while len(self._masks) > self.max_open:
                self._masks.popitem(last=False)
        return mask

    def _once(self, key: tuple[str, int, int], make: Callable[[], Any]) -> Any:
        """The cached value of `key`, made if missing; other threads that ask for it wait for the first."""
        found = self._get(key)
        if found is not None:
            return found
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
        mine = turn.acquire(timeout=WAIT_S)
        try:
            found = self._get(key)
            if found is None:
                found = make()
                self._put(key, found)
            return found
        finally:
            if mine:
                turn.release()

    def _get(self, key: tuple[str, int, int]) -> Any:
        self._reset_after_fork()
        with self._lock:
            found = self._shares.get(key)
            if found is not None:
                self._shares.move_to_end(key)
        return found

    def _put(self, key: tuple[str, int, int], value: Any) -> None:
        with self._lock:
            if key not in self._shares:
                self._shares[key] = value
                self._bytes += value.nbytes
            while self._bytes > self.max_bytes and len(self._shares) > 1:
                self._bytes -= self._shares.popitem(last=False)[1].nbytes

    def _reset_after_fork(self) -> None:
        if self._pid != os.getpid():
            self._clear()

    def _clear(self) -> None:
        self._pid, self._lock, self._bytes = os.getpid(), threading.Lock(), 0
        self._shares: OrderedDict[tuple[str, int, int], Any] = OrderedDict()
        self._turns: WeakValueDictionary[tuple[str, int, int], Any] = WeakValueDictionary()  # locks, while in use
        self._masks: OrderedDict[str, SlideReader] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return TissueCache, (self.cell_um, self.max_bytes, self.max_open)


def compute_shares(slide: SlideReader, mpp0: float, shape: tuple[int, int]) -> Shares:
    """A computed mask, or the one stored on this node, resized to `shape` cells (height, width), 0 or 255."""
    from pathray.wsi.kept_masks import cached_tissue_mask

    mask = cached_tissue_mask(slide, mpp0) > 0
    rows = np.minimum((np.arange(shape[0]) + 0.5) * mask.shape[0] / shape[0], mask.shape[0] - 1).astype(np.int64)
    columns = np.minimum((np.arange(shape[1]) + 0.5) * mask.shape[1] / shape[1], mask.shape[1] - 1).astype(np.int64)
    shares: Shares = mask[rows][:, columns].astype(np.uint8) * np.uint8(255)
    return shares


def _key(slide: SlideReader, mask_path: str, mpp0: float) -> str:
    """Cache key of a slide's mask: slides of other sizes or spacings may share a mask file, but have other cells."""
    width, height = slide.level_shapes[0]
    return f"{mask_path or slide.path}|{width}x{height}@{mpp0}"
