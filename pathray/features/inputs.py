"""Lists the slides or images in a folder or list file, in a fixed order, without opening them.

Not here: slide manifests with masks and metadata (ijepath.indexing.manifest).
"""

from __future__ import annotations

import logging
import os
import posixpath
from dataclasses import dataclass
from itertools import zip_longest

from pathray.errors import MissingFile, UserError
from pathray.files.csv_rows import check_header, records, separator_of
from pathray.files.text import read_user_text
from pathray.store.file_systems import find_file_system
from pathray.store.storage_errors import storage_error
from pathray.urls import holds_secret, public
from pathray.wsi.backends.formats import SDPC, UNSUPPORTED

SLIDE_SUFFIXES = (
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".svslide", ".bif", ".vms", ".vmu", ".czi", ".isyntax"),
    SDPC,
    *UNSUPPORTED,  # listed so that the report names each as unsupported
)
log = logging.getLogger(__name__)
SHOWN = 20
DICOM = ".dcm"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class Listed:
    """Images by name (relative to the folder, or as written in the list) and path, with the list's other columns."""

    names: tuple[str, ...]
    paths: tuple[str, ...]
    metadata: dict[str, tuple[str | None, ...]]


def slides_in(folder: str) -> list[tuple[str, str]]:
    """(slide_id, path) of all slides below a folder (path or URL), sorted by id. A folder of DICOM files is one slide.

    The id is the path below the folder without its suffix, with ``__`` for ``/``. Raises MissingFile if the folder does
    not exist, UserError if it has no slides.
    """
    found = dict[str, str]()
    names = _files(folder)
    for name in names:
        suffix = _suffix(name)
        if suffix in SLIDE_SUFFIXES:
            found[name] = _id(name[: -len(suffix)])
        elif suffix == DICOM:
            parent = posixpath.dirname(name)
            found[parent] = _id(parent or posixpath.basename(folder.rstrip("/")))
    if not found:
        raise UserError("no slides in this folder", file=folder, found=f"{len(names)} files", expected=SLIDE_SUFFIXES)
    _warn_left_out(folder, [n for n in names if n not in found and _suffix(n) != DICOM], found)
    return sorted((slide_id, _below(folder, name)) for name, slide_id in found.items())


def _warn_left_out(folder: str, names: list[str], slides: dict[str, str]) -> None:
    """Log one warning that counts and names the files that are not slides (or data of an MRXS slide)."""
    folders = {posixpath.splitext(name)[0] + "/" for name in slides if _suffix(name) == ".mrxs"}
    others = [name for name in names if not any(name.startswith(f) for f in folders)]
    if others:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        shown = ", ".join(others[:SHOWN])
        log.warning("%s: %d files skipped because they are not slides: %s%s", public(folder), len(others), shown, more)


def images_in(folder: str) -> Listed:
    """The images below a folder (path or URL), sorted by path. Raises MissingFile if the folder does not exist,
    UserError if it has no images."""
    files = _files(folder)
    names = [name for name in files if _suffix(name) in IMAGE_SUFFIXES]
    if not names:
        found = f"{len(files)} files"
        raise UserError("no images in this folder", file=folder, found=found, expected=IMAGE_SUFFIXES)
    return Listed(tuple(names), tuple(_below(folder, name) for name in names), {})


def images_of(path: str, *, root: str = "", reserved: tuple[str, ...] = ()) -> Listed:
    """The images of a list (CSV, or TSV by its suffix) with a column ``path``; other columns are carried along.

    Relative paths are relative to `root` or, without one, to the list's folder. Raises MissingFile, and UserError for a
    list without a ``path`` column, with a duplicate or `reserved` column name, with an empty path, with an image twice
    or at a URL that holds a secret, or without rows.
    """
    separator = separator_of(path)
    lines = records(path, read_user_text(path, "list"), separator)
    at, header = next(lines, (1, []))
    header = [name.strip() for name in header]
    if header != ["path"]:
        check_header(path, at, header, separator, "list")
    if "path" not in header:
        raise UserError("the list has no such column", file=path, row=at, key="path", found=header, expected="path")
    if clashing := sorted(set(header) & set(reserved) - {"path"}):
        message = "the list has a column with a reserved name: rename it"
        raise UserError(message, file=path, key=clashing[0], found=clashing[0], expected="another name")
    rows, seen = [], dict[str, int]()
    for number, cells in lines:
        row = dict(zip_longest(header, (cell.strip() for cell in cells), fillvalue=""))
        if not row["path"] or len(cells) > len(header):
            expected = f"a path, and at most {len(header)} cells"
            message = "the row has no path, or too many cells"
            raise UserError(message, file=path, row=number, found=separator.join(cells)[:200], expected=expected)
        _check_path(path, number, row["path"], seen)
        rows.append(row)
    if not rows:
        raise UserError("the list has no images", file=path, found="a header only", expected="one row per image")
    names = tuple(row["path"] for row in rows)
    base = root or posixpath.dirname(path if "://" in path else os.path.abspath(path))
    metadata = {c: tuple(row[c] or None for row in rows) for c in header if c != "path"}
    return Listed(names, tuple(_below(base, name) for name in names), metadata)


def _check_path(path: str, number: int, image: str, seen: dict[str, int]) -> None:
    """UserError for an image that is already in the list, and for a URL with a login or a signature, because the path
    is stored with the features."""
    where = {"file": path, "row": number, "key": "path", "found": public(image)}
    same = image if "://" in image else posixpath.normpath(image)
    if (first := seen.setdefault(same, number)) != number:
        raise UserError("the image is in the list twice", **where, expected=f"each image once (also in row {first})")
    if holds_secret(image):
        expected = "the URL without it (gs://…, s3://…), and the credentials in the environment"
        raise UserError("the URL contains a login or a signature, which would be stored", **where, expected=expected)


def _files(folder: str) -> list[str]:
    """The files below a folder, as sorted relative paths, without hidden ones."""
    fs, inner = find_file_system(folder)
    try:
        if not fs.isdir(inner):
            raise MissingFile("no such folder", file=public(folder), expected="a folder, or a list (.csv)")
        start = len(inner.rstrip("/")) + 1
        names = [name[start:] for name in fs.find(inner)]
    except UserError:
        raise
    except Exception as e:  # each file system has its own exceptions
        raise storage_error(e, public(folder), writing=False) from None  # the message may contain a signed URL
    return sorted(n for n in names if not any(part.startswith(".") for part in n.split("/")))


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _id(name: str) -> str:
    return name.replace("/", "__")


def _below(folder: str, name: str) -> str:
    if "://" in name or os.path.isabs(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if name else folder
