"""The direct TIFF reader: reads, decodes and assembles single tiles without a slide library.

Pixels equal those of tiffslide and OpenSlide. It supports what `pathray.wsi.backends.pyramid` parses; other files are
left to other backends.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.errors import UnreadableUnit
from pathray.files.images import without_halftones
from pathray.urls import is_url, public
from pathray.wsi.backends.decode import JPEG, JPEG_2000, Truncated
from pathray.wsi.backends.formats import is_tiff
from pathray.wsi.backends.pages import NotServed
from pathray.wsi.backends.pyramid import Level, Pyramid, parse
from pathray.wsi.backends.source import ByteSource, open_source
from pathray.wsi.backends.tiles import TileCache
from pathray.wsi.resize import resize

Box = tuple[int, int, int, int]  # x, y, width, height in a level's pixels
LOSSY = JPEG | JPEG_2000
_tokens = itertools.count()


class TiffReader:
    """A slide (``[h, w, 3]``, outside white) or, with ``mask=True``, a mask (``[h, w]``, outside 0).

    Safe in several threads and after a fork: reads are positioned, and the tile cache is per process.
    """

    backend = "tiff"

    def __init__(
        self, path: str, source: ByteSource, pyramid: Pyramid, cache: TileCache, *, mask: bool = False
    ) -> None:
        self.path, self.mpp, self.mpp_source = path, pyramid.spacing.mpp, pyramid.spacing.source
        self.spacing_note = pyramid.spacing.note
        self.level_shapes = tuple((level.width, level.height) for level in pyramid.levels)
        self.level_downsamples = downsamples(self.level_shapes)
        self._source, self._levels, self._cache, self._mask = source, pyramid.levels, cache, mask
        self._token, self._background = next(_tokens), 0 if mask else 255
        self._remote, self._aperio = is_url(path), pyramid.aperio
        self._decoded_partly = self._decoded_again = 0

    @classmethod
    def open(cls, path: str, cache: TileCache, *, mask: bool = False) -> TiffReader:
        """Raises NotServed for a file that is not a TIFF or not a supported one, UnreadableUnit for a damaged one."""
        source = open_source(path)
        try:
            return cls(path, source, _parse_pyramid(path, source, mask), cache, mask=mask)
        except BaseException:
            source.close()
            raise

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """Pixels of a box of one level; see `SlideReader`."""
        at, box = self._levels[level], (x, y, width, height)
        if x % at.tile_width == 0 and width == at.tile_width and y % at.tile_height == 0 and height == at.tile_height:
            tile = self._whole_tile(level, at, box)
            if tile is not None:
                return tile
        return self._assemble(at, box, self._tiles(level, at, _tiles_in(at, box)))

    def read_boxes(self, level: int, boxes: Sequence[Box]) -> list[npt.NDArray[np.uint8]]:
        """Pixels of several boxes of one level; a tile that several boxes share is fetched and decoded once."""
        at, wanted = self._levels[level], dict[int, int]()
        for box in boxes:
            for index, rows in _tiles_in(at, box).items():
                wanted[index] = max(rows, wanted.get(index, 0))
        tiles = self._tiles(level, at, wanted)
        return [self._assemble(at, box, tiles) for box in boxes]

    @property
    def is_jpeg2000(self) -> bool:
        """Whether any level is JPEG 2000, whose missing tiles some libraries fill silently."""
        return any(level.compression in JPEG_2000 for level in self._levels)

    def close(self) -> None:
        self._cache.forget(self._token)
        self._source.close()

    def _whole_tile(self, level: int, at: Level, box: Box) -> npt.NDArray[np.uint8] | None:
        """A box that is exactly one tile, without caching or copying since it is rarely read again. None at edges."""
        x, y, width, height = box
        if x < 0 or y < 0 or x + width > at.width or y + height > at.height:
            return None
        index = y // at.tile_height * at.across + x // at.tile_width
        if at.counts[index] == 0 or self._cache.get((self._token, level, index)) is not None:
            return None
        tile = self._decode(level, at, index, height, self._fetch(at, self._segments(at, index)))[:height, :width]
        return tile if tile.flags.writeable and tile.flags.c_contiguous else tile.copy()

    def _tiles(self, level: int, at: Level, wanted: dict[int, int]) -> dict[int, npt.NDArray[np.uint8]]:
        """Decoded tiles by index, with at least the wanted rows; sparse tiles are left out."""
        tiles, missing = dict[int, npt.NDArray[np.uint8]](), []
        for index, rows in wanted.items():
            tile = self._cache.get((self._token, level, index))
            if tile is not None and tile.shape[0] >= rows:
                tiles[index] = tile
            elif at.counts[index] == 0:
                if self._aperio and level > 0:
                    tiles[index] = self._from_finer(level, at, index)
            else:
                self._decoded_again += tile is not None
                missing.append(index)
        fetched = None
        if self._remote and len(missing) > 1:  # in one request
            fetched = iter(self._fetch(at, [segment for index in missing for segment in self._segments(at, index)]))
        for index in missing:
            segments = self._segments(at, index)
            data = self._fetch(at, segments) if fetched is None else list(itertools.islice(fetched, len(segments)))
            tiles[index] = self._decode(level, at, index, self._worthwhile_rows(at, wanted[index]), data)
            self._cache.put((self._token, level, index), tiles[index])
        return tiles

    def _from_finer(self, level: int, at: Level, index: int) -> npt.NDArray[np.uint8]:
        """A tile that an Aperio scanner omitted from a lower level, made from the next finer level as in OpenSlide."""
        row, column = divmod(index, at.across)
        left, top = column * at.tile_width, row * at.tile_height
        width, height = min(at.tile_width, at.width - left), min(at.tile_height, at.height - top)
        (w, h), (fw, fh) = (at.width, at.height), self.level_shapes[level - 1]
        x0, x1 = left * fw // w, (left + width) * fw // w
        y0, y1 = top * fh // h, (top + height) * fh // h
        tile = resize(self.read_level(level - 1, x0, y0, x1 - x0, y1 - y0), width, height, mask=self._mask)
        self._cache.put((self._token, level, index), tile)
        return tile

    def _worthwhile_rows(self, at: Level, rows: int) -> int:
        """The rows to decode: only those wanted, unless the rest of partly decoded tiles was often needed later."""
        if rows == at.tile_height or 4 * self._decoded_again > self._decoded_partly + 16:
            return at.tile_height
        self._decoded_partly += 1
        return rows

    def _segments(self, at: Level, index: int) -> list[int]:
        return [index] if at.planes == 1 else [index + p * at.across * at.down for p in range(at.planes)]

    def _fetch(self, at: Level, segments: list[int]) -> list[bytes]:
        return self._source.read_many([(int(at.offsets[i]), int(at.counts[i])) for i in segments])

    def _decode(self, level: int, at: Level, index: int, rows: int, data: Sequence[bytes]) -> npt.NDArray[np.uint8]:
        """The tile ``[≥ rows, w, 3]`` (a mask: ``[≥ rows, w]``) from the data of its planes."""
        planes = []
        for segment, piece in zip(self._segments(at, index), data, strict=True):
            if len(piece) < at.counts[segment]:
                raise self._unreadable("truncated", level, at, index, "the file ends within the tile")
            try:
                planes.append(at.decode(piece, segment, rows))
            except Truncated as e:
                raise self._unreadable("truncated", level, at, index, str(e)) from e
            except Exception as e:  # each codec has its own exceptions
                raise self._unreadable("decode", level, at, index, f"{type(e).__name__}: {e}") from e
        pixels = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        down, across = divmod(index, at.across)
        need = (
            min(rows, at.height - down * at.tile_height),
            min(at.tile_width, at.width - across * at.tile_width),
        )
        if pixels.shape[0] < need[0] or pixels.shape[1] < need[1]:
            raise self._unreadable("decode", level, at, index, f"decoded {pixels.shape}, expected at least {need}")
        return _as_mask(pixels, at) if self._mask else _as_rgb(pixels, at.white)

    def _unreadable(self, reason: str, level: int, at: Level, index: int, what: str) -> UnreadableUnit:
        row, column = divmod(index, at.across)
        return UnreadableUnit(
            reason, public(self.path), f"level {level}, tile {index} (row {row}, column {column}): {what}"
        )

    def _assemble(self, at: Level, box: Box, tiles: dict[int, npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        x, y, width, height = box
        shape = (height, width) if self._mask else (height, width, 3)
        covered = _tiles_in(at, box)
        inside = x >= 0 and y >= 0 and x + width <= at.width and y + height <= at.height
        if inside and all(i in tiles for i in covered):
            out = np.empty(shape, np.uint8)
        else:
            out = np.full(shape, self._background, np.uint8)
        for index in covered:
            tile = tiles.get(index)
            if tile is None:
                continue
            row, column = divmod(index, at.across)
            left, top = column * at.tile_width, row * at.tile_height
            x0, x1 = max(x, left, 0), min(x + width, left + at.tile_width, at.width)
            y0, y1 = max(y, top, 0), min(y + height, top + at.tile_height, at.height)
            out[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self._cache, self._mask)


def _reopen(path: str, cache: TileCache, mask: bool) -> TiffReader:
    return TiffReader.open(path, cache, mask=mask)


def _parse_pyramid(path: str, source: ByteSource, mask: bool) -> Pyramid:
    head = source.read_many([(0, 8)])[0] if source.size else b""
    if not head:
        raise UnreadableUnit("truncated", public(path), "the file is empty")
    if not is_tiff(head):
        raise NotServed("not a TIFF")
    try:
        with source.open_buffered() as file:
            return parse(file, mask=mask)
    except (NotServed, UnreadableUnit):
        raise
    except Exception as e:  # tifffile raises many types for damaged files
        raise UnreadableUnit("decode", public(path), f"damaged TIFF structure: {type(e).__name__}: {e}") from e


def downsamples(shapes: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """The downsample of each level relative to the first: the mean of the two sides' ratios, as in OpenSlide."""
    w0, h0 = shapes[0]
    return tuple((w0 / w + h0 / h) / 2 for w, h in shapes)


