"""Reads the list of volumes: a manifest.tsv as AI-READI writes it, or a folder of DICOM files without one.

A manifest's paths begin with "/" but are relative to the data set's root; some copies put `/dataset` before them. Every
fault is a UserError with file, row, column, what was found and what was expected. Not here: what the DICOM files say
of themselves (oct.dicom), which of them are volumes (oct.indexing.index).
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from oct.indexing.devices import device_of
from oct.indexing.manifest_cells import read_count, read_eye, read_millimetres, read_path, read_pixel_spacing, read_text
from pathray.errors import MissingFile, UserError
from pathray.files.sheet import Sheet, read_sheet
from pathray.store.storage import Storage
from pathray.urls import holds_secret, public

PERSON = ("person_id", "participant_id")  # the newer and the older name
COLUMNS = (
    "manufacturer", "manufacturers_model_name", "anatomic_region", "laterality", "height", "width", "number_of_frames",
    "pixel_spacing", "slice_thickness", "sop_instance_uid", "filepath",
)  # fmt: skip
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
    folder. MissingFile; UserError, naming row and column, for a missing column and a cell that is not valid; also for a
    root that is one folder too deep.
    """
    sheet = read_sheet(path, "manifest")
    person = person_column(sheet)
    sheet.need(*COLUMNS)
    persons = sheet.texts(person)
    sheet.check_spelling(person, "persons")
    rows = _rows(sheet, persons)
    root = _plain_root(root or _root_of(path, rows))
    whole = _without_prefix(rows, root)
    _check_root(root, whole)
    return Manifest(path, root, whole)


def read_folder(root: str) -> Manifest:
    """The .dcm files below a folder or URL, at any depth, by path: the person is the name of a file's folder.

    MissingFile if there is no such folder; UserError if it has no such file, or one that is in no person's folder.
    """
    store = Storage.of(_plain_root(root))
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


def _rows(sheet: Sheet, persons: Sequence[str]) -> list[ManifestRow]:
    cells = {name: sheet.texts(name, may_be_empty=True) for name in COLUMNS}
    rows = []
    for i, person in enumerate(persons):
        row = {name: values[i] for name, values in cells.items()}
        dy, dx = read_pixel_spacing(sheet, i, row["pixel_spacing"])
        rows.append(
            ManifestRow(
                line=sheet.lines[i],
                person=person,
                path=read_path(sheet, i, row["filepath"]),
                manufacturer=read_text(row["manufacturer"]),
                model=read_text(row["manufacturers_model_name"]),
                region=read_text(row["anatomic_region"]),
                laterality=read_eye(sheet, i, row["laterality"]),
                height=read_count(sheet, i, "height", row["height"]),
                width=read_count(sheet, i, "width", row["width"]),
                frames=read_count(sheet, i, "number_of_frames", row["number_of_frames"]),
                spacing_mm=(read_millimetres(sheet, i, "slice_thickness", row["slice_thickness"]), dy, dx),
                sop_instance_uid=read_text(row["sop_instance_uid"]),
            )
        )
    return rows


def _plain_root(root: str) -> str:
    if holds_secret(root):
        message = "the URL contains a login or a signature, which the index would store"
        expected = "the URL without it (gs://…), and the credentials in the environment"
        raise UserError(message, key="root", found=public(root), expected=expected)
    return Storage.of(root).url


def _root_of(path: str, rows: Sequence[ManifestRow]) -> str:
    folder = Storage.of(posixpath.dirname(path) or ".").url
    above, _, name = folder.rpartition("/")
    return above if rows[0].path.removeprefix(PREFIX).startswith(f"{name}/") else folder


def _check_root(root: str, rows: Sequence[ManifestRow]) -> None:
    """UserError if the root is the folder that the paths begin with, instead of the one above it."""
    (above, _, name), first = root.rpartition("/"), rows[0].path.split("/")[0]
    if name == first and not Storage.of(root).exists(first):
        message = "the manifest's paths begin above this root"
        raise UserError(message, key="root", found=public(root), expected=f"{above}, since paths begin with {first}/")


def _without_prefix(rows: Sequence[ManifestRow], root: str) -> tuple[ManifestRow, ...]:
    """The rows without the prefix of some copies, unless the root really has a folder of that name."""
    if not any(row.path.startswith(PREFIX) for row in rows) or Storage.of(root).exists(PREFIX.rstrip("/")):
        return tuple(rows)
    return tuple(replace(row, path=row.path.removeprefix(PREFIX)) for row in rows)
