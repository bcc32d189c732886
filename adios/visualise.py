"""Draws what the mask model masks: a grid of patches, masks, overlays and masked patches; a film over training.

Drawing only: no random numbers, no signals. Not here: which patches and when (adios.pictures).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import numpy.typing as npt

from adios.config import DataConfig
from pathray.draw.canvas import ACCENTS, INK, MUTED, Canvas, Picture
from pathray.draw.gif import gif_bytes
from pathray.errors import MissingFile, UserError
from pathray.files.images import open_image
from pathray.store.storage import Storage, write_atomic

Floats = npt.NDArray[np.floating]
Pixels = npt.NDArray[np.uint8]
FILE = re.compile(r"iter_(\d{8,})\.png")
CELL, GAP, MARGIN, HEADER, SCALE = 112.0, 6.0, 16.0, 74.0, 1.5
TINT = 0.55  # opacity of a mask's colour in an overlay
FILM, FRAMES, FRAME_MS, LAST_MS, FILM_PX = "masks.gif", 40, 350, 2500, 800


def write_masks(folder: str, step: int, images: Pixels, masks: Floats, mean: Sequence[float] | None = None) -> str:
    """Draw masks `[B, N, H, W]` of patches `[B, H, W, 3]` into `folder` (path or URL) as ``iter_<step>.png``; returns
    its path. `mean`: the colour of masked pixels (in 0…1), the normalisation's mean."""
    store, name = Storage.of(folder), f"iter_{step:08d}.png"
    buffer = BytesIO()
    from PIL import Image

    Image.fromarray(draw_masks(images, masks, f"Masks at iteration {step:,}", mean)).save(buffer, "PNG")
    store.write_bytes(name, buffer.getvalue())
    return store.join(name)


def draw_masks(images: Pixels, masks: Floats, title: str, mean: Sequence[float] | None = None) -> Picture:
    """A row per patch: the patch, its N masks (white: masked), all masks in colour over it, and the patch with each of
    them masked, as the student sees it. Above each mask its mean activation over the patches."""
    count = masks.shape[1]
    assert masks.shape == (len(images), count, *images.shape[1:3]), (images.shape, masks.shape)
    columns = ["patch", *_number_titles("mask", count), "overlay", *_number_titles("without", count)]
    width = 2 * MARGIN + len(columns) * CELL + (len(columns) - 1) * GAP
    canvas = Canvas(width, HEADER + len(images) * (CELL + GAP) + MARGIN - GAP, SCALE)
    canvas.text(MARGIN, 12, title, 18, bold=True)
    for i, name in enumerate(columns):
        x = _column_x(i)
        canvas.text(x, 42, name, 11, INK, bold=True)
        if 1 <= i <= count:
            canvas.text(x, 57, f"mean {masks[:, i - 1].mean():.2f}", 10, MUTED)
            canvas.rect(x + CELL - 12, 44, 12, 8, fill=_colour(i - 1))
    for row, (image, own) in enumerate(zip(images, masks, strict=True)):
        for i, picture in enumerate(cells(image, own, mean)):
            canvas.picture(picture, _column_x(i), HEADER + row * (CELL + GAP), CELL, CELL)
    return canvas.to_picture()


def cells(image: Pixels, masks: Floats, mean: Sequence[float] | None = None) -> list[Picture]:
    """The row of one patch `[H, W, 3]` with masks `[N, H, W]`: 2 N + 2 pictures `[H, W, 3]`."""
    paint = 255.0 * np.array(DataConfig().mean if mean is None else mean)
    weights = masks[:, :, :, None].astype(np.float64)
    colours = np.array([_rgb(_colour(n)) for n in range(len(masks))], np.float64)
    tinted = (1 - TINT) * image + TINT * np.einsum("nhwo,nc->hwc", weights, colours)
    without = [image * (1 - w) + paint * w for w in weights]
    grey = [np.repeat(255.0 * w, 3, axis=2) for w in weights]
    return [image, *map(_uint8, grey), _uint8(tinted), *map(_uint8, without)]


def write_film(folder: str, output: str = "") -> str:
    """Write the pictures in `folder`, at most 40 spaced evenly, as one GIF: `output` (path or URL), or ``masks.gif``
    there. Returns its path. MissingFile if there is no picture."""
    from PIL import Image

    store = Storage.of(folder)
    names = sorted((name for name in store.list() if FILE.fullmatch(name)), key=step_of)
    if not names:
        raise MissingFile("no pictures of masks", file=folder, expected="iter_<step>.png")
    chosen = sorted({round(i) for i in np.linspace(0, len(names) - 1, min(FRAMES, len(names)))})
    frames: list[tuple[Picture, int]] = []
    size: tuple[int, int] | None = None
    for i in chosen:
        try:
            with open_image(store.read_bytes(names[i])) as file:
                image = file.convert("RGB")
        except (OSError, SyntaxError, ValueError) as e:
            raise UserError("a picture cannot be read", file=store.join(names[i]), found=str(e)) from e
        size = size or _fit_size(image.width, image.height)
        frames.append((np.asarray(image.resize(size, Image.Resampling.LANCZOS)), FRAME_MS))
    frames[-1] = frames[-1][0], LAST_MS
    path = output or store.join(FILM)
    write_atomic(path, gif_bytes(frames))
    return path


def step_of(name: str) -> int:
    """The iteration in a picture's file name.
    >>> step_of("iter_00000500.png")
    500
    """
    found = FILE.fullmatch(name)
    assert found is not None, name
    return int(found[1])


def _fit_size(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, FILM_PX / max(width, height))
    return round(width * scale), round(height * scale)


def _number_titles(name: str, count: int) -> list[str]:
    return [f"{name} {n + 1}" for n in range(count)]


def _column_x(column: int) -> float:
    return MARGIN + column * (CELL + GAP)


def _colour(mask: int) -> str:
    return ACCENTS[mask % len(ACCENTS)]


def _rgb(colour: str) -> tuple[int, int, int]:
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return r, g, b


def _uint8(values: Floats) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
