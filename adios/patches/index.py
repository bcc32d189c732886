"""The patch index: one row per patch in a folder of zip archives, made from their directories; no pixel is read.

The name of a patch describes it: `patch_001_448_x100_y200.png` has 448² pixels with the upper left corner at (100, 200)
on its slide; the slide is the archive. Rows are in the order of the archives' names, then of each archive's directory,
and depend on nothing else: an index that was interrupted, or grew with its folder, has the same bytes as one made at
once. Unusable archives and members are left out and listed, with the reason, in a quarantine table next to the index.

Not here: reading an archive's directory (adios.patches.archives); writing the index (adios.patches.index_writer).
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from adios.patches.archives import Fault, Member, fault_of, member_limit, read_directory, unsafe
from adios.patches.pickle_index import read_pickle_index
from pathray.errors import MissingFile, UnreadableUnit, UserError
from pathray.store.sealed_parquet import SealedFile
from pathray.store.storage import Storage, file_state
from pathray.urls import is_url, public

SCHEMA_VERSION = 1
OTHER = "other"  # reason for a member that is not named as a patch: left out, but not a fault
NAME = re.compile(r"(?:.*/)?[^./][^/]*_([1-9]\d{0,3})_x(\d{1,9})_y(\d{1,9})\.(?:png|jpe?g)", re.IGNORECASE)

SCHEMA = pa.schema(
    [
        ("archive", pa.string()),  # path below the folder
        ("name", pa.string()),
        ("offset", pa.int64()),  # of the member's local header
        ("compressed_bytes", pa.int64()),
        ("bytes", pa.int64()),
        ("method", pa.uint8()),  # 0 stored, 8 deflate
        ("crc", pa.uint32()),
        ("slide", pa.string()),  # the archive's name without .zip, __ for /
        ("x", pa.int32()),  # upper left corner, from its name
        ("y", pa.int32()),
        ("size", pa.int32()),  # side in pixels, from its name
    ]
)
QUARANTINE = pa.schema(
    [
        ("archive", pa.string()),
        ("name", pa.string()),  # "" for the whole archive
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("members", pa.int64()),  # how many this row counts for
    ]
)


@dataclass(frozen=True)
class Archive:
    """An archive by name (below the root) and path; `wanted`: the members to use, if a pickled index lists them."""

    name: str
    path: str
    wanted: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Refused:
    """A row of the quarantine; `name` "" is the whole archive."""

    archive: str
    name: str
    reason: str
    detail: str = ""
    members: int = 1


@dataclass(frozen=True)
class Found:
    """The patches of one archive, a table by SCHEMA (None: unchanged since its last read), and what was left out."""

    archive: str
    state: str
    table: pa.Table | None
    refused: tuple[Refused, ...] = ()

    @property
    def corrupt(self) -> bool:
        return any(not refused.name for refused in self.refused)


def archives_of(source: str) -> tuple[str, list[Archive]]:
    """The root and the archives, by name, of a folder of zips (at any depth) or of a `dataset_index.pkl`.

    MissingFile if there is no such folder or pickle; UserError for a folder without archives or an invalid pickle.
    """
    if source.lower().endswith((".pkl", ".pickle")):
        return _of_pickle(source)
    store = Storage.of(source)
    if not store.exists():
        raise MissingFile("no such folder", file=public(source), expected="a folder of zips, or a dataset_index.pkl")
    files = sorted(store.files())
    names = [n for n in files if n.lower().endswith(".zip") and not any(p.startswith(".") for p in n.split("/"))]
    if not names:
        raise UserError("no archives in this folder", file=public(source), found=f"{len(files)} files", expected=".zip")
    return store.url, [Archive(name, store.join(name)) for name in names]


def _of_pickle(source: str) -> tuple[str, list[Archive]]:
    path = source if is_url(source) else os.path.abspath(source)
    root = Storage.of(posixpath.dirname(path))
    wanted: dict[str, list[str]] = {}
    for archive, names in read_pickle_index(path):
        inside = posixpath.normpath(archive) if not is_url(archive) else archive
        wanted.setdefault(inside.removeprefix(f"{root.url}/"), []).extend(names)
    if not wanted:
        raise UserError("the index lists no archive", file=public(source))
    return root.url, [Archive(name, archive_path(root.url, name), tuple(wanted[name])) for name in sorted(wanted)]


def archive_path(root: str, name: str) -> str:
    """Path of an archive from its name in the index."""
    return name if is_url(name) or name.startswith("/") else f"{root.rstrip('/')}/{name}"


def index_archive(archive: Archive, known: str | None = None) -> Found:
    """The content of `archive`, from its directory alone; nothing is read if its state is still `known`.

    Its faults become rows of the quarantine: only assertions are raised.
    """
    try:
        state = _state(archive)
        if state == known:
            return Found(archive.name, state, None)
        directory = read_directory(archive.path)
    except AssertionError:
        raise
    except Exception as e:  # storage has errors of its own
        error = e if isinstance(e, UnreadableUnit) else UnreadableUnit("io", archive.path, type(e).__name__)
        reason = "missing" if isinstance(e, MissingFile) else error.reason
        return Found(archive.name, "", SCHEMA.empty_table(), (Refused(archive.name, "", reason, error.detail),))
    rows, refused = _sort_members(archive, directory.members, directory.end)
    return Found(archive.name, state, _table(archive.name, rows), tuple(refused))


def _state(archive: Archive) -> str:
    state = file_state(archive.path)
    if archive.wanted is None:
        return state
    return f"{state} {hashlib.sha256(json.dumps(archive.wanted).encode()).hexdigest()[:24]}"


class _Patch(NamedTuple):
    member: Member
    size: int
    x: int
    y: int


def _sort_members(archive: Archive, members: Sequence[Member], end: int) -> tuple[list[_Patch], list[Refused]]:
    wanted = None if archive.wanted is None else set(archive.wanted)
    last = {member.name: number for number, member in enumerate(members)}
    patches, refused, others = list[_Patch](), list[Refused](), list[str]()
    for number, member in enumerate(members):
        if wanted is not None and member.name not in wanted:
            continue
        found = _check_member(member, end, replaced=last[member.name] != number)
        if isinstance(found, _Patch):
            patches.append(found)
        elif found.reason == OTHER:
            others.append(member.name)
        else:
            refused.append(Refused(archive.name, member.name, *found))
    for name in sorted((wanted or set()) - set(last)):
        refused.append(Refused(archive.name, name, "absent", "listed, but not in the archive"))
    if others:
        refused.append(Refused(archive.name, others[0], OTHER, "not named as a patch", len(others)))
    return patches, refused


def _check_member(member: Member, end: int, *, replaced: bool) -> _Patch | Fault:
    if unsafe(member.name):
        backslash = "a backslash in the name, which zip forbids: pack the archive again" if "\\" in member.name else ""
        return Fault("name", backslash or "the name leads out of the archive")
    if replaced:
        return Fault("duplicate", "a later member has this name, and replaces it")
    match = NAME.fullmatch(member.name)
    if match is None:
        return Fault(OTHER)
    size, x, y = map(int, match.groups())
    return fault_of(member, end, member_limit(size)) or _Patch(member, size, x, y)


def _table(archive: str, patches: Sequence[_Patch]) -> pa.Table:
    slide = re.sub(r"\.zip$", "", archive, flags=re.IGNORECASE).replace("/", "__")
    members = [patch.member for patch in patches]
    columns = {
        "archive": [archive] * len(patches),
        "name": [m.name for m in members],
        "offset": [m.offset for m in members],
        "compressed_bytes": [m.compressed for m in members],
        "bytes": [m.size for m in members],
        "method": [m.method for m in members],
        "crc": [m.crc for m in members],
        "slide": [slide] * len(patches),
        "x": [p.x for p in patches],
        "y": [p.y for p in patches],
        "size": [p.size for p in patches],
    }
    return pa.table(columns, schema=SCHEMA)


@dataclass(frozen=True)
class PatchIndex:
    """An index on storage, opened to read in parts. `root` is where its archives were when it was made."""

    path: str
    root: str
    rows: int

    @classmethod
    def open(cls, path: str) -> PatchIndex:
        """The index at `path`. MissingFile if there is none; UserError for another file or a newer version."""
        file = _open_sealed(path)
        version = file.meta.get("schema_version", "0")
        if version.isdecimal() and int(version) > SCHEMA_VERSION:
            message = "the patch index was written by a newer version"
            raise UserError(message, file=public(path), key="schema_version", found=version, expected=SCHEMA_VERSION)
        found = file.schema.names
        if "root" not in file.meta or found != SCHEMA.names:
            raise UserError("not a patch index", file=public(path), found=found, expected=SCHEMA.names)
        return cls(path, file.meta["root"], file.rows)

    def archives(self) -> set[str]:
        """The names of its archives."""
        return {name for table in self.tables(("archive",)) for name in table["archive"].unique().to_pylist()}

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Its rows in order, some 10^5 at a time; archives as a dictionary."""
        yield from _open_sealed(self.path, ("archive",)).tables(columns)


def _open_sealed(path: str, dictionaries: Sequence[str] = ()) -> SealedFile:
    folder, _, name = path.rpartition("/")
    try:
        return Storage.of(folder or ".").read_local(
            name, lambda local: SealedFile(str(local), public(path), "patch index", dictionaries)
        )
    except MissingFile as e:
        expected = "the parquet file that ray_jobs.index_patches writes"
        raise MissingFile("no patch index here", file=public(path), expected=expected) from e
