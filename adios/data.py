"""The reader: one plan row → a patch, uint8, resized, with the draws for its augmentation.

Everything random follows from the position. Not here: which row is at which position (pathray.data.order),
replacement of unreadable units (pathray.data.units), views, crops and normalisation, which run on the device
(adios.augment).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from adios.patches.archives import SourceCache, member_limit, read_member
from adios.plan import paths
from pathray.data.order import rng
from pathray.data.plan import Plan
from pathray.errors import MissingFile, UnreadableUnit, UserError
from pathray.files.images import ImageError, open_image, rgb_of
from pathray.urls import public

FORMATS = ("PNG", "JPEG")  # of patches in archives
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_IHDR = struct.Struct(">II2B2xB")  # width, height, bits, colour type, interlaced
_RGB, _RGBA = 2, 6

Pixels = npt.NDArray[np.uint8]


class PatchReader:
    """Reads patches from zip archives. `paths` are the archives by `source`; each patch has `patch_size`² pixels, is
    resized to `size`² and gets `draws` uniforms. `max_open` archives stay open per process."""

    benign_reasons: frozenset[str] = frozenset()

    def __init__(
        self, seed: int, paths: Sequence[str], patch_size: int, size: int = 224, draws: int = 64, max_open: int = 64
    ) -> None:
        self.seed, self.paths, self.patch_size, self.size, self.draws = seed, list(paths), patch_size, size, draws
        self.archives = SourceCache(max_open)

    @classmethod
    def of(cls, plan: Plan, seed: int, *, size: int = 224, draws: int = 64, max_open: int = 64) -> PatchReader:
        """A reader for the units of a plan that `adios.plan.build_plan` wrote."""
        return cls(seed, paths(plan), int(plan.meta["patch_size"]), size, draws, max_open)

    def read(self, unit: Mapping[str, Any], position: int, attempt: int) -> dict[str, Any]:
        """image uint8 [S, S, 3] · draws float32 [D] uniforms · source int64.

        Raises UnreadableUnit: a reason of adios.patches.archives, ``shape`` (its size differs from its name) or
        ``decode`` (not an image, or truncated).
        """
        source = int(unit["source"])
        path = self.paths[source]
        try:
            archive = self.archives.get(path)
        except MissingFile as e:
            raise UnreadableUnit("missing", public(path)) from e
        except UserError as e:
            raise UnreadableUnit("io", public(path), str(e)) from e
        offset, compressed, size, crc = (int(unit[name]) for name in ("offset", "compressed", "bytes", "crc"))
        member = read_member(archive, path, offset, compressed, size, crc, member_limit(self.patch_size))
        try:
            pixels = decode_patch(member.content, self.patch_size)
        except Undecodable as e:
            raise UnreadableUnit(e.reason, member.where, str(e)) from e
        return {
            "image": bicubic(pixels, self.size),
            "draws": rng(self.seed, "augment", position, attempt).random(self.draws, np.float32),
            "source": np.int64(source),
        }

    def collate(self, units: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch: every array of the samples with a leading axis."""
        return {name: np.stack([unit[name] for unit in units]) for name in units[0]}


class Undecodable(Exception):
    """Bytes that are not the expected image; `reason` is ``shape`` or ``decode``."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        super().__init__(detail)


def decode_patch(data: bytes | memoryview, size: int) -> Pixels:
    """PNG or JPEG → ``[size, size, 3]``; transparent parts become white, grey is repeated, orientation is ignored.

    The header is checked before anything is decoded, so no larger image is ever decoded. Raises Undecodable.
    """
    if bytes(data[:8]) != _PNG:
        return _by_pillow(data, size)
    if len(data) < 29:
        raise Undecodable("decode", f"a PNG of {len(data)} bytes")
    width, height, bits, colours, interlaced = _IHDR.unpack_from(data, 16)
    _check(width, height, size)
    if _PNG_END not in bytes(data[-64:]):
        raise Undecodable("decode", f"the PNG of {len(data)} bytes is truncated")
    if bits != 8 or colours not in (_RGB, _RGBA) or interlaced:
        return _by_pillow(data, size)
    import imagecodecs

    try:
        pixels: Pixels = imagecodecs.png_decode(cast(bytes, data))  # a memoryview works as well
    except Exception as e:  # the codec has errors of its own
        raise Undecodable("decode", f"{type(e).__name__}: {e}") from e
    return pixels if pixels.shape[2] == 3 else _on_white(pixels)


def _by_pillow(data: bytes | memoryview, size: int) -> Pixels:
    try:
        with open_image(data, FORMATS) as image:
            width, height = image.size
            _check(width, height, size)
            return rgb_of(image)
    except ImageError as e:
        raise Undecodable("decode", str(e)) from e


def _check(width: int, height: int, size: int) -> None:
    if (width, height) != (size, size):
        raise Undecodable("shape", f"{width} x {height} pixels, expected {size} x {size}")


def _on_white(pixels: Pixels) -> Pixels:
    """``[h, w, 4]`` over white → ``[h, w, 3]``, rounded halves up."""
    colour, alpha = pixels[..., :3].astype(np.uint32), pixels[..., 3:].astype(np.uint32)
    return ((2 * (colour * alpha + 255 * (255 - alpha)) + 255) // 510).astype(np.uint8)


def bicubic(pixels: Pixels, size: int) -> Pixels:
    """``[h, w, 3]`` → ``[size, size, 3]``, cubic convolution (a = −½) whose support grows with the reduction: Pillow's
    BICUBIC up to rounding, at eight times its speed. Returns an image of that size as it is."""
    if pixels.shape[:2] == (size, size):
        return pixels
    import torch

    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # in this order torch sees a channels-last layout
    resized = torch.nn.functional.interpolate(image, (size, size), mode="bicubic", antialias=True)
    out: Pixels = np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
    return out
