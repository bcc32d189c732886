"""Spatial transcriptomics → a regression's table: spots with counts, and patches around them at a given spacing.

    counts c of a spot with n in total → y = ln(1 + 10⁴ c / n)        (log1p CP10k)

Spots and counts are joined by id, one to one, or refused. Genes are selected on training groups only. Not here: the
requirements of training on a table (regression.tables.table), and splits (pathray.data.splits).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pathray.errors import UnreadableUnit, UserError
from pathray.features.images import read_image
from pathray.files.sheet import Sheet, read_sheet
from pathray.store.storage import Storage, write_atomic
from pathray.wsi.reader import SlideReader, open_slide
from pathray.wsi.regions import read_regions
from pathray.wsi.spacing import MAX_ENLARGEMENT, level_mpps, too_coarse

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")  # decoded whole
AT_A_TIME = 64
UNIT, WHOLE = "ln(1 + CP10k)", "a whole number of molecules, 0 or more"


@dataclass(frozen=True)
class Counts:
    """Molecules of each gene in each spot, `[N, G]`; `total` `[N]` over all genes, also those that are not included."""

    spots: tuple[str, ...]
    genes: tuple[str, ...]
    values: Floats
    total: Floats

    def of(self, spots: Sequence[str], genes: Sequence[str] | None = None) -> Counts:
        """The counts of some spots, and of some genes (None: all). KeyError for an unknown spot or gene."""
        row, column = ({name: i for i, name in enumerate(names)} for names in (self.spots, self.genes))
        rows, wanted = [row[name] for name in spots], self.genes if genes is None else tuple(genes)
        columns = [column[name] for name in wanted]
        return Counts(tuple(spots), wanted, self.values[np.ix_(rows, columns)], self.total[rows])


def read_counts(path: str, totals: dict[str, float] | None = None) -> Counts:
    """A CSV or TSV (also .gz): spot ids in the first column, then a column per gene. `totals` of the spots, if the file
    has only some of the genes. UserError naming row and gene for an invalid count, a duplicate or empty spot."""
    sheet = read_sheet(path, "table of counts")
    ids, genes = sheet.texts(sheet.names[0]), tuple(sheet.names[1:])
    _check_unique(sheet, sheet.names[0], ids)
    if "" in genes:
        message, expected = "a column of the counts has no gene name", "a name, or no separator at the ends of lines"
        raise UserError(message, file=path, found=f"column {genes.index('') + 2}", expected=expected)
    values = np.empty((len(ids), len(genes)))
    for k, gene in enumerate(genes):
        values[:, k] = column = sheet.numbers(gene, "not a count", WHOLE)
        if (bad := np.flatnonzero((column < 0) | (column != np.floor(column)))).size:
            raise sheet.cell_error("not a count", int(bad[0]), gene, WHOLE)
    if totals is not None and (missing := [i for i in ids if i not in totals]):
        raise UserError("a spot without a total", file=path, key=missing[0], found=f"{len(missing)} such spots")
    total = values.sum(axis=1) if totals is None else np.array([totals[i] for i in ids], np.float64)
    short = np.flatnonzero((total <= 0) | (total < values.sum(axis=1)))
    if short.size:
        row = int(short[0])
        where = {"file": path, "row": sheet.lines[row], "key": ids[row]}
        expected = "a total > 0, at least the sum of the genes in the file"
        raise UserError("a spot's total is too small", **where, found=float(total[row]), expected=expected)
    return Counts(tuple(ids), genes, values, total)


def log1p_cp10k(counts: Counts) -> Floats:
    """ln(1 + 10⁴ c / n) `[N, G]`."""
    out: Floats = np.log1p(counts.values * (1e4 / counts.total[:, None]))
    return out


def select_genes(expression: Floats, genes: Sequence[str], train: npt.NDArray[np.bool_], count: int) -> list[str]:
    """The `count` genes with the largest variance over the rows of `train` `[N]`; other rows are not used."""
    varies = expression[train].var(axis=0)
    if count > (alive := int((varies > 0).sum())):
        raise UserError("too few genes vary over the training rows", key="genes", found=alive, expected=count)
    return [genes[k] for k in sorted(range(len(genes)), key=lambda k: (-varies[k], genes[k]))[:count]]


@dataclass(frozen=True)
class Spots:
    """Where the spots are: ids, groups (patients or sections), their sections, centres `[N, 2]` in pixels of the
    section's image, and the `sheet` they were read from, with the same rows."""

    file: str
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    sections: tuple[str, ...]
    centres: Floats
    sheet: Sheet

    def only(self, wanted: Collection[str]) -> Spots:
        """The spots of some sections."""
        rows = [i for i, name in enumerate(self.sections) if name in wanted]
        ids, groups, sections = (tuple(v[i] for i in rows) for v in (self.ids, self.groups, self.sections))
        return Spots(self.file, ids, groups, sections, self.centres[rows], self.sheet.only(rows))


