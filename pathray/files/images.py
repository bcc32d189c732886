"""Opens plain image files: the allowed formats and sizes, and how transparency and palettes become pixels.

Pillow also opens formats that start other programs (PostScript) or are rarely tested, and it decides by content, not by
file name. So the formats are listed here. Not here: slides (pathray.wsi.reader), where the bytes come from.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
MODES = (
    "RGB",
    "RGBA",
    "L",
    "LA",
    "P",
    "PA",
    "1",
    "CMYK",
    "YCbCr",
)  # 8-bit modes: others would lose range
LOSSY = ("JPEG", "WEBP", "JPEG2000")
MAX_PIXELS = 1 << 28  # the limit for decoding a whole image
BLACK = 8  # greys below this are black


class ImageError(ValueError):
    """The data are not a supported image or cannot be decoded; the message says why."""


def open_image(data: bytes | memoryview, formats: tuple[str, ...] = FORMATS) -> Any:
    """The Pillow image of `data`, with pixels not decoded yet. ImageError for other formats and too many pixels."""
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None and Image.MAX_IMAGE_PIXELS < MAX_PIXELS:
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # only ever raised, since other code in the process opens images too
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Exception as e:  # plug-ins raise many types for damaged headers
        found = "unknown image format" if type(e).__name__ == "UnidentifiedImageError" else f"{e}"
        raise ImageError(f"{found}; expected one of {', '.join(formats)}") from e
    if image.size[0] * image.size[1] > MAX_PIXELS:
        raise ImageError(f"image too large: {image.size[0]} x {image.size[1]} pixels, at most {MAX_PIXELS:,} in all")
    return image


def rgb_of(image: Any) -> npt.NDArray[np.uint8]:
    """The pixels, uint8 ``[h, w, 3]``: transparent parts become white, grey is repeated, orientation tags are ignored.

    ImageError for pixels of more than 8 bits and for data that cannot be decoded.
    """
    if image.mode not in MODES:
        raise ImageError(f"unsupported pixel mode {image.mode}, expected 8-bit colours")
    try:
        if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
            return np.asarray(image.convert("RGB"))
        rgba = np.asarray(image.convert("RGBA"))
    except Exception as e:  # Pillow raises OSError, SyntaxError, ValueError and others
        raise ImageError(f"{type(e).__name__}: {e}") from e
    alpha = rgba[:, :, 3:].astype(np.uint16)
    return ((rgba[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def mask_of(image: Any) -> npt.NDArray[np.uint8]:
    """The mask's values, uint8 ``[h, w]``, 0 for background: the largest colour channel, ignoring alpha.

    Grey palettes count by colour, colour palettes by index (label maps). Halftones that a lossy codec leaves at edges
    become background. ImageError as in `rgb_of`, and for an ambiguous palette.
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
    """The mask value of each of the 256 palette indices: its grey level if all `used` colours ``[n, 3]`` are grey, else
    the index itself. ImageError if index 0 has a colour and another index is black: either could be the background."""
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
            f"ambiguous mask palette: index 0 is {tuple(table[0].tolist())} and index {min(dark)} is black, "
            "so either could be the background; save the mask as grey with 0 for background"
        )
    return np.arange(256).astype(np.uint8)


def without_halftones(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A black and white mask without the ringing that a lossy codec leaves at edges; other masks are unchanged."""
    return np.where(values >= 128, values, 0).astype(np.uint8) if values.size and values.max() >= 128 else values
