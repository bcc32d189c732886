"""Drawn frames → an animated GIF that neither flickers nor dithers its letters. Not here: what the frames show."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import numpy.typing as npt

from pathray.draw.canvas import Picture

FLAT_COLOURS = 64  # of a GIF: paper, cards, letters, frames


def gif_bytes(frames: Sequence[tuple[Picture, int]]) -> bytes:
    """An endless GIF; all frames share one palette, so that nothing flickers.

    Colours that fill areas or draw lines stay as they are, undithered; the rest of the palette is for the tissue.
    """
    from PIL import Image

    codes = [_codes(picture) for picture, _ in frames]
    values, counts = np.unique(np.concatenate([codes[0], codes[-1]]), return_counts=True)
    flat = np.sort(values[np.argsort(counts)[-FLAT_COLOURS:]])
    rest = 256 - flat.size
    tissue = Image.fromarray(frames[-1][0]).quantize(rest, method=Image.Quantize.MEDIANCUT).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*np.stack([flat >> 16, flat >> 8 & 255, flat & 255], 1).ravel().tolist(), *tissue[: 3 * rest]])
    images = []
    for (picture, _), code in zip(frames, codes, strict=True):
        image = Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        place = np.minimum(np.searchsorted(flat, code), flat.size - 1)
        exact = np.where(flat[place] == code, place, np.asarray(image).ravel()).astype(np.uint8)
        images.append(Image.fromarray(exact.reshape(picture.shape[:2])))
        images[-1].putpalette(palette.getpalette() or [])
    out = BytesIO()
    times = [ms for _, ms in frames]
    images[0].save(out, "GIF", save_all=True, append_images=images[1:], duration=times, loop=0, optimize=False)
    return out.getvalue()


def _codes(picture: Picture) -> npt.NDArray[np.int64]:
    """Every pixel's colour as one number, `[height · width]`."""
    codes: npt.NDArray[np.int64] = picture.reshape(-1, 3).astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    return codes
