"""Computed tissue masks, kept on the node in the cache of local copies: a mask is computed once and read ever after.

An entry is named by what its mask depends on, so it is never out of date, and it may go at any time. Whatever is wrong
with the cache costs the time of computing again, never the mask. Not here: how a mask is computed (pathray.wsi.tissue).
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from pathray.errors import UserError, explain
from pathray.store.storage import cached, digest_bytes, file_state, private_cache
from pathray.wsi import tissue
from pathray.wsi.reader import SlideReader
from pathray.wsi.tissue import MASK_MPP, VERSION, Mask

log = logging.getLogger(__name__)

_SHAPE = struct.Struct("<II")  # height, width; then the mask's bits, row by row


def kept_mask(path: str, backend: str, mpp0: float, compute: Callable[[], Mask]) -> Mask:
    """The 0/1 mask ``[h, w]`` of the slide at `path`, as `backend` reads it with `mpp0` µm per level-0 pixel: the one
    kept here, or what `compute()` gives, which is then kept. Raises what `compute` raises.
    """
    name = _name(path, backend, mpp0)
    mask = _load(name) if name else None
    if mask is None:
        mask = compute()
        if name:
            _keep(name, mask)
    return mask


def computed_mask(reader: SlideReader, mpp0: float) -> Mask:
    """The computed mask of an open slide, kept. Raises what `pathray.wsi.tissue.tissue_mask` raises."""
    return kept_mask(reader.path, reader.backend, mpp0, lambda: tissue.tissue_mask(reader, mpp0))


def packed(mask: Mask) -> bytes:
    """Bytes of a 0/1 mask; about a hundredth of its pixels."""
    return zlib.compress(_SHAPE.pack(*mask.shape) + np.packbits(mask).tobytes())


def unpacked(data: bytes) -> Mask:
    """What `packed` was given. Raises ValueError, struct.error or zlib.error for bytes that it did not write."""
    plain = zlib.decompress(data)  # checks its sum
    height, width = _SHAPE.unpack_from(plain)
    bits = np.frombuffer(plain, np.uint8, offset=_SHAPE.size)
    if bits.size != -(-height * width // 8):
        raise ValueError(f"{bits.size} bytes for {height} x {width} bits")
    return np.unpackbits(bits, count=height * width).reshape(height, width)


def _name(path: str, backend: str, mpp0: float) -> str:
    """The entry's name, or "" for a slide whose state cannot be asked for: whoever reads it says why better."""
    try:
        state = file_state(path)
    except Exception as e:  # file systems raise what they like
        log.debug("no state of a slide: %s", explain(e))
        return ""
    known = "\0".join([path, state, backend, repr(float(mpp0)), repr(MASK_MPP), str(VERSION)])
    return f"{digest_bytes(known.encode())[:24]}-mask"


def _load(name: str) -> Mask | None:
    """The kept mask; None when there is none, or only something that cannot be read."""
    try:
        entry = private_cache() / name
        mask = unpacked(entry.read_bytes())
        with contextlib.suppress(OSError):
            os.utime(entry)  # in use: what is not goes first when room is made
        return mask
    except FileNotFoundError:
        return None
    except (OSError, UserError, ValueError, struct.error, zlib.error) as e:
        _tell("cannot be read", getattr(e, "strerror", None) or str(e))
        return None


def _keep(name: str, mask: Mask) -> None:
    """Into the cache, instead of what stands there (`_load` found nothing good)."""
    data = packed(mask)
    try:
        (private_cache() / name).unlink(missing_ok=True)
        cached(name, lambda path: path.write_bytes(data), len(data))
    except (OSError, UserError) as e:
        _tell("cannot be kept", getattr(e, "strerror", None) or str(e))


@lru_cache(16)
def _tell(what: str, why: str) -> None:
    """Once per process: a full disk would say it for every slide."""
    log.warning("a tissue mask in the cache of local copies %s: %s; it is computed again", what, why)
