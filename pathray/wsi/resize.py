"""Resamples uint8 images: area when shrinking, linear when enlarging, nearest for masks.

Pixel centres are at half integers. Each axis is a banded matrix (an output pixel depends on a few neighbours) that is
multiplied block by block: fractional areas are weighted exactly, at the speed of a matrix product. Reductions by powers
of two use Pillow's `reduce`, which is faster but exact for these only (others are sometimes one too low). Halves are
rounded up. Everything here releases the interpreter lock. Not here: cropping.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
ROWS, COLUMNS = 16, 4  # output pixels per block: the matrices stay narrow


def resize(
    image: npt.NDArray[Any], width: int, height: int, interpolation: str = "area", *, mask: bool = False
) -> Pixels:
    """``[h, w]`` or ``[h, w, c]`` uint8 → ``[height, width(, c)]``.

    Along a shrinking axis, an output pixel is the mean of the input that it covers, including fractions of pixels.
    Along a growing axis, pixels are interpolated linearly between pixel centres. With `mask`, an output pixel is the
    input pixel that contains its centre. Returns the image itself, not a copy, if it already has that size.
    interpolation: area, as above; bilinear or bicubic as Pillow has them, antialiased: what published encoders expect.
    """
    h, w = image.shape[:2]
    assert min(h, w, width, height) > 0, (image.shape, width, height)
    if (h, w) == (height, width):
        return image
    if mask:
        return np.ascontiguousarray(image[_centres(h, height)][:, _centres(w, width)])
    if interpolation != "area":
        return _resize_by_pillow(image, width, height, interpolation)
    if h % height == 0 and w % width == 0 and (h // height * (w // width)).bit_count() == 1:
        return _reduce(image, w // width, h // height)
    return _resize_in_bands(image, width, height)


def _centres(size: int, out: int) -> npt.NDArray[np.int64]:
    """The input pixel at the centre of each output pixel: ⌊(i + ½) · size / out⌋."""
    return (2 * np.arange(out, dtype=np.int64) + 1) * size // (2 * out)


def _reduce(image: Pixels, by_x: int, by_y: int) -> Pixels:
    """Means of by_y × by_x blocks."""
    from PIL import Image

    return np.array(Image.fromarray(image).reduce((by_x, by_y)))


def _resize_by_pillow(image: Pixels, width: int, height: int, interpolation: str) -> Pixels:
    from PIL import Image

    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling[interpolation.upper()]))


def _resize_in_bands(image: Pixels, width: int, height: int) -> Pixels:
    h, w = image.shape[:2]
    c = image.shape[2] if image.ndim == 3 else 1
    rows = image.reshape(h, w * c)
    tall = np.empty((height, w * c), np.float32)
    for band in _bands(h, height, ROWS, 1):
        np.matmul(band.weights.T, rows[band.lo : band.hi].astype(np.float32), out=tall[band.first : band.last])
    out = np.empty((height, width * c), np.float32)
    for band in _bands(w, width, COLUMNS, c):
        np.matmul(tall[:, band.lo * c : band.hi * c], band.weights, out=out[:, band.first * c : band.last * c])
    out += 0.5
    return out.astype(np.uint8).reshape((height, width, *image.shape[2:]))


class _Band(NamedTuple):
    """`weights` ``[(hi − lo)·c, (last − first)·c]`` map input pixels lo … hi to output pixels first … last."""

    first: int
    last: int
    lo: int
    hi: int
    weights: npt.NDArray[np.float32]


@lru_cache(maxsize=128)
def _bands(size: int, out: int, block: int, channels: int) -> tuple[_Band, ...]:
    """The resampling matrix of one axis, in blocks of output pixels."""
    bands = []
    for first in range(0, out, block):
        last = min(first + block, out)
        dense = (_area if out <= size else _linear)(size, out, first, last)
        used = np.flatnonzero(dense.any(axis=0))
        lo, hi = int(used[0]), int(used[-1]) + 1
        weights = np.kron(dense[:, lo:hi].T, np.eye(channels)).astype(np.float32)
        bands.append(_Band(first, last, lo, hi, weights))
    return tuple(bands)


def _area(size: int, out: int, first: int, last: int) -> npt.NDArray[np.float64]:
    """Overlaps of the output pixels [i·r, (i+1)·r) with the input pixels, r = size / out, divided by r. Computed in
    integers (units of 1/out input pixels), so that coinciding edges coincide exactly."""
    i, x = np.arange(first, last)[:, None], np.arange(size)
    overlap = np.minimum((x + 1) * out, (i + 1) * size) - np.maximum(x * out, i * size)
    weights: npt.NDArray[np.float64] = np.maximum(overlap, 0) / size
    return weights


def _linear(size: int, out: int, first: int, last: int) -> npt.NDArray[np.float64]:
    """Weights of the two input centres around each output centre (i + ½)·r − ½; the ends are repeated outside."""
    at = np.clip((np.arange(first, last) + 0.5) * size / out - 0.5, 0, size - 1)
    weights: npt.NDArray[np.float64] = np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(size)))
    return weights