def read_spots(
    path: str, *, group: str, section: str | None = None, x: str = "pixel_x", y: str = "pixel_y", spot: str = "spot_id"
) -> Spots:
    """A CSV or TSV with these columns; without `section` the groups are sections. UserError naming row and column for
    a missing column, a duplicate spot, an empty cell, and a coordinate that is not a number."""
    section = section or group
    sheet = read_sheet(path, "table of spots")
    sheet.need(spot, group, section, x, y)
    ids, groups, sections = (tuple(sheet.texts(name)) for name in (spot, group, section))
    _check_unique(sheet, spot, ids)
    sheet.check_spelling(group, "groups")
    centres = np.stack([sheet.numbers(name, "not a finite coordinate") for name in (x, y)], axis=1)
    return Spots(path, ids, groups, sections, centres, sheet)


def check_same_spots(spots: Spots, counts: Counts) -> None:
    """UserError unless both have the same spots."""
    if set(spots.ids) != set(counts.spots):
        apart = sorted(set(spots.ids) ^ set(counts.spots))
        found = f"{len(apart)} spots in one file only, the first {apart[0]}"
        turned = "spots in rows and genes in columns: transpose the counts"
        expected = turned if set(spots.ids) & set(counts.genes) else "each spot in both files"
        message = "spots and counts have different spots"
        raise UserError(message, file=spots.file, key="spot_id", found=found, expected=expected)


def write_table(
    path: str, spots: Spots, patches: Sequence[str], counts: Counts, images: Mapping[str, SectionImage] | None = None
) -> None:
    """Write the table of a regression: `path`, `group_id`, a column per gene of `counts`, and the patches' places
    (regression.tables.places); a row per spot, in the spots' order.

    `patches` are the paths to write, `images` those of the sections. UserError unless `spots` and `counts` have the
    same spots.
    """
    check_same_spots(spots, counts)
    assert len(patches) == len(spots.ids), (len(patches), len(spots.ids))
    expression = log1p_cp10k(counts.of(spots.ids))
    columns: dict[str, Any] = {"path": list(patches), "group_id": list(spots.groups), "section": list(spots.sections)}
    columns |= {"x": spots.centres[:, 0], "y": spots.centres[:, 1], "unit": [UNIT] * len(patches)}
    if images is not None:
        of = [images[name] for name in spots.sections]
        columns |= {"image": [i.path for i in of], "image_mpp": [i.mpp for i in of]}
        if all(i.radius_px is not None for i in of):
            columns["radius_px"] = [i.radius_px for i in of]
    if taken := sorted(set(columns) & set(counts.genes)):
        raise UserError("a gene is named like another column", file=path, key=taken[0])
    table = pa.table(columns | {gene: expression[:, k] for k, gene in enumerate(counts.genes)})
    if path.endswith(".parquet"):
        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        pq.write_table(table, buffer)
    else:
        from pyarrow import csv

        buffer = io.BytesIO()
        csv.write_csv(table, buffer)
    write_atomic(path, buffer.getvalue())


@dataclass(frozen=True)
class SectionImage:
    """A section's image, its µm per pixel, and the radius of its spots in pixels, if known."""

    path: str
    mpp: float
    radius_px: float | None = None


def open_section(path: str) -> SlideReader:
    """Open a slide, or a plain image, which is decoded whole."""
    return _Plain(path) if path.lower().endswith(IMAGE_SUFFIXES) else open_slide(path)


