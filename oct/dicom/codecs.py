"""Transfer syntax → how to decode one compressed frame. All codecs are imagecodecs'; the only place that calls them.

imagecodecs rather than pydicom's plugins: it is there for slides already, releases the interpreter lock while it
decodes, and knows HTJ2K. RLE segments are unpacked one by one, since padding at their ends must not matter. Not here:
fragments (oct.dicom.fragments), uncompressed pixels (oct.dicom.frames).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from pydicom import uid

from oct.dicom.codestream import SEARCHED, parse_codestream
from pathray.errors import UnreadableUnit

Pixels = npt.NDArray[Any]
Decode = Callable[[memoryview, tuple[int, int], int], Pixels]  # (frame, (rows, columns), bits allocated)

END_OF_IMAGE = b"\xff\xd9"  # JPEG's EOI and JPEG 2000's EOC


class Truncated(ValueError):
    """A frame that ends early."""


def decode_jpeg2000(data: memoryview, shape: tuple[int, int], bits: int) -> Pixels:
    """JPEG 2000, one thread: the caller has its own."""
    from imagecodecs import jpeg2k_decode

    _check_size(data, shape)
    return np.asarray(jpeg2k_decode(_check_end(data), numthreads=1))


def decode_htj2k(data: memoryview, shape: tuple[int, int], bits: int) -> Pixels:
    """High-throughput JPEG 2000.

    OpenJPH fills a cut frame with zeros, so its end is checked. Its errors inside a frame do not reach us either: rows
    from there on are 0. A frame whose last row is 0 is decoded again with OpenJPEG, which is slower and raises.
    """
    from imagecodecs import htj2k_decode

    _check_size(data, shape)
    pixels = np.asarray(htj2k_decode(_check_end(data)))
    return pixels if pixels[-1].any() else decode_jpeg2000(data, shape, bits)


def decode_jpegls(data: memoryview, shape: tuple[int, int], bits: int) -> Pixels:
    """JPEG-LS, lossless and near-lossless."""
    from imagecodecs import jpegls_decode

    return np.asarray(jpegls_decode(_check_end(data)))


def decode_jpeg(data: memoryview, shape: tuple[int, int], bits: int) -> Pixels:
    """JPEG, 8-bit baseline."""
    from imagecodecs import jpeg8_decode

    return np.asarray(jpeg8_decode(_check_end(data)))


def decode_lossless_jpeg(data: memoryview, shape: tuple[int, int], bits: int) -> Pixels:
    """JPEG lossless (process 14)."""
    from imagecodecs import ljpeg_decode

    return np.asarray(ljpeg_decode(_check_end(data)))


def decode_rle(data: memoryview, shape: tuple[int, int], bits: int) -> Pixels:
    """RLE (PS3.5, annex G): one PackBits segment per byte of a pixel, the high byte first. Surplus bytes at the end of
    a segment are padding."""
    from imagecodecs import packbits_decode

    if len(data) < 64:
        raise Truncated("the frame ends inside its RLE header")
    count, *starts = struct.unpack_from("<16L", data)
    if count != bits // 8:
        raise ValueError(f"{count} RLE segments, expected {bits // 8}")
    ends = [*starts[1:count], len(data)]
    size, planes = shape[0] * shape[1], []
    for i, (begin, end) in enumerate(zip(starts[:count], ends, strict=True)):
        if not 64 <= begin < end <= len(data):
            raise Truncated(f"RLE segment {i} is outside the frame")
        plane = packbits_decode(cast(Any, data[begin:end]))
        if len(plane) < size:
            raise Truncated(f"RLE segment {i} has {len(plane)} of {size} bytes")
        planes.append(np.frombuffer(plane, np.uint8, size))
    if count == 1:
        return planes[0].reshape(shape)
    pixels = np.stack(planes[::-1], axis=1)
    return pixels.view(f"<u{count}").astype(f"u{count}", copy=False).reshape(shape)


DECODERS: dict[str, Decode] = {
    uid.JPEG2000Lossless: decode_jpeg2000,
    uid.JPEG2000: decode_jpeg2000,
    uid.HTJ2KLossless: decode_htj2k,
    uid.HTJ2KLosslessRPCL: decode_htj2k,
    uid.HTJ2K: decode_htj2k,
    uid.JPEGLSLossless: decode_jpegls,
    uid.JPEGLSNearLossless: decode_jpegls,
    uid.JPEGBaseline8Bit: decode_jpeg,
    uid.JPEGLossless: decode_lossless_jpeg,
    uid.JPEGLosslessSV1: decode_lossless_jpeg,
    uid.RLELossless: decode_rle,
}


def decode_frame(syntax_uid: str, data: memoryview, shape: tuple[int, int], bits: int, path: str, frame: int) -> Pixels:
    """One frame, `[rows, columns]`, in the type of its codestream. `frame` is for error messages.

    UnreadableUnit: `unsupported`, `truncated`, or `decode`.
    """
    decode = DECODERS.get(syntax_uid)
    if decode is None:
        raise UnreadableUnit("unsupported", path, f"no decoder for transfer syntax {uid.UID(syntax_uid).name}")
    try:
        pixels = decode(data, shape, bits)
    except Truncated as e:
        raise UnreadableUnit("truncated", path, f"frame {frame}: {e}") from e
    except MemoryError:
        raise
    except Exception as e:  # every codec raises its own kinds
        raise UnreadableUnit("decode", path, f"frame {frame}: {type(e).__name__}: {e}") from e
    if pixels.shape != shape:
        raise UnreadableUnit("decode", path, f"frame {frame} is {pixels.shape}, the header says {shape}")
    return pixels


def _check_size(data: memoryview, shape: tuple[int, int]) -> None:
    """ValueError if the codestream's size is not `shape`: a damaged one may ask for any memory."""
    codestream = parse_codestream(data[:SEARCHED])
    if codestream is None or codestream.shape != shape:
        found = "none" if codestream is None else codestream.shape
        raise ValueError(f"size of the codestream: found {found}, the header says {shape}")


def _check_end(data: memoryview) -> Any:
    """`data` if an image ends in it; a fragment is padded to an even length. Codecs take any buffer, though their stubs
    say bytes."""
    if END_OF_IMAGE not in bytes(data[-16:]):
        raise Truncated("the codestream has no end marker")
    return data
