"""Patches with a class, a centre and a slide: manifests of labelled images, and the benchmark's datasets by name.

A manifest is a CSV with the columns image_path, label, medical_center, slide_id and, if there are any, sample_id and
subset (ID | OOD); the benchmark's own names patch_id and biological_class are accepted. Not here: pixels and features
(pathray.evaluation.plugins), and what the metrics do with the rows.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.errors import MissingFile, UserError
from pathray.features.inputs import IMAGE_SUFFIXES
from pathray.files.csv_rows import spelling
from pathray.files.sheet import read_sheet

Strings = npt.NDArray[np.str_]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

ALIASES = {"patch_id": "image_path", "biological_class": "label"}
REQUIRED = ("image_path", "label", "medical_center", "slide_id")
IN_DOMAIN, OUT_OF_DOMAIN = "ID", "OOD"
METRICS = ("ri", "apd", "clustering")


class Unfit(UserError):
    """The data cannot carry a metric (too few classes, centres or slides); the others may still be computed."""


@dataclass(frozen=True)
class Patches:
    """The rows of a manifest, a value per row in every array `[N]`; `file` is where they stand. `group` names the pair
    of classes and centres that the benchmark's TCGA 2×2 list puts a row in, empty elsewhere."""

    file: str
    images: tuple[str, ...]
    labels: Strings
    centers: Strings
    slides: Strings
    ood: Bools
    group: Strings

    def __len__(self) -> int:
        return len(self.images)

    @property
    def in_domain(self) -> Ints:
        return np.flatnonzero(~self.ood)

    @property
    def out_of_domain(self) -> Ints:
        return np.flatnonzero(self.ood)


@dataclass(frozen=True)
class Known:
    """A dataset of the benchmark: its neighbourhood k, whether its neighbours are searched within pairs of classes and
    centres, which split plan it has, and which metrics are of its reduced list."""

    k: int
    pairs: bool = False
    reduced: frozenset[str] = frozenset()
    classes: tuple[str, ...] = ()  # in the plan's order, where that is not the alphabet's


KNOWN: Mapping[str, Known] = {
    "camelyon": Known(11, reduced=frozenset({"clustering"})),
    "tcga": Known(61, pairs=True, reduced=frozenset({"ri"})),  # the 2×2 list
    "tolkach_esca": Known(
        46,
        reduced=frozenset({"ri", "clustering"}),
        classes=("TUMOR", "MUSC_PROP", "SH_OES", "SH_MAG", "REGR_TU", "ADVENT"),
    ),
}


@dataclass(frozen=True)
class Dataset:
    """What one dataset is evaluated on: `images` are all that features are needed of, `rows[metric]` the patches that
    the metric looks at, `index[metric]` where their features are. `neighbours` is the k of the robustness index.
    `of_volumes`: the images are files of volumes, which need another reader."""

    name: str
    images: tuple[str, ...]
    rows: Mapping[str, Patches]
    index: Mapping[str, Ints]
    neighbours: int | str
    known: Known | None
    notes: tuple[str, ...] = ()
    of_volumes: bool = False


def read_manifest(path: str, *, root: str = "") -> Patches:
    """The patches of a manifest; relative image paths are below `root` or, without one, beside the manifest.

    The benchmark's patch_id is an image's path too, or, where it has no suffix of an image, stands for the file
    ``<slide_id>-<patch_id>.png``; its other subsets (names of cells and pairs) are in-domain. Raises MissingFile, and
    UserError naming file, row and column.
    """
    sheet = read_sheet(path, "manifest")
    table = {name: sheet.texts(name, may_be_empty=True) for name in sheet.names}
    own = "label" in table
    for column in REQUIRED:
        name = next((n for n in (column, *_aliases(column)) if n in table), None)
        if name is None:
            found = [n for n in table if n]
            raise UserError("the manifest has no such column", file=path, key=column, found=found, expected=REQUIRED)
        table[column] = sheet.texts(name)
    images = [_image(patch, slide) for patch, slide in zip(table["image_path"], table["slide_id"], strict=True)]
    subset = table.get("subset", [IN_DOMAIN] * len(images))
    for row, value in enumerate(subset):
        if own and value.upper() not in (IN_DOMAIN, OUT_OF_DOMAIN):
            raise sheet.cell_error("no such subset", row, "subset", "ID | OOD")
    patches = Patches(
        path,
        tuple(_below(path, root, image) for image in images),
        np.array(table["label"]),
        np.array(table["medical_center"]),
        np.array(table["slide_id"]),
        np.array([value.upper() == OUT_OF_DOMAIN for value in subset]),
        np.array(["" if value.upper() in (IN_DOMAIN, OUT_OF_DOMAIN) else value for value in subset]),
    )
    _check(patches, sheet.lines)
    return patches