def _tiles_in(at: Level, box: Box) -> dict[int, int]:
    """The tiles that a box touches, row by row: index → number of the tile's first rows that it needs."""
    x, y, width, height = box
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, at.width), min(y + height, at.height)
    if x0 >= x1 or y0 >= y1:
        return {}
    tile_h, across = at.tile_height, at.across
    columns = range(x0 // at.tile_width, (x1 - 1) // at.tile_width + 1)
    rows = range(y0 // tile_h, (y1 - 1) // tile_h + 1)
    return {row * across + column: min(tile_h, y1 - row * tile_h) for row in rows for column in columns}


def _as_rgb(pixels: npt.NDArray[Any], white: int) -> npt.NDArray[np.uint8]:
    if white:
        pixels = white - pixels
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels[:, :, :1], 3, axis=2)


def _as_mask(pixels: npt.NDArray[Any], at: Level) -> npt.NDArray[np.uint8]:
    """[h, w, samples] of any type → [h, w] uint8; values of other types become 0 or 1.

    The stored numbers are used whatever the photometric interpretation says: bilevel masks written from Python declare
    "0 is white" but use 1 for tissue.
    """
    colours = 3 if pixels.shape[2] >= 3 else 1  # further channels are alpha, which does not mark tissue
    flat = pixels[:, :, 0] if colours == 1 else pixels[:, :, :3].max(axis=2)
    if flat.dtype != np.uint8:
        return (flat > 0).astype(np.uint8)
    if at.meaning is not None:
        meant: npt.NDArray[np.uint8] = at.meaning[flat]
        return meant
    return without_halftones(flat) if at.compression in LOSSY else np.ascontiguousarray(flat)
