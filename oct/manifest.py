"""Reads the list of volumes: a manifest.tsv as AI-READI writes it, or a folder of DICOM files without one.

A manifest's paths begin with "/" but are relative to the data set's root; some copies put `/dataset` before them. Every
fault is a UserError with file, row, column, what was found and what was expected. Not here: what the DICOM files say
of themselves (oct.dicom), which of them are volumes (oct.index).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from oct.devices import device_of
from pathray.errors import MissingFile, UserError
from pathray.files.csv_rows import plain_number, spelling
from pathray.files.sheet import Sheet, read_sheet
from pathray.store.storage import Storage
from pathray.urls import public

PERSON = ("person_id", "participant_id")  # the newer and the older name
COLUMNS = (
    "manufacturer", "manufacturers_model_name", "anatomic_region", "laterality", "height", "width", "number_of_frames",
    "pixel_spacing", "slice_thickness", "sop_instance_uid", "filepath",
)  # fmt: skip
UNSAID = ("", "not reported", "varies by frame", "not available", "unknown", "n/a", "nan", "none")
EYES = {"l": "L", "left": "L", "os": "L", "r": "R", "right": "R", "od": "R", "b": "", "u": ""}
PREFIX = "dataset/"  # of some copies
SHOWN = 8

Spacing = tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class ManifestRow:
    """A file as its row describes it.

    path: below the data set's root. laterality: R, L or "". height, width, frames: None where the row does not say it.
    spacing_mm: (z, y, x), z being the slice thickness; None where the row does not say it.
    """

    line: int
    person: str
    path: str
    manufacturer: str = ""
    model: str = ""
    region: str = ""
    laterality: str = ""
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    spacing_mm: Spacing = (None, None, None)
    sop_instance_uid: str = ""

    @property
    def device(self) -> str:
        return device_of(self.path, self.manufacturer, self.model)


@dataclass(frozen=True)
class Manifest:
    """The rows in the file's order. `root`: where their paths begin, a folder or URL."""

    path: str
    root: str
    rows: tuple[ManifestRow, ...]


def read_manifest(path: str, root: str = "") -> Manifest:
    """The manifest (TSV, CSV or parquet) at a path or URL.

    Without `root`, it is the manifest's folder, or the folder above if the paths repeat the name of the manifest's own
    folder. MissingFile; UserError, naming row and column, for a missing column and a cell that is not valid.
    """
    sheet = read_sheet(path, "manifest")
    person = person_column(sheet)
    sheet.need(*COLUMNS)
    persons = sheet.texts(person)
    check_spelling(sheet, person, persons)
    rows = _rows(sheet, persons)
    root = Storage.of(root or _root_of(path, rows)).url
    return Manifest(path, root, _without_prefix(rows, root))


def read_folder(root: str) -> Manifest:
    """The .dcm files below a folder or URL, at any depth, by path: the person is the name of a file's folder.

    MissingFile if there is no such folder; UserError if it has no such file, or one that is in no person's folder.
    """
    store = Storage.of(root)
    if not store.exists():
        raise MissingFile("no such folder", file=public(root), expected="a folder with DICOM files")
    files = sorted(name for name in store.files() if not any(part.startswith(".") for part in name.split("/")))
    volumes = [name for name in files if name.lower().endswith(".dcm")]
    if not volumes:
        raise UserError(
            "no DICOM files in this folder", file=public(root), found=f"{len(files)} files", expected=".dcm"
        )
    if bare := [name for name in volumes if "/" not in name]:
        expected = "a folder for each person: PERSON/FILE.dcm"
        raise UserError("a file is in no person's folder", file=public(store.join(bare[0])), expected=expected)
    rows = (ManifestRow(n, name.split("/")[-2], name) for n, name in enumerate(volumes, start=1))
    return Manifest(root, store.url, tuple(rows))


def of_devices(manifest: Manifest, devices: Collection[str]) -> Manifest:
    """The rows of these devices; all if none are named. UserError, naming those that are there, for a device that has
    no row."""
    if not devices:
        return manifest
    there = sorted({row.device for row in manifest.rows})
    if absent := sorted(set(devices) - set(there)):
        raise UserError("no volume of this device", file=manifest.path, key="devices", found=absent, expected=there)
    return replace(manifest, rows=tuple(row for row in manifest.rows if row.device in devices))


def person_column(sheet: Sheet) -> str:
    """`person_id` or `participant_id`. UserError if the table has neither, or both."""
    names = [name for name in PERSON if name in sheet.names]
    if len(names) != 1:
        found, expected = names or sheet.names[:SHOWN], " or ".join(PERSON)
        raise UserError("one column must name the person", file=sheet.file, row=1, key=PERSON[0], found=found,
                        expected=expected)  # fmt: skip
    return names[0]


