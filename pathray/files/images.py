"""Plain image files, opened in one place: which formats by content, how large, how transparency becomes colour.

Pillow knows formats that start other programs (PostScript) or hardly anybody tests; their names say nothing, since what
decides is the content. Not here: slides (pathray.wsi.reader), where the bytes come from.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr")  # 8 bits; others would lose most of their range
LOSSY = ("JPEG", "WEBP", "JPEG2000")
MAX_PIXELS = 1 << 28  # decoded whole
BLACK = 8  # greys below it are black


class ImageError(ValueError):
    """What is no image here, or one that cannot be decoded; the message says why."""


def open_image(data: bytes | memoryview, formats: tuple[str, ...] = FORMATS) -> Any:
    """The Pillow image of `data`, its pixels not decoded yet. ImageError for other formats and for too many pixels."""
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None and Image.MAX_IMAGE_PIXELS < MAX_PIXELS:
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # raised for the process, never lowered: others open images, too
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Exception as e:  # plug-ins raise many kinds on damaged heads
        found = "no image of a known format" if type(e).__name__ == "UnidentifiedImageError" else f"{e}"
        raise ImageError(f"{found}; read are {', '.join(formats)}") from e
    if image.size[0] * image.size[1] > MAX_PIXELS:
        raise ImageError(f"{image.size[0]} x {image.size[1]} pixels, at most {MAX_PIXELS:,} are decoded whole")
    return image


def rgb_of(image: Any) -> npt.NDArray[np.uint8]:
    """uint8 ``[h, w, 3]``: transparent parts are white, grey is repeated, orientation tags are not applied.

    ImageError for pixels of more than 8 bits and for data that cannot be decoded.
    """
    if image.mode not in MODES:
        raise ImageError(f"pixels of mode {image.mode}, expected 8-bit colours")
    try:
        if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
            return np.asarray(image.convert("RGB"))
        rgba = np.asarray(image.convert("RGBA"))
    except Exception as e:  # Pillow raises OSError, SyntaxError, ValueError and others
        raise ImageError(f"{type(e).__name__}: {e}") from e
    alpha = rgba[:, :, 3:].astype(np.uint16)
    return ((rgba[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def mask_of(image: Any) -> npt.NDArray[np.uint8]:
    """uint8 ``[h, w]`` of a mask, 0 where there is nothing: its largest colour channel, whatever its alpha.

    Palettes of greys count by colour, those of colours by index (label maps). Half-tones that a lossy codec leaves
    around edges are nothing. ImageError as in `rgb_of`, and for a palette whose colours contradict its order.
    """
    try:
        values = np.asarray(image)
    except Exception as e:
        raise ImageError(f"{type(e).__name__}: {e}") from e
    if image.mode in ("P", "PA"):
        colours = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        index = values if values.ndim == 2 else values[:, :, 0]
        meant: npt.NDArray[np.uint8] = palette_values(colours, np.unique(index))[index]
        return meant
    if values.ndim == 3:
        values = values[:, :, : 3 if values.shape[2] >= 3 else 1].max(axis=2)
    if values.dtype != np.uint8:
        return (values > 0).astype(np.uint8)
    return without_halftones(values) if image.format in LOSSY else values


def palette_values(colours: npt.NDArray[np.uint8], used: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """What each of the 256 indices of a mask means: its grey where all `used` colours ``[n, 3]`` are greys, else the
    index itself. ImageError where index 0 has a colour and another index is black: either could be the ground."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = colours[:256]
    shown = table[used]
    told_apart = len(used) == 1 or bool((shown != shown[0]).any())
    if told_apart and (np.ptp(shown.astype(int), axis=1) < BLACK).all():
        greys: npt.NDArray[np.uint8] = table.max(axis=1)
        greys[greys < BLACK] = 0
        return greys
    dark = {int(i) for i, colour in zip(used, shown, strict=True) if colour.max() < BLACK}
    if 0 in used and 0 not in dark and dark:
        raise ImageError(
            f"a mask of indexed colours in which index 0 is {tuple(table[0].tolist())} and index {min(dark)} is black: "
            "either could be the background; save it as grey, 0 for background"
        )
    return np.arange(256).astype(np.uint8)


def without_halftones(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A black and white mask from a lossy file without the ringing along its edges; other values as they are."""
    return np.where(values >= 128, values, 0).astype(np.uint8) if values.size and values.max() >= 128 else values
