"""Simulates a hospital's laboratory and scanner: stain amounts to 8-bit colours, written in a vendor's file layout.

The model is Beer–Lambert, I = I0·exp(−Σ c·v), with one optical-density vector v per stain (Ruifrok and Johnston 2001),
followed by the scanner's optics, tone curve, white balance and noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from demo.fields import Field

Vector = tuple[float, float, float]
Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Hospital:
    """`strength` scales the stains relative to the usual recipe; `blur_um` is the sigma of the optics."""

    name: str
    haematoxylin: Vector
    eosin: Vector
    strength: tuple[float, float]
    mpp: float
    blur_um: float
    gamma: float
    white: Vector  # of the empty glass
    noise: float  # standard deviation in grey levels
    jpeg_quality: int
    suffix: str  # .svs (Aperio's layout) or .tif (generic pyramid, resolution in tags)


BLOOD: Vector = (0.10, 0.68, 0.72)
NORTH = Hospital(
    "north", haematoxylin=(0.585, 0.710, 0.392), eosin=(0.195, 0.830, 0.520), strength=(1.0, 1.0), mpp=0.5,
    blur_um=0.28, gamma=1.0, white=(244.0, 243.0, 245.0), noise=1.6, jpeg_quality=85, suffix=".svs",
)  # fmt: skip
SOUTH = Hospital(
    "south", haematoxylin=(0.690, 0.660, 0.300), eosin=(0.120, 0.920, 0.370), strength=(1.08, 0.85), mpp=0.44,
    blur_um=0.50, gamma=1.10, white=(247.0, 243.0, 234.0), noise=2.6, jpeg_quality=72, suffix=".tif",
)  # fmt: skip
HOSPITALS = (NORTH, SOUTH)


def vary_stain(hospital: Hospital, seed: int) -> Hospital:
    """The hospital's settings for one slide, with slightly varied recipe and stain vectors."""
    from dataclasses import replace

    rng = np.random.default_rng([seed, 3])

    def shake(vector: Vector, spread: float) -> Vector:
        moved = np.array(vector) * np.exp(rng.normal(0, spread, 3))
        a, b, c = (moved / np.linalg.norm(moved)).tolist()
        return a, b, c

    strength = tuple((np.array(hospital.strength) * np.exp(rng.normal(0, 0.07, 2))).tolist())
    return replace(
        hospital,
        haematoxylin=shake(hospital.haematoxylin, 0.03),
        eosin=shake(hospital.eosin, 0.03),
        strength=strength,
    )


def scan(hospital: Hospital, stains: tuple[Field, Field, Field], rng: np.random.Generator) -> Picture:
    """The colours `[h, w, 3]` of stain amounts `[h, w]` (haematoxylin, eosin, blood)."""
    from scipy.ndimage import gaussian_filter

    vectors = (hospital.haematoxylin, hospital.eosin, BLOOD)
    amounts = [
        gaussian_filter(stain, hospital.blur_um / hospital.mpp, mode="nearest", truncate=2.5) * np.float32(k)
        for stain, k in zip(stains, (*hospital.strength, 1.0), strict=True)
    ]
    shape = amounts[0].shape
    grain = rng.standard_normal((shape[0], 1024), np.float32) * np.float32(hospital.noise)
    out = np.empty((*shape, 3), np.uint8)
    for channel in range(3):
        density = sum(a * np.float32(v[channel]) for a, v in zip(amounts, vectors, strict=True))
        light = np.exp(density * np.float32(-hospital.gamma)) * np.float32(hospital.white[channel])
        light += np.take(grain, np.arange(shape[1]) * (channel + 1) % 1024, axis=1)
        out[..., channel] = np.clip(light + 0.5, 0, 255)
    return out


def write_slide(path: Path, hospital: Hospital, picture: Picture) -> None:
    """Write a pyramid of 256-pixel JPEG tiles with levels 1, 2, 4, in the layout of the hospital's vendor.

    ``.svs``: Aperio's layout, with the spacing in the description and a stripped thumbnail as the second page.
    ``.tif``: a generic pyramid with the spacing in the resolution tags (pixels per centimetre).
    """
    import tifffile

    levels = [picture]
    while len(levels) < 3:
        levels.append(_half(levels[-1]))
    options = {
        "compression": "jpeg",
        "compressionargs": {"level": hospital.jpeg_quality},
        "photometric": "rgb",
        "subsampling": (2, 2),
        "metadata": None,
        "software": False,
    }
    aperio = hospital.suffix == ".svs"
    with tifffile.TiffWriter(path, bigtiff=False) as tiff:
        for k, level in enumerate(levels):
            per_cm = 1e4 / (hospital.mpp * 2**k)
            description = _aperio(hospital, picture, level, k) if aperio else None
            reduced = 1 if k and not aperio else 0
            tiff.write(
                level,
                tile=(256, 256),
                description=description,
                subfiletype=reduced,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                **options,
            )
            if aperio and k == 0:
                small = levels[-1][::4, ::4]
                text = _aperio(hospital, picture, small, k)
                tiff.write(np.ascontiguousarray(small), rowsperstrip=16, description=text, **options)


def _half(picture: Picture) -> Picture:
    h, w = (n // 2 * 2 for n in picture.shape[:2])
    even = picture[:h, :w].astype(np.uint16)
    total = even[0::2, 0::2] + even[1::2, 0::2] + even[0::2, 1::2] + even[1::2, 1::2]
    return ((total + 2) >> 2).astype(np.uint8)


def _aperio(hospital: Hospital, whole: Picture, level: Picture, k: int) -> str:
    height, width = whole.shape[:2]
    size = f"{width}x{height} [0,0 {width}x{height}] (256x256)"
    if level is not whole:
        size += f" -> {level.shape[1]}x{level.shape[0]}"
    facts = f"|AppMag = {round(10 / hospital.mpp)}|MPP = {hospital.mpp:.4f}" if k == 0 else ""
    return f"Aperio Image Library v12.0.15\r\n{size} JPEG/RGB Q={hospital.jpeg_quality}{facts}|ScanScope ID = DEMO"
