"""What is shown of a volume: B-scans, en-face projection and a section along the slow axis, each with its size in mm.

A plane is grey values and where they are image; it knows its size in mm, or that an axis has none. Frames are taken one
at a time. Depth is downwards, as in a B-scan. Not here: drawing (oct.pictures.panels).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from oct.dicom.axis import cell_edges
from oct.volume import Triple, VolumeHeader

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
B_SCANS = 3
SLOW, DEPTH, ALONG = "slow axis", "depth", "along the B-scan"
LOW, HIGH = 1.0, 99.7  # percentiles of the image's greys that become black and white


@dataclass(frozen=True)
class Plane:
    """Greys `[h, w]`, where they are image, and the extent (h, w) in mm; None on an axis without a known spacing."""

    greys: Floats
    inside: Bools
    size_mm: tuple[float | None, float | None]
    axes: tuple[str, str]

    def to_pixels(self, outside: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
        """RGB `[h, w, 3]`: the image's greys between the percentiles `LOW` and `HIGH`, other places in one colour."""
        greys = self.greys[self.inside] if self.inside.any() else np.zeros(1, np.float32)
        low, high = (float(v) for v in np.percentile(greys, (LOW, HIGH)))
        scaled = np.clip((self.greys - low) / max(high - low, 1e-6), 0, 1) * 255
        out = np.repeat(np.rint(scaled).astype(np.uint8)[..., None], 3, axis=2)
        out[~self.inside] = outside
        return out

    def crop(self) -> Plane:
        """The smallest rectangle that holds all of the image."""
        if not self.inside.any():
            return self
        spans = [np.flatnonzero(self.inside.any(axis=axis)) for axis in (1, 0)]
        part = tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans)
        greys, inside = self.greys[part], self.inside[part]
        h, w = (
            None if mm is None else mm * n / of
            for mm, n, of in zip(self.size_mm, greys.shape, self.greys.shape, strict=True)
        )
        return replace(self, greys=greys, inside=inside, size_mm=(h, w))


@dataclass(frozen=True)
class Views:
    """Planes of one volume. numbers: which slices along the slow axis `b_scans` are, of `slices`. column: where the
    section is, of `columns`."""

    b_scans: tuple[Plane, ...]
    numbers: tuple[int, ...]
    slices: int
    en_face: Plane
    section: Plane
    column: int
    columns: int


def chosen_slices(first: int, end: int, count: int = B_SCANS) -> tuple[int, ...]:
    """`count` slices evenly spread over first … end - 1; fewer where there are fewer.

    >>> chosen_slices(0, 128), chosen_slices(10, 12)
    ((21, 64, 106), (10, 11))
    """
    spread = first + (np.arange(count) + 0.5) * (end - first) / count
    return tuple(dict.fromkeys(int(i) for i in spread))


def stored_views(frames: Iterable[np.ndarray], header: VolumeHeader) -> Views:
    """Views of a volume as it is stored. frames: `[rows, columns]`, in the order of the slow axis; where they are not
    evenly spaced, the en-face projection and the section are spread to their true places."""
    numbers = chosen_slices(0, header.frames)
    column = header.columns // 2
    kept, rows, lines = dict[int, Floats](), list[Floats](), list[Floats]()
    for i, frame in enumerate(frames):
        rows.append(frame.mean(axis=0, dtype=np.float32))
        lines.append(frame[:, column].astype(np.float32))
        if i in numbers:
            kept[i] = frame.astype(np.float32)
    place, extent_mm = _places(header)
    dz, dy, dx = _known(header)
    z_mm, y_mm, x_mm = (None if dz is None else extent_mm), _times(dy, header.rows), _times(dx, header.columns)
    whole = np.ones((header.rows, header.columns), bool)
    en_face, section = np.stack(rows)[place], np.stack(lines)[place].T
    return Views(
        tuple(Plane(kept[i], whole, (y_mm, x_mm), (DEPTH, ALONG)) for i in numbers),
        numbers,
        header.frames,
        Plane(en_face, np.ones(en_face.shape, bool), (z_mm, x_mm), (SLOW, ALONG)),
        Plane(section, np.ones(section.shape, bool), (y_mm, z_mm), (DEPTH, SLOW)),
        column,
        header.columns,
    )


def grid_views(image: Floats, inside: Bools, spacing_mm: Triple) -> Views:
    """Views of a volume `[D, H, W]` on a grid whose image is where `inside` is true. A NaN spacing is not known."""
    d, h, w = image.shape
    z_mm, y_mm, x_mm = (None if np.isnan(s) else s * n for s, n in zip(spacing_mm, image.shape, strict=True))
    slices = np.flatnonzero(inside.any(axis=(1, 2)))
    first, end = (int(slices[0]), int(slices[-1]) + 1) if slices.size else (0, d)
    numbers, column = chosen_slices(first, end), w // 2
    count = inside.sum(axis=1)
    mean = (image * inside).sum(axis=1) / np.maximum(count, 1)
    return Views(
        tuple(Plane(image[i], inside[i], (y_mm, x_mm), (DEPTH, ALONG)) for i in numbers),
        numbers,
        d,
        Plane(mean.astype(np.float32), count > 0, (z_mm, x_mm), (SLOW, ALONG)),
        Plane(image[:, :, column].T, inside[:, :, column].T, (y_mm, z_mm), (DEPTH, SLOW)),
        column,
        w,
    )


def _places(header: VolumeHeader) -> tuple[npt.NDArray[np.int64], float]:
    """Which frame is at each of `frames` even steps along the slow axis, and the extent in mm."""
    offsets, dz = header.geometry.offsets_mm, header.geometry.spacing_mm[0]
    if offsets is None:
        return np.arange(header.frames), header.frames * dz
    edges = cell_edges(np.array(offsets, np.float64), dz)
    steps = edges[0] + (np.arange(header.frames) + 0.5) * (edges[-1] - edges[0]) / header.frames
    return np.searchsorted(edges, steps, side="right") - 1, float(edges[-1] - edges[0])


def _known(header: VolumeHeader) -> tuple[float | None, float | None, float | None]:
    geometry = header.geometry
    z, y, x = (None if of == "assumed" else v for v, of in zip(geometry.spacing_mm, geometry.sources, strict=True))
    return z, y, x


def _times(step: float | None, count: int) -> float | None:
    return None if step is None else step * count