def open_dataset(
    name: str, manifest: str, *, reduced: str | None = None, neighbours: int | str | None = None, root: str = ""
) -> Dataset:
    """A dataset of the benchmark (`KNOWN`) or of any other name, from its manifest.

    reduced: the benchmark's other list for the metrics that use one (its camelyon_reduced, tcga_2x2); without it a file
    ``<manifest>_reduced.csv`` beside the manifest is taken and, if there is none, the manifest itself, which `notes`
    then say. neighbours: None for the dataset's own k, which is ``auto`` for one that is not the benchmark's.
    """
    known, notes = KNOWN.get(name), list[str]()
    full = read_manifest(manifest, root=root)
    rows = dict.fromkeys(METRICS, full)
    if known is not None and known.reduced:
        shorter = _read_reduced_manifest(manifest, reduced, root)
        if shorter is None:
            notes.append(f"no reduced list beside {manifest}: all its rows serve {', '.join(sorted(known.reduced))}")
        else:
            rows |= dict.fromkeys(known.reduced, shorter)
    images = tuple(dict.fromkeys(image for patches in (full, *rows.values()) for image in patches.images))
    place = {image: i for i, image in enumerate(images)}
    index = {metric: np.array([place[image] for image in patches.images]) for metric, patches in rows.items()}
    k = neighbours if neighbours is not None else known.k if known else "auto"
    return Dataset(name, images, rows, index, k, known, tuple(notes))


def _aliases(column: str) -> list[str]:
    return [theirs for theirs, ours in ALIASES.items() if ours == column]


def _image(patch: str, slide: str) -> str:
    return patch if posixpath.splitext(patch)[1].lower() in IMAGE_SUFFIXES else f"{slide}-{patch}.png"


def _below(manifest: str, root: str, image: str) -> str:
    if "://" in image or image.startswith("/"):
        return image
    return posixpath.join(root or manifest.rpartition("/")[0], image)


def _check(patches: Patches, lines: Sequence[int]) -> None:
    """Nothing is in the manifest twice or in two spellings, and a slide has one centre and one subset."""
    seen: dict[Any, int] = {}
    for row, key in enumerate(zip(patches.images, patches.group, strict=True)):
        if key in seen:
            where = {"file": patches.file, "row": lines[row], "key": "image_path"}
            raise UserError(
                "an image is listed twice", **where, found=key[0], expected=f"once (row {lines[seen[key]]})"
            )
        seen[key] = row
    for column, cells in (("label", patches.labels), ("medical_center", patches.centers), ("slide_id", patches.slides)):
        spelt: dict[str, str] = {}
        for row, cell in enumerate(cells.tolist()):
            if (other := spelt.setdefault(spelling(cell), cell)) != cell:
                where, message = {"file": patches.file, "row": lines[row], "key": column}, "two spellings of one name"
                raise UserError(message, **where, found=cell, expected=f"{other}, as in rows above")
    _check_slides(patches, lines)


def _check_slides(patches: Patches, lines: Sequence[int]) -> None:
    for column, values in (("medical_center", patches.centers), ("subset", patches.ood)):
        first: dict[str, int] = {}
        for row, slide in enumerate(patches.slides):
            if values[first.setdefault(slide, row)] != values[row]:
                found, expected = str(values[row]), f"{values[first[slide]]} as in row {lines[first[slide]]}"
                message = f"slide {slide} has more than one"
                raise UserError(message, file=patches.file, row=lines[row], key=column, found=found, expected=expected)


def _read_reduced_manifest(manifest: str, given: str | None, root: str) -> Patches | None:
    stem, suffix = posixpath.splitext(manifest)
    try:
        return read_manifest(given or f"{stem}_reduced{suffix}", root=root)
    except MissingFile:
        if given:
            raise
        return None