def check_spelling(sheet: Sheet, column: str, persons: Sequence[str]) -> None:
    """UserError for two persons that differ only in case or Unicode form: one person could be on both sides of a
    split."""
    first: dict[str, int] = {}
    for i, person in enumerate(persons):
        other = first.setdefault(spelling(person), i)
        if persons[other] != person:
            expected = f"one spelling: row {sheet.lines[other]} has {persons[other]}"
            raise sheet.cell_error("two persons differ only in case or Unicode form", i, column, expected)


def _rows(sheet: Sheet, persons: Sequence[str]) -> list[ManifestRow]:
    cells = {name: sheet.texts(name, may_be_empty=True) for name in COLUMNS}
    rows = []
    for i, person in enumerate(persons):
        row = {name: values[i] for name, values in cells.items()}
        dy, dx = _in_plane(sheet, i, row["pixel_spacing"])
        rows.append(
            ManifestRow(
                line=sheet.lines[i],
                person=person,
                path=_path(sheet, i, row["filepath"]),
                manufacturer=_said(row["manufacturer"]),
                model=_said(row["manufacturers_model_name"]),
                region=_said(row["anatomic_region"]),
                laterality=_eye(sheet, i, row["laterality"]),
                height=_count(sheet, i, "height", row["height"]),
                width=_count(sheet, i, "width", row["width"]),
                frames=_count(sheet, i, "number_of_frames", row["number_of_frames"]),
                spacing_mm=(_millimetres(sheet, i, "slice_thickness", row["slice_thickness"]), dy, dx),
                sop_instance_uid=_said(row["sop_instance_uid"]),
            )
        )
    return rows


def _said(cell: str) -> str:
    return "" if cell.lower() in UNSAID else cell


def _path(sheet: Sheet, i: int, cell: str) -> str:
    path = posixpath.normpath(cell.lstrip("/"))
    if path.split("/")[0] in (".", "..") or "://" in cell or "\\" in cell:
        expected = "a path below the data set's root, such as /retinal_oct/structural_oct/DEVICE/PERSON/FILE.dcm"
        raise sheet.cell_error("not a path of the data set", i, "filepath", expected)
    return path


def _eye(sheet: Sheet, i: int, cell: str) -> str:
    if not _said(cell):
        return ""
    if cell.lower() not in EYES:
        raise sheet.cell_error("not an eye", i, "laterality", "L, R or Not reported")
    return EYES[cell.lower()]


def _count(sheet: Sheet, i: int, column: str, cell: str) -> int | None:
    if not _said(cell):
        return None
    value = plain_number(cell)
    if value is None or value < 1 or value != int(value):
        raise sheet.cell_error("not a count", i, column, "a whole number >= 1, or Not reported")
    return int(value)


def _millimetres(sheet: Sheet, i: int, column: str, cell: str) -> float | None:
    if not _said(cell):
        return None
    value = plain_number(cell)
    if value is None or value <= 0:
        raise sheet.cell_error("not a length", i, column, "millimetres > 0, Varies by frame or Not reported")
    return value


def _in_plane(sheet: Sheet, i: int, cell: str) -> tuple[float | None, float | None]:
    """Rows' and columns' distance, as PixelSpacing (0028,0030) has them: "[0.003872, 0.01206]"."""
    if not _said(cell):
        return None, None
    parts = re.split(r"\s*[,\\]\s*", cell.strip("[]() "))
    values = [plain_number(part.strip("'\" ")) for part in parts]
    if len(values) != 2 or any(value is None or value <= 0 for value in values):
        expected = "[dy, dx] in millimetres > 0, Varies by frame or Not reported"
        raise sheet.cell_error("not a pixel spacing", i, "pixel_spacing", expected)
    return values[0], values[1]


def _root_of(path: str, rows: Sequence[ManifestRow]) -> str:
    folder = Storage.of(posixpath.dirname(path) or ".").url
    above, _, name = folder.rpartition("/")
    return above if rows[0].path.removeprefix(PREFIX).startswith(f"{name}/") else folder


def _without_prefix(rows: Sequence[ManifestRow], root: str) -> tuple[ManifestRow, ...]:
    """The rows without the prefix of some copies, unless the root really has a folder of that name."""
    if not any(row.path.startswith(PREFIX) for row in rows) or Storage.of(root).exists(PREFIX.rstrip("/")):
        return tuple(rows)
    return tuple(replace(row, path=row.path.removeprefix(PREFIX)) for row in rows)
