"""The cells of a manifest of OCT volumes: counts, lengths, eyes and paths, each checked and named when it is not valid.

A cell may say that it says nothing ("Not reported", "Varies by frame"). Not here: which columns there are
(oct.indexing.manifest).
"""

from __future__ import annotations

import posixpath
import re

from pathray.files.csv_rows import plain_number
from pathray.files.sheet import Sheet

UNSAID = ("", "not reported", "varies by frame", "not available", "unknown", "n/a", "nan", "none")
EYES = {"l": "L", "left": "L", "os": "L", "r": "R", "right": "R", "od": "R", "b": "", "u": ""}


def read_text(cell: str) -> str:
    """The cell, "" where it says nothing."""
    return "" if cell.lower() in UNSAID else cell


def read_path(sheet: Sheet, i: int, cell: str) -> str:
    """The path below the data set's root, without the slash before it. UserError for one that leads out of it."""
    path = posixpath.normpath(cell.lstrip("/"))
    if path.split("/")[0] in (".", "..") or "://" in cell or "\\" in cell:
        expected = "a path below the data set's root, such as /retinal_oct/structural_oct/DEVICE/PERSON/FILE.dcm"
        raise sheet.cell_error("not a path of the data set", i, "filepath", expected)
    return path


def read_eye(sheet: Sheet, i: int, cell: str) -> str:
    """L or R; "" where the cell says neither, or both. UserError for anything else."""
    if not read_text(cell):
        return ""
    if cell.lower() not in EYES:
        raise sheet.cell_error("not an eye", i, "laterality", "L, R or Not reported")
    return EYES[cell.lower()]


def read_count(sheet: Sheet, i: int, column: str, cell: str) -> int | None:
    """A number >= 1; None where the cell says nothing. UserError for anything else."""
    if not read_text(cell):
        return None
    value = plain_number(cell)
    if value is None or value < 1 or value != int(value):
        raise sheet.cell_error("not a count", i, column, "a whole number >= 1, or Not reported")
    return int(value)


def read_millimetres(sheet: Sheet, i: int, column: str, cell: str) -> float | None:
    """A length > 0; None where the cell says nothing. UserError for anything else."""
    if not read_text(cell):
        return None
    value = plain_number(cell)
    if value is None or value <= 0:
        raise sheet.cell_error("not a length", i, column, "millimetres > 0, Varies by frame or Not reported")
    return value


def read_pixel_spacing(sheet: Sheet, i: int, cell: str) -> tuple[float | None, float | None]:
    """(dy, dx) in mm, as PixelSpacing (0028,0030) has the distances of rows and of columns: "[0.003872, 0.01206]".

    (None, None) where the cell says nothing. UserError for anything else.
    """
    if not read_text(cell):
        return None, None
    parts = re.split(r"\s*[,\\]\s*", cell.strip("[]() "))
    values = [plain_number(part.strip("'\" ")) for part in parts]
    if len(values) != 2 or any(value is None or value <= 0 for value in values):
        expected = "[dy, dx] in millimetres > 0, Varies by frame or Not reported"
        raise sheet.cell_error("not a pixel spacing", i, "pixel_spacing", expected)
    return values[0], values[1]
