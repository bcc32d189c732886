"""Compresses one frame for a transfer syntax."""

from __future__ import annotations

import numpy as np
from pydicom import uid


def encode_frame(frame: np.ndarray, syntax: str) -> bytes:
    """A lossless codestream of `frame` `[rows, columns]`, signed where its type is."""
    import imagecodecs

    if syntax == uid.JPEG2000Lossless:
        return bytes(imagecodecs.jpeg2k_encode(frame, level=0, codecformat="j2k", reversible=True))
    if syntax in (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K):
        return bytes(imagecodecs.htj2k_encode(frame, reversible=True))
    if syntax == uid.JPEGLSLossless:
        return bytes(imagecodecs.jpegls_encode(frame))
    if syntax == uid.JPEGLosslessSV1:
        return bytes(imagecodecs.ljpeg_encode(frame))
    if syntax == uid.JPEGBaseline8Bit:
        return bytes(imagecodecs.jpeg8_encode(frame, level=95))
    if syntax == uid.RLELossless:
        return _encode_rle(frame)
    raise AssertionError(f"no encoder for {syntax}")


def _encode_rle(frame: np.ndarray) -> bytes:
    from pydicom.pixels.encoders import RLELosslessEncoder

    bits = 8 * frame.dtype.itemsize
    return RLELosslessEncoder.encode(
        frame.view(f"u{frame.dtype.itemsize}"),
        rows=frame.shape[0],
        columns=frame.shape[1],
        samples_per_pixel=1,
        bits_allocated=bits,
        bits_stored=bits,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
        number_of_frames=1,
    )
