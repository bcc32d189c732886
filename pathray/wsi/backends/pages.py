"""Finds the pages of a TIFF that are its scan's levels, and rejects files that are not 8-bit colour slides.

A level is the largest tiled page, one of its sub-IFDs, or another page that is marked or named as its reduced copy.
Labels, macro photographs, thumbnails and second images are not levels, even with a similar aspect ratio. Reads no
pixels.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from pathray.wsi.backends.header import aperio_size, description, is_aperio_associated, ome_images, ome_xml

ALPHA = (0, 1, 2)  # ExtraSamples of a fourth sample: unspecified, associated alpha, unassociated alpha
MAX_TAGS = 4096


class NotServed(Exception):
    """The direct TIFF reader does not support how this file stores its tiles; the message says why."""


class OwnGrid(NotServed):
    """Tiles on a vendor-specific grid, which the vendor's libraries can read."""


class WrongKind(NotServed):
    """The file is not an 8-bit colour slide, whichever library opens it; the message says why."""


def levels_of(tiff: Any, mask: bool) -> list[Any]:
    """The pages of the pyramid, finest first.

    Raises NotServed, WrongKind, and ValueError for a file whose full-resolution page is missing.
    """
    if not len(tiff.pages):
        raise ValueError("no image file directory at the position given in the header")
    if str(tiff.pages[0].software).startswith("MedScan"):
        raise NotServed("Trestle's tiles overlap")
    top = [page for page in tiff.pages if is_image(page) and not _is_associated(page)]
    pages = top + [page for parent in top for page in (parent.pages or ()) if is_image(page)]
    tiled = [page for page in pages if page.is_tiled]
    if not tiled and tiff.is_svs:
        raise NotServed("an SVS without tiles")
    candidates = tiled or pages
    if not candidates:
        raise NotServed("no page contains an image")
    base = max(candidates, key=lambda page: page.imagewidth * page.imagelength)  # the first of several
    if not mask:
        refuse_unless_rgb8(base, candidates)
        _refuse_without_level0(base, tiff)
    return [base, *_reductions(tiff, base, candidates)]


def is_image(page: Any) -> bool:
    return bool(page.imagedepth == 1 and page.dtype is not None and page.imagewidth > 0 and page.imagelength > 0)


def _is_associated(page: Any) -> bool:
    """Whether the page is marked as a label, macro photograph or mask (flag 8: Aperio's macro; 4: a mask)."""
    return bool(int(page.subfiletype) & ~3) or is_aperio_associated(description(page))


def refuse_unless_rgb8(page: Any, others: Sequence[Any]) -> None:
    bits, samples = page.bitspersample, page.samplesperpixel
    if page.dtype != np.uint8 or bits not in (8, (8, 8, 8), (8, 8, 8, 8)):
        raise WrongKind(f"{page.dtype} with {bits} bits per sample, not 8-bit colours")
    if int(page.photometric) not in (0, 1, 2, 6):
        name = getattr(page.photometric, "name", page.photometric)
        raise WrongKind(f"photometric interpretation {name}, not RGB, YCbCr or grey")
    extra = [int(kind) for kind in page.extrasamples]
    if samples - len(extra) not in (1, 3) or any(kind not in ALPHA for kind in extra) or len(extra) > 1:
        raise WrongKind(f"{samples} samples per pixel, not RGB")
    if samples == 1 and any(other.shape == page.shape for other in others if other is not page):
        raise WrongKind("channels or focal planes are stored as separate pages")
    if extra:
        raise NotServed("an alpha channel")


def _refuse_without_level0(base: Any, tiff: Any) -> None:
    """ValueError if the largest page is a reduced copy: the full-resolution page is missing."""
    size, reduced = aperio_size(description(base)) if tiff.is_svs else (None, False)
    own = (base.imagewidth, base.imagelength)
    if reduced or (int(base.subfiletype) & 1 and base in list(tiff.pages)):
        raise ValueError(f"the full-resolution page is missing: the largest, {own[0]} x {own[1]}, is a reduced copy")
    if size is not None and size != own:
        raise ValueError(f"the header says {size[0]} x {size[1]} pixels, the largest page has {own[0]} x {own[1]}")


