"""Draws an evaluation: predicted over measured, a bar per gene, and maps of a gene over the section.

Not here: the evaluation itself (regression.evaluate).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pathray.draw.canvas import ACCENTS, FAINT, INK, MUTED, length_label, round_length
from pathray.draw.charts import plain_frame
from pathray.draw.figures import new_figure, plain_text, to_png
from pathray.errors import UserError
from pathray.stats.correlation import Method, correlation
from pathray.wsi.thumbnail import thumbnail
from regression.evaluate import Evaluation

log = logging.getLogger(__name__)
Pixels = npt.NDArray[np.uint8]
POINTS, GROUPS = 20_000, len(ACCENTS)  # the most points in a scatter; the most groups with their own colour
SECTIONS = 12  # the most sections that get a map
UNDEFINED = "#c0392b"
SECTION_PX = 3000  # longer side of a section's picture, before cropping to the spots
NAMED_GENES = 150  # more bars than this have no names


def figures(judged: Evaluation, per_gene: pa.Table, part: str, method: Method) -> Iterator[tuple[str, bytes]]:
    """Names and PNGs of all figures of one part of the rows, one at a time. `per_gene` is the evaluation's table."""
    picked = pick_genes(judged, method)
    yield f"genes_{part}.png", draw_genes(judged, picked, part)
    yield f"per_gene_{part}.png", draw_per_gene(per_gene, method, part)
    if judged.places is None:
        return
    sections = sorted(set(judged.places.section.tolist()))
    if len(sections) > SECTIONS:
        log.info("drawing maps of the first %d of %d sections only", SECTIONS, len(sections))
    for section in sections[:SECTIONS]:
        here = Section.of(judged, section)
        for _, gene in picked:
            name = f"map_{quote(section, safe='')}_{quote(judged.genes[gene], safe='')}_{part}.png"
            yield name, draw_map(judged, here, gene, part)


