"""The whole-slide files of an analysis by slide id: those of a folder, or of a table with their paths.

Not here: reading pixels (pathray.wsi).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from pathray.errors import MissingFile, UserError
from pathray.features.inputs import slides_in
from pathray.files.sheet import read_sheet
from pathray.urls import is_url

PATHS = ("wsi_path", "slide_path", "path")


@dataclass(frozen=True)
class SlideFile:
    """A slide's file, and its spacing in µm per level-0 pixel where the table gives one."""

    path: str
    mpp: float | None = None


def find_slides(source: str, slide_column: str = "slide_id") -> dict[str, SlideFile]:
    """The slides of a folder (at any depth; ids are file names without their suffix, or with their folders as in
    `slides_in`), or of a CSV or parquet table with one of the columns `PATHS`, relative to it, and maybe `mpp`.

    MissingFile; UserError for two files of one name, a missing column, and a table where a slide is there twice.
    """
    if not source.lower().endswith((".csv", ".tsv", ".parquet", ".gz")):
        return _in_folder(source)
    sheet = read_sheet(source, "table of slides")
    column = next((name for name in PATHS if name in sheet.names), PATHS[0])
    sheet.need(slide_column, column)
    base = os.path.dirname(source if is_url(source) else os.path.abspath(source))
    spacings = sheet.texts("mpp", may_be_empty=True) if "mpp" in sheet.names else [""] * len(sheet.lines)
    out: dict[str, SlideFile] = {}
    for i, (name, path) in enumerate(zip(sheet.texts(slide_column), sheet.texts(column), strict=True)):
        if name in out:
            raise sheet.cell_error("a slide is there twice", i, slide_column, "each slide once")
        whole = path if is_url(path) else f"{base}/{path}" if is_url(base) else os.path.join(base, path)
        out[name] = SlideFile(whole, _spacing(spacings[i], source, sheet.lines[i]))
    return out


def _in_folder(folder: str) -> dict[str, SlideFile]:
    if not is_url(folder) and not os.path.isdir(folder):
        raise MissingFile("no such folder", file=folder, key="slides", expected="a folder of slides, or a table")
    out: dict[str, SlideFile] = {}
    for name, path in slides_in(folder):
        for key in dict.fromkeys((name, name.rpartition("__")[2])):
            if key in out and out[key].path != path:
                message, found = "two slides of one name", f"{out[key].path} and {path}"
                raise UserError(message, file=folder, key=key, found=found, expected="a file for each slide")
            out[key] = SlideFile(path)
    return out


def _spacing(cell: str, file: str, row: int) -> float | None:
    if not cell:
        return None
    try:
        value = float(cell)
    except ValueError:
        value = 0.0
    if not 0 < value < 1000:
        raise UserError("not a spacing", file=file, row=row, key="mpp", found=cell, expected="µm per pixel, above 0")
    return value