def _reductions(tiff: Any, base: Any, candidates: Sequence[Any]) -> list[Any]:
    nested = [page for page in (base.pages or ()) if is_image(page)]
    pages = nested if nested else _pages_of_image(tiff, base, candidates)
    found = [page for page in pages if page is not base and _is_reduction(page, base, page in nested)]
    levels: list[Any] = []
    for page in sorted(found, key=lambda page: -page.imagewidth):
        if not levels or page.imagewidth < levels[-1].imagewidth:
            levels.append(page)
    return levels


def _pages_of_image(tiff: Any, base: Any, candidates: Sequence[Any]) -> Sequence[Any]:
    """The candidates without pages that the OME header assigns to other images than the scan."""
    if (xml := ome_xml(tiff)) is None:
        return candidates
    try:
        images = ome_images(xml)
    except ValueError:
        return candidates
    if len(images) < 2:
        return candidates
    own = [i for i in images if (i.get("SizeX"), i.get("SizeY")) == (str(base.imagewidth), str(base.imagelength))]
    numbers = {int(number) for image in own for number in image["ifd"].split(",") if number}
    return [page for page in candidates if page.index in numbers]


def _is_reduction(page: Any, base: Any, nested: bool) -> bool:
    """Whether `page` is a reduced copy of `base`: same samples, same aspect ratio up to rounding, and either marked or
    named (Aperio) as a reduced copy, or smaller by an integer factor with the same tiles."""
    w, h = page.imagewidth, page.imagelength
    if w >= base.imagewidth or h >= base.imagelength or int(page.subfiletype) not in (0, 1):
        return False
    if page.samplesperpixel != base.samplesperpixel or page.dtype != base.dtype:
        return False
    down = math.sqrt(base.imagewidth * base.imagelength / (w * h))
    near = abs(base.imagewidth / down - w) <= 1.0 + 0.005 * w and abs(base.imagelength / down - h) <= 1.0 + 0.005 * h
    return near and (nested or bool(int(page.subfiletype) & 1) or _is_named(page) or _is_whole_factor(page, base))


def _is_named(page: Any) -> bool:
    text = description(page)
    return text.startswith("Aperio") and aperio_size(text) == ((page.imagewidth, page.imagelength), True)


def _is_whole_factor(page: Any, base: Any) -> bool:
    """Whether an unmarked page is a level: both sides are the base's divided by one integer, with the same tiles and
    codec. No other image matches this by chance."""
    factor = max(1, round(base.imagewidth / page.imagewidth))
    sizes = ((base.imagewidth, page.imagewidth), (base.imagelength, page.imagelength))
    whole = factor > 1 and all(size in (full // factor, -(-full // factor)) for full, size in sizes)
    same = (page.is_tiled, page.tilewidth, page.tilelength, page.compression)
    return whole and same == (base.is_tiled, base.tilewidth, base.tilelength, base.compression)


def check_chain(file: BinaryIO) -> None:
    """ValueError if the chain of pages is broken: a page, that is a level or the scan itself, is lost.

    tifffile only logs a broken chain, and the remaining pages would pass for the whole slide.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = struct.unpack(order + "H", head[2:4])[0] == 43
    pointer, count, entry = (order + "Q", order + "Q", 20) if big else (order + "I", order + "H", 12)
    at, seen = struct.unpack_from(pointer, head, 8 if big else 4)[0], set[int]()
    while at:
        if at in seen or at >= size:
            raise ValueError(f"the chain of pages is broken after page {len(seen)}: the next one is at byte {at:,}")
        seen.add(at)
        file.seek(at)
        tags = _number(file, count)
        if not 0 < tags <= MAX_TAGS or at + tags * entry > size:
            raise ValueError(f"the chain of pages is broken: page {len(seen)}, at byte {at:,}, has {tags:,} tags")
        file.seek(tags * entry, os.SEEK_CUR)
        at = _number(file, pointer)


def _number(file: BinaryIO, kind: str) -> int:
    data = file.read(struct.calcsize(kind))
    if len(data) < struct.calcsize(kind):
        raise ValueError("the file ends within its table of pages")
    return int(struct.unpack(kind, data)[0])
