"""Finds the anchors of a slide: a regular grid, kept where the context holds enough tissue. Vectorised, no Ray.

An anchor is the centre of a context in level-0 pixels. Not here: files (ijepath.indexing.catalog); the targets inside
a context, which are drawn while training (ijepath.geometry).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ijepath.indexing.index import OrderedMap
from ijepath.profile import Profile
from pathray.errors import MissingFile
from pathray.reports.units import describe
from pathray.urls import public
from pathray.wsi.backends.formats import slide_file_of
from pathray.wsi.kept_masks import cached_mask
from pathray.wsi.reader import SlideReader, open_mask, open_slide
from pathray.wsi.spacing import MAX_ENLARGEMENT, choose_level, enlarged_note, too_coarse
from pathray.wsi.tissue import Mask, tissue_mask

CELLS_PER_STRIDE = 32  # the tissue map has at least this many cells per stride
STRIP_BYTES = 32 << 20  # of mask pixels decoded at a time

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SlideAnchors:
    """The anchors of one slide in raster order, or the reason why it has none. `detail` explains the reason, or notes
    that the slide is slightly enlarged.

    `reason` is "" or one of slide_status_not_ok, missing_mask_path, invalid_profile_geometry, no_valid_anchors,
    too_coarse, error.
    """

    slide: dict[str, Any]  # the slide's row of the index
    reason: str = ""
    detail: str = ""
    center_x: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    center_y: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    tissue_fraction: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    source_context_mpp: float = 0.0
    source_target_mpp: float = 0.0

    @property
    def status(self) -> str:
        """ok, skipped (the slide is fine but has no anchors) or failed."""
        if not self.reason:
            return "ok"
        return "failed" if self.reason in ("error", "missing_mask_path", "too_coarse") else "skipped"

    def __len__(self) -> int:
        return int(self.center_x.size)


def anchors_of(
    slides: Iterable[Mapping[str, Any]],
    profile: Profile,
    *,
    max_enlargement: float = MAX_ENLARGEMENT,
    map: OrderedMap = map,
) -> Iterator[SlideAnchors]:
    """The anchors of every slide of an index, in its order, through any ordered map (see ijepath.indexing.index)."""
    yield from map(partial(slide_anchors, profile=profile.validate(), max_enlargement=max_enlargement), slides)


def slide_anchors(slide: Mapping[str, Any], profile: Profile, max_enlargement: float = MAX_ENLARGEMENT) -> SlideAnchors:
    """The anchors of one slide. Any fault of the slide becomes `reason` and `detail`; nothing is raised.

    A slide whose finest level would have to be enlarged more than `max_enlargement` times, for contexts or targets,
    has no anchors: it lacks the detail of that spacing.
    """
    row = dict(slide)
    if row["status"] != "ok":
        return SlideAnchors(row, "slide_status_not_ok", str(row["error"] or ""))
    finest = min(profile.context_effective_mpp, profile.target_effective_mpp)
    if coarse := too_coarse(row["wsi_spacings_mpp"], finest, max_enlargement):
        return SlideAnchors(row, "too_coarse", coarse)
    try:
        return _anchors(row, profile)
    except AssertionError:
        raise
    except MissingFile as error:
        reason = "missing_mask_path" if error.where["file"] == public(row["mask_path"]) else "error"
        return SlideAnchors(row, reason, describe(error))
    except Exception as error:  # an unreadable slide must not end the job
        return SlideAnchors(row, "error", describe(error))


def _anchors(row: dict[str, Any], profile: Profile) -> SlideAnchors:
    width, height, mpp0 = row["wsi_level0_width"], row["wsi_level0_height"], row["wsi_level0_spacing_mpp"]
    size, stride = profile.context_size_level0(mpp0), profile.stride_level0(mpp0)
    if size > min(width, height) or size < 1:
        detail = f"the context is {size} level-0 pixels wide, the slide {width} x {height}"
        return SlideAnchors(row, "invalid_profile_geometry", detail)
    left, top = grid(width, size, stride), grid(height, size, stride)
    tissue = _tissue(row, stride)
    fraction = tissue.mean(left, top, size)
    ys, xs = np.nonzero(fraction >= profile.min_tissue_fraction)  # raster order
    if xs.size == 0:
        best = f"{fraction.max():.3f} of the best context is tissue, {profile.min_tissue_fraction} is required"
        return SlideAnchors(row, "no_valid_anchors", best)
    spacings, tolerance = row["wsi_spacings_mpp"], profile.spacing_tolerance
    context = choose_level(spacings, profile.context_effective_mpp, tolerance)
    target = choose_level(spacings, profile.target_effective_mpp, tolerance)
    note = enlarged_note(context, "the contexts'") or enlarged_note(target, "the targets'")
    center_x, center_y = left[xs] + size // 2, top[ys] + size // 2
    shares = fraction[ys, xs].astype(np.float32)
    return SlideAnchors(row, "", note, center_x, center_y, shares, context.level_mpp, target.level_mpp)


def grid(length: int, size: int, stride: int) -> Ints:
    """First pixels 0, stride, 2·stride … of all windows of `size` inside `length`, including one that just fits."""
    return np.arange(0, length - size + 1, stride, dtype=np.int64)


@dataclass(frozen=True)
class TissueMap:
    """Tissue as an integral image over cells with exact edges, so that the share of a window is exact.

    `integral[j, i]` is the tissue area (level-0 pixels²) left of `edges_x[i]` and above `edges_y[j]`; tissue counts as
    uniform within a cell.
    """

    edges_x: Floats  # [w + 1], level-0 pixels, rising from 0
    edges_y: Floats  # [h + 1]
    integral: Floats  # [h + 1, w + 1]

    @classmethod
    def of(cls, tissue: npt.NDArray[Any], edges_x: Floats, edges_y: Floats) -> TissueMap:
        """From the tissue share of every cell, [h, w] in 0…1."""
        area = tissue * np.diff(edges_y)[:, None] * np.diff(edges_x)[None, :]
        integral = np.zeros((edges_y.size, edges_x.size))
        np.cumsum(np.cumsum(area, axis=0, out=area), axis=1, out=integral[1:, 1:])
        return cls(edges_x, edges_y, integral)

    def mean(self, left: Ints, top: Ints, size: int) -> Floats:
        """Tissue share [top, left] of all windows of side `size` with these edges (level-0 pixels)."""
        columns = _at(self.integral, self.edges_x, left + size, 1) - _at(self.integral, self.edges_x, left, 1)
        windows = _at(columns, self.edges_y, top + size, 0) - _at(columns, self.edges_y, top, 0)
        shares = np.asarray(windows / float(size) ** 2, np.float64)
        return shares.clip(0.0, 1.0).round(9)  # so that all tissue is 1, not 1 - 1e-16


def _at(values: Floats, edges: Floats, where: Ints, axis: int) -> Floats:
    """Linear interpolation of `values` along `axis` at `where`."""
    cell = np.clip(np.searchsorted(edges, where, side="right") - 1, 0, edges.size - 2)
    part = (where - edges[cell]) / (edges[cell + 1] - edges[cell])
    part = np.clip(part, 0.0, 1.0)[:, None] if axis == 0 else np.clip(part, 0.0, 1.0)
    low, high = np.take(values, cell, axis), np.take(values, cell + 1, axis)
    return low + part * (high - low)


def _tissue(row: dict[str, Any], stride: int) -> TissueMap:
    width, height = row["wsi_level0_width"], row["wsi_level0_height"]
    if not row["mask_path"]:
        path, mpp0 = slide_file_of(row["wsi_path"]), row["wsi_level0_spacing_mpp"]
        mask = cached_mask(path, row["backend"], mpp0, partial(_compute_mask, path, row["backend"], mpp0))
        rows, columns = mask.shape
        return TissueMap.of(mask > 0, np.linspace(0, width, columns + 1), np.linspace(0, height, rows + 1))
    reader = open_mask(row["mask_path"])
    try:
        return mask_map(reader, width, height, stride)
    finally:
        reader.close()


def _compute_mask(path: str, backend: str, mpp0: float) -> Mask:
    reader = open_slide(path, backend=backend)
    try:
        return tissue_mask(reader, mpp0)
    finally:
        reader.close()


def mask_map(reader: SlideReader, width: int, height: int, stride: int) -> TissueMap:
    """Tissue of a mask over a slide of `width` x `height`, from the coarsest level that is fine enough.

    A level is fine enough if its pixels are at most stride / CELLS_PER_STRIDE wide. Finer levels are read in strips and
    reduced by area to cells of that size, so a single-level mask at full resolution is never whole in memory.
    """
    scales = [width / w for w, _ in reader.level_shapes]
    serving = [level for level, scale in enumerate(scales) if scale <= stride / CELLS_PER_STRIDE]
    level = max(serving, key=lambda i: scales[i]) if serving else int(np.argmin(scales))
    mask_width, mask_height = reader.level_shapes[level]
    factor = max(1, int(stride / CELLS_PER_STRIDE / scales[level]))
    share = reduce_mask(lambda y, h: reader.read_level(level, 0, y, mask_width, h), mask_width, mask_height, factor)
    edges_x = np.minimum(np.arange(share.shape[1] + 1) * factor, mask_width) * (width / mask_width)
    edges_y = np.minimum(np.arange(share.shape[0] + 1) * factor, mask_height) * (height / mask_height)
    return TissueMap.of(share, edges_x, edges_y)


def reduce_mask(
    read: Callable[[int, int], npt.NDArray[np.uint8]],
    width: int,
    height: int,
    factor: int,
    strip_bytes: int = STRIP_BYTES,
) -> Floats:
    """Share of pixels > 0 in every `factor` x `factor` cell; the last row and column of cells may be narrower.

    `read(y, h)` returns the full-width strip [h, width] at row y.
    """
    rows = max(1, strip_bytes // (width * factor)) * factor
    strips = []
    starts_x = np.arange(0, width, factor)
    for y in range(0, height, rows):
        strip = read(y, min(rows, height - y)) > 0
        counts = _sum_cells(strip, factor)
        tall = np.minimum(factor, strip.shape[0] - np.arange(0, strip.shape[0], factor))
        strips.append(counts / (tall[:, None] * np.minimum(factor, width - starts_x)))
    return np.concatenate(strips)


def _sum_cells(tissue: npt.NDArray[np.bool_], factor: int) -> npt.NDArray[np.int64]:
    """Tissue pixels [ceil(h / f), ceil(w / f)] of every cell. (Reshaped sums: reduceat is forty times slower.)"""
    if factor == 1:
        return tissue.astype(np.int64)
    height, width = (-(-n // factor) for n in tissue.shape)
    missing = [(0, count * factor - n) for count, n in zip((height, width), tissue.shape, strict=True)]
    padded = np.pad(tissue, missing) if any(after for _, after in missing) else tissue
    by_row = padded.view(np.uint8).reshape(height, factor, width * factor).sum(1, dtype=np.uint32)
    cells: npt.NDArray[np.int64] = by_row.reshape(height, width, factor).sum(2, dtype=np.int64)
    return cells