def pick_genes(judged: Evaluation, method: Method) -> list[tuple[str, int]]:
    """The best, the median and the worst predicted gene, each once. Genes without a correlation are left out, unless
    there are no others."""
    found = correlation(judged.predicted, judged.measured, method)
    order = np.argsort(-found.values, kind="stable")
    order = order[~found.undefined[order]] if not found.undefined.all() else order
    chosen = [("best", order[0]), ("median", order[(order.size - 1) // 2]), ("worst", order[-1])]
    if order.size < 3:
        chosen = [chosen[0], chosen[2]][: order.size]
    return [(name, int(gene)) for name, gene in chosen]


def draw_genes(judged: Evaluation, picked: list[tuple[str, int]], part: str) -> bytes:
    """A PNG: predicted over measured for some genes, on equal axes, with both correlations and the identity."""
    figure = _figure(4.6 * len(picked) + 0.4, 5.7, f"Predicted and measured expression, {part}", _size(judged))
    named = sorted(set(judged.groups.tolist()))
    rows = np.random.default_rng(0).permutation(len(judged.groups))[:POINTS]
    for i, (place, gene) in enumerate(picked):
        axes = figure.add_subplot(1, len(picked), i + 1)
        x, y = judged.measured[:, gene], judged.predicted[:, gene]
        low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
        margin = 0.04 * (high - low or 1.0)
        ends = low - margin, high + margin
        axes.plot(ends, ends, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        size = float(np.clip(6_000 / max(rows.size, 1), 4, 30))
        colour = [ACCENTS[named.index(g)] if len(named) <= GROUPS else ACCENTS[0] for g in judged.groups[rows].tolist()]
        axes.scatter(x[rows], y[rows], s=size, c=colour, alpha=0.6, linewidths=0, zorder=2)
        axes.set(xlim=ends, ylim=ends, aspect="equal")
        _set_title(axes, f"{plain_text(judged.genes[gene], 28)}  ({place})", _correlations(judged, gene))
        axes.set_xlabel(_axis("measured", judged.unit), fontsize=9, color=MUTED)
        axes.set_ylabel("predicted" if i else _axis("predicted", judged.unit), fontsize=9, color=MUTED)
        plain_frame(axes)
    if 1 < len(named) <= GROUPS:
        from matplotlib.lines import Line2D

        dots = [Line2D([], [], color=ACCENTS[i], marker="o", linestyle="", markersize=6) for i in range(len(named))]
        figure.legend(
            dots, [plain_text(name, 20) for name in named], loc="upper right", ncols=len(named), fontsize=9,
            frameon=False, labelcolor=INK, handletextpad=0.1, columnspacing=1.2, bbox_to_anchor=(0.995, 0.985),
        )  # fmt: skip
    figure.tight_layout(rect=(0, 0, 1, 0.875), w_pad=2.0)
    return to_png(figure)


def draw_per_gene(per_gene: pa.Table, method: Method, part: str) -> bytes:
    """A PNG: a bar per gene, best first, with the interval of its correlation; genes without one are marked."""
    value = per_gene[method].to_numpy()
    order = np.argsort(-value, kind="stable")
    value, undefined = value[order], per_gene["undefined"].to_numpy()[order]
    low, high = (np.array(per_gene[f"{method}_{end}"].to_pylist(), np.float64)[order] for end in ("low", "high"))
    names = np.array(per_gene["gene"].to_pylist())[order]
    known = np.isfinite(low)
    words = f"mean of {value.size} genes {value.mean():.3f}; {int(undefined.sum())} undefined, which count as 0"
    below = f"{words}{'; whiskers: 95% intervals over groups' if known.any() else '; one group: no intervals'}"
    width = float(np.clip(1.6 + 0.19 * value.size, 6.5, 30))
    figure = _figure(width, 4.3, f"{METHODS[method]} per gene, {part}", below)
    axes = figure.add_axes((0.9 / width, 0.24, 1 - 1.15 / width, 0.57))
    at = np.arange(value.size)
    axes.bar(at, value, color=[ACCENTS[0] if v >= 0 else ACCENTS[2] for v in value], width=0.72, alpha=0.85)
    axes.vlines(at[known], low[known], high[known], color=INK, linewidth=1.0)
    axes.axhline(0, color=MUTED, linewidth=0.9)
    axes.axhline(value.mean(), color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    style = {"markersize": 6, "markeredgewidth": 1.6, "zorder": 5}
    axes.plot(at[undefined], np.zeros(int(undefined.sum())), "x", color=UNDEFINED, clip_on=False, **style)
    axes.set_xlim(-0.8, value.size - 0.2)
    axes.set_ylabel(METHODS[method], fontsize=9, color=MUTED)
    plain_frame(axes)
    if value.size <= NAMED_GENES:
        axes.set_xticks(at, [plain_text(name, 16) for name in names], rotation=90, fontsize=8)
    else:
        axes.set_xlabel("genes, the best first", fontsize=9, color=MUTED)
    return to_png(figure)


@dataclass(frozen=True)
class Section:
    """The spots of one section: their `rows` in the evaluation, radius in pixels, the part of the section's image that
    contains them (None: unknown), and `extent`: its left, right, bottom and top in pixels of the whole image."""

    name: str
    rows: npt.NDArray[np.int64]
    radius: float
    picture: Pixels | None
    extent: tuple[float, float, float, float]
    mpp: float

    @classmethod
    def of(cls, judged: Evaluation, section: str) -> Section:
        assert judged.places is not None
        rows = np.flatnonzero(judged.places.section == section)
        here = judged.places.take(rows)
        x, y = here.x, here.y
        known = float(np.nanmedian(here.radius_px)) if np.isfinite(here.radius_px).any() else _radius(x, y)
        margin = 4 * known
        box = (float(x.min()) - margin, float(x.max()) + margin, float(y.max()) + margin, float(y.min()) - margin)
        mpp = float(np.nanmedian(here.image_mpp)) if np.isfinite(here.image_mpp).any() else float("nan")
        picture, extent = _cut(str(here.image[0]), box) if here.image[0] else (None, box)
        return cls(section, rows, known, picture, extent, mpp)


def draw_map(judged: Evaluation, section: Section, gene: int, part: str) -> bytes:
    """A PNG: the tissue (if its image is known), measured and predicted expression over it on one colour scale."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    rows = section.rows
    measured, predicted = judged.measured[rows, gene], judged.predicted[rows, gene]
    panels = [("measured", measured), ("predicted", predicted)]
    panels = [("tissue", None), *panels] if section.picture is not None else panels
    left, right, bottom, top = section.extent
    high = float(np.clip(4.6 * (bottom - top) / (right - left), 2.2, 7.5))
    own = f"{rows.size:,} spots"
    if rows.size > 1:
        r = {m: correlation(predicted[:, None], measured[:, None], m) for m in METHODS}  # type: ignore[type-var]
        own += "; " + ", ".join(f"{METHODS[m]} {_value(c.values[0], c.undefined[0])}" for m, c in r.items())
    title = f"{plain_text(judged.genes[gene], 28)} in section {plain_text(section.name, 28)}, {part}"
    width, height = 4.7 * len(panels) + 1.1, high + 1.1
    figure = _figure(width, height, title, own)
    scale = Normalize(float(min(measured.min(), predicted.min())), float(max(measured.max(), predicted.max())))
    for i, (name, values) in enumerate(panels):
        axes = figure.add_axes(((0.15 + 4.7 * i) / width, 0.1 / height, 4.55 / width, high / height))
        _tissue(axes, section, faint=values is not None)
        if values is not None:
            _spots(axes, judged, section, values, scale)
        axes.set_title(name, loc="left", fontsize=11.5, fontweight="bold", color=INK)
        if i == 0 and np.isfinite(section.mpp):
            _scale_bar(axes, section)
    bar = figure.add_axes(((4.7 * len(panels) + 0.15) / width, 0.1 / height, 0.16 / width, 0.9 * high / height))
    colours = figure.colorbar(ScalarMappable(scale, COLOURS), cax=bar)
    colours.outline.set_visible(False)
    bar.tick_params(colors=MUTED, labelsize=8.5, length=3)
    bar.set_ylabel(judged.unit or "units of the table", fontsize=9, color=MUTED)
    return to_png(figure)


METHODS: dict[Method, str] = {"pearson": "Pearson r", "spearman": "Spearman ρ"}
COLOURS = "viridis"


def _radius(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Four tenths of the usual distance between neighbours, for spots of unknown size."""
    from scipy.spatial import cKDTree

    if x.size < 2:
        return 50.0
    near = cKDTree(np.column_stack([x, y])).query(np.column_stack([x, y]), k=2)[0][:, 1]
    return 0.4 * float(np.median(near)) or 1.0


def _cut(image: str, box: tuple[float, ...]) -> tuple[Pixels | None, tuple[float, float, float, float]]:
    """The part of a section's image around its spots. An unreadable image is logged and left out of the picture."""
    from regression.tables.spatial import open_section

    left, right, bottom, top = box
    try:
        reader = open_section(image)
        try:
            width, height = reader.level_shapes[0]
            whole = thumbnail(reader, SECTION_PX)
        finally:
            reader.close()
    except UserError as e:
        log.warning("maps are drawn without their tissue: %s", e)
        return None, (left, right, bottom, top)
    scale = whole.shape[1] / width
    x0, x1 = int(max(0, left) * scale), int(np.ceil(min(width, right) * scale))
    y0, y1 = int(max(0, top) * scale), int(np.ceil(min(height, bottom) * scale))
    return whole[y0:y1, x0:x1], (x0 / scale, x1 / scale, y1 / scale, y0 / scale)


def _tissue(axes: Any, section: Section, faint: bool) -> None:
    left, right, bottom, top = section.extent
    if section.picture is not None:
        shown = section.picture
        if faint:  # grey and pale, so that only the expression has colours
            grey = shown.astype(np.float32).mean(axis=2, keepdims=True)
            shown = np.repeat((255 - 0.45 * (255 - grey)).astype(np.uint8), 3, axis=2)
        axes.imshow(shown, extent=section.extent, interpolation="antialiased")
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def _spots(axes: Any, judged: Evaluation, section: Section, values: npt.NDArray[np.float64], scale: Any) -> None:
    from matplotlib.collections import EllipseCollection

    assert judged.places is not None
    here = judged.places.take(section.rows)
    size = np.full(values.size, 2 * section.radius)
    spots = EllipseCollection(
        size, size, np.zeros(values.size), units="xy", offsets=np.column_stack([here.x, here.y]),
        offset_transform=axes.transData, cmap=COLOURS, norm=scale, linewidths=0, alpha=0.92,
    )  # fmt: skip
    spots.set_array(values)
    axes.add_collection(spots)


def _scale_bar(axes: Any, section: Section) -> None:
    left, right, bottom, top = section.extent
    um = round_length(0.25 * (right - left) * section.mpp)
    length, thick = um / section.mpp, 0.012 * (bottom - top)
    x, y = left + 0.04 * (right - left), bottom - 0.04 * (bottom - top)
    from matplotlib.patches import Rectangle

    plate = (x - 1.2 * thick, y - 6.5 * thick), length + 2.4 * thick, 7.7 * thick
    axes.add_patch(Rectangle(*plate, color="white", alpha=0.85, linewidth=0, zorder=4))
    axes.add_patch(Rectangle((x, y - thick), length, thick, color=INK, linewidth=0, zorder=5))
    axes.text(
        x + length / 2, y - 1.6 * thick, length_label(um), ha="center", va="bottom", fontsize=8.5, color=INK, zorder=5
    )


def _correlations(judged: Evaluation, gene: int) -> str:
    x, y = judged.predicted[:, [gene]], judged.measured[:, [gene]]
    found = {name: correlation(x, y, name) for name in METHODS}
    return "   ".join(f"{METHODS[name]} {_value(c.values[0], c.undefined[0])}" for name, c in found.items())


def _value(value: float, undefined: bool) -> str:
    return "undefined" if undefined else f"{value:.2f}"


def _size(judged: Evaluation) -> str:
    groups = len(set(judged.groups.tolist()))
    shown = f"; {POINTS:,} of them are drawn" if len(judged.groups) > POINTS else ""
    return f"{len(judged.groups):,} images of {groups} group{'s' if groups > 1 else ''}{shown}; dashed: identity"


def _axis(what: str, unit: str) -> str:
    return f"{what}, {unit}" if unit else f"{what} (units of the table)"


def _figure(width: float, height: float, title: str, below: str) -> Any:
    figure = new_figure(width, height, 130)
    figure.text(0.13 / width, 1 - 0.12 / height, title, va="top", fontsize=14, fontweight="bold", color=INK)
    figure.text(0.13 / width, 1 - 0.44 / height, below, va="top", fontsize=9.5, color=MUTED)
    return figure


def _set_title(axes: Any, title: str, below: str) -> None:
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=INK, y=1.07)
    axes.text(0, 1.02, below, transform=axes.transAxes, fontsize=9, color=MUTED, va="bottom")
