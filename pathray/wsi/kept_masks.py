"""A cache of computed tissue masks in the node's cache folder: each mask is computed once, then read.

An entry's name is a digest of everything its mask depends on, so it is never out of date. It may be deleted at any
time. If the cache fails, the mask is computed again. Not here: how a mask is computed (pathray.wsi.tissue).
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
from pathray.store.cache import fetch_cached, private_cache
from pathray.store.storage import digest_bytes, file_state
from pathray.wsi import tissue
from pathray.wsi.reader import SlideReader
from pathray.wsi.tissue import MASK_MPP, VERSION, Mask

log = logging.getLogger(__name__)

_SHAPE = struct.Struct("<II")  # height, width; then the mask's bits, row by row


def cached_mask(path: str, backend: str, mpp0: float, compute: Callable[[], Mask]) -> Mask:
    """The 0/1 mask ``[h, w]`` of the slide at `path`, read by `backend` at `mpp0` µm per level-0 pixel.

    It comes from the cache, or from `compute()` and is then cached. Raises what `compute` raises.
    """
    name = _name(path, backend, mpp0)
    mask = _load(name) if name else None
    if mask is None:
        mask = compute()
        if name:
            _save(name, mask)
    return mask


def cached_tissue_mask(reader: SlideReader, mpp0: float) -> Mask:
    """The cached tissue mask of an open slide. Raises what `pathray.wsi.tissue.tissue_mask` raises."""
    return cached_mask(reader.path, reader.backend, mpp0, lambda: tissue.tissue_mask(reader, mpp0))


def pack_mask(mask: Mask) -> bytes:
    """A 0/1 mask as compressed bytes, about one byte per hundred pixels."""
    return zlib.compress(_SHAPE.pack(*mask.shape) + np.packbits(mask).tobytes())


def unpack_mask(data: bytes) -> Mask:
    """The inverse of `pack_mask`. Raises ValueError, struct.error or zlib.error for bytes that it did not write."""
    plain = zlib.decompress(data)  # checks its sum
    height, width = _SHAPE.unpack_from(plain)
    bits = np.frombuffer(plain, np.uint8, offset=_SHAPE.size)
    if bits.size != -(-height * width // 8):
        raise ValueError(f"{bits.size} bytes for {height} x {width} bits")
    return np.unpackbits(bits, count=height * width).reshape(height, width)


def _name(path: str, backend: str, mpp0: float) -> str:
    """The entry's name, or "" if the slide's state cannot be read (reading the slide reports why)."""
    try:
        state = file_state(path)
    except Exception as e:  # each file system has its own exceptions
        log.debug("could not read a slide's state: %s", explain(e))
        return ""
    known = "\0".join([path, state, backend, repr(float(mpp0)), repr(MASK_MPP), str(VERSION)])
    return f"{digest_bytes(known.encode())[:24]}-mask"


def _load(name: str) -> Mask | None:
    """The cached mask; None if there is none or it cannot be read."""
    try:
        entry = private_cache() / name
        mask = unpack_mask(entry.read_bytes())
        with contextlib.suppress(OSError):
            os.utime(entry)  # marks it as used: unused entries are evicted first
        return mask
    except FileNotFoundError:
        return None
    except (OSError, UserError, ValueError, struct.error, zlib.error) as e:
        _warn_once("could not be read", getattr(e, "strerror", None) or str(e))
        return None


def _save(name: str, mask: Mask) -> None:
    """Write to the cache, replacing an unreadable entry if there is one."""
    data = pack_mask(mask)
    try:
        (private_cache() / name).unlink(missing_ok=True)
        fetch_cached(name, lambda path: path.write_bytes(data), len(data))
    except (OSError, UserError) as e:
        _warn_once("could not be saved", getattr(e, "strerror", None) or str(e))


@lru_cache(16)
def _warn_once(what: str, why: str) -> None:
    """Warn once per process: a full disk would cause one warning per slide."""
    log.warning("a cached tissue mask %s: %s; masks are recomputed", what, why)