def spacing_of(reader: SlideReader, image_mpp: float | None) -> float:
    """µm per pixel: `image_mpp`, else that of the image. UserError if there is neither."""
    mpp0 = image_mpp or reader.mpp
    if mpp0 is None:
        expected = "µm per pixel"
        raise UserError("the image does not say its pixel size", file=reader.path, key="image_mpp", expected=expected)
    return mpp0


def cut_patches(
    image: str,
    spots: Spots,
    folder: str,
    *,
    size_px: int,
    mpp: float,
    image_mpp: float | None = None,
    max_enlargement: float = MAX_ENLARGEMENT,
) -> list[str]:
    """Write a PNG `<spot>.png` of `size_px` pixels of `mpp` µm around every spot, below `folder`; returns their names.

    `image` is a slide, or a plain image, which is decoded whole; `image_mpp` is its µm per pixel, if it has none.
    Outside the image is white. UserError for an unknown spacing, for a spot outside the image, and for an image that
    would be enlarged more than `max_enlargement` times.
    """
    from PIL import Image

    reader = open_section(image)
    try:
        mpp0 = spacing_of(reader, image_mpp)
        if coarse := too_coarse(level_mpps(reader, mpp0), mpp, max_enlargement):
            raise UserError(f"the image is too coarse: {coarse}", file=reader.path, key="mpp", found=mpp)
        width, height = reader.level_shapes[0]
        for spot, (cx, cy) in zip(spots.ids, spots.centres.tolist(), strict=True):
            if "/" in spot or "\\" in spot:
                raise UserError("a spot id is not a file name", file=spots.file, key=spot, expected="no slashes")
            if not (0 <= cx < width and 0 <= cy < height):
                found, expected = f"({cx:g}, {cy:g})", f"inside {width} x {height}"
                raise UserError(
                    "a spot is outside the image", file=spots.file, key=spot, found=found, expected=expected
                )
        store, names = Storage.of(folder), [f"{spot}.png" for spot in spots.ids]
        for first in range(0, len(names), AT_A_TIME):
            part = [(float(cx), float(cy)) for cx, cy in spots.centres[first : first + AT_A_TIME]]
            regions = read_regions(reader, part, size_px, mpp, mpp0=mpp0)
            for name, region in zip(names[first : first + AT_A_TIME], regions, strict=True):
                buffer = io.BytesIO()
                Image.fromarray(region.pixels).save(buffer, "PNG")
                store.write_bytes(name, buffer.getvalue())
    finally:
        reader.close()
    return names


class _Plain:
    """A plain image as a slide of one level."""

    backend, mpp, mpp_source, spacing_note = "image", None, None, ""

    def __init__(self, path: str) -> None:
        from PIL.Image import DecompressionBombWarning

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DecompressionBombWarning)  # a section is large
                self.path, self._pixels = path, read_image(path)
        except UnreadableUnit as e:
            expected = "an image that can be decoded whole; convert a larger one to a pyramidal TIFF"
            raise UserError("the section's image cannot be read", file=path, found=e.detail, expected=expected) from e
        self.level_shapes = ((self._pixels.shape[1], self._pixels.shape[0]),)
        self.level_downsamples = (1.0,)

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        out = np.full((height, width, 3), 255, np.uint8)
        h, w = self._pixels.shape[:2]
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, w), min(y + height, h)
        if x0 < x1 and y0 < y1:
            out[y0 - y : y1 - y, x0 - x : x1 - x] = self._pixels[y0:y1, x0:x1]
        return out

    def close(self) -> None:
        """Nothing is open."""


def totals_of(spots: Spots, column: str) -> dict[str, float]:
    """The molecules of each spot over all genes, from a column of the spots. UserError naming the row for a cell that
    is empty, not a number, or not above 0."""
    sheet = spots.sheet
    sheet.need(column)
    values = sheet.numbers(column, "not a total", "a number > 0")
    if (bad := np.flatnonzero(values <= 0)).size:
        raise sheet.cell_error("not a total", int(bad[0]), column, "a number > 0")
    return dict(zip(spots.ids, values.tolist(), strict=True))


def _check_unique(sheet: Sheet, name: str, ids: Sequence[str]) -> None:
    seen: dict[str, int] = {}
    for i, spot in enumerate(ids):
        if (first := seen.setdefault(spot, i)) != i:
            raise sheet.cell_error("duplicate spot", i, name, f"each spot once, already in row {sheet.lines[first]}")
