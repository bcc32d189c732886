"""The index of volumes as a file: one sealed parquet table, read back with its checks.

Not here: what is in a row (oct.indexing.index), figures about it (oct.indexing.statistics).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pathray.errors import MissingFile, UserError
from pathray.store.sealed_parquet import of_bytes, to_bytes
from pathray.store.storage import Storage, write_atomic
from pathray.urls import public

SCHEMA_VERSION = 1
PARQUET = b"PAR1"  # how such a file begins
EXPECTED = "the parquet file that ray_jobs.index_oct writes"

_SPACING = [(f"spacing_{axis}_mm", pa.float64()) for axis in "zyx"]
_SOURCE = [(f"source_{axis}", pa.string()) for axis in "zyx"]
SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # below the root
        ("line", pa.int64()),  # of the manifest
        ("person", pa.string()),
        ("device", pa.string()),
        ("region", pa.string()),  # of the manifest
        ("laterality", pa.string()),  # L, R, or "": nothing says it, or manifest and header differ
        ("laterality_manifest", pa.string()),
        ("laterality_header", pa.string()),
        ("laterality_differs", pa.bool_()),
        ("manufacturer", pa.string()),
        ("model", pa.string()),
        ("frames", pa.int32()),  # null, like all that the header says, if it could not be read
        ("rows", pa.int32()),
        ("columns", pa.int32()),
        ("bits", pa.int32()),
        ("signed", pa.bool_()),
        ("transfer_syntax_uid", pa.string()),
        ("sop_class_uid", pa.string()),
        ("sop_instance_uid", pa.string()),
        *_SPACING,
        *_SOURCE,  # of oct.volume.SOURCES
        ("reordered", pa.bool_()),  # the frames of the file are not in the order of the slow axis
        ("irregular", pa.bool_()),  # the distances between frames differ
        ("exclusion", pa.string()),  # why it is left out, in one word; "" if it is not
        ("detail", pa.string()),  # of the exclusion
        ("notes", pa.string()),
        ("bytes", pa.int64()),
        ("state", pa.string()),  # size and time of the file, or the store's tag
        ("listed", pa.string()),  # digest of the manifest's row
    ]
)


@dataclass(frozen=True)
class VolumeIndex:
    """An index in memory, in the manifest's order. `root`: where its paths begin, when it was made."""

    path: str
    root: str
    table: pa.Table

    @property
    def accepted(self) -> pa.Table:
        """The rows that are volumes to train on."""
        return self.table.filter(pc.equal(self.table["exclusion"], ""))

    @property
    def reasons(self) -> Counter[str]:
        """How many rows are excluded for each reason."""
        return Counter(reason for reason in self.table["exclusion"].to_pylist() if reason)

    def __str__(self) -> str:
        listed, accepted = self.table.num_rows, self.accepted.num_rows
        excluded = sum(self.reasons.values())
        assert listed == accepted + excluded
        why = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.reasons.items()))
        return f"{listed:,} listed = {accepted:,} accepted + {excluded:,} excluded{f' ({why})' if why else ''}"


def make_index(path: str, root: str, rows: Sequence[Mapping[str, Any]]) -> VolumeIndex:
    """The index of these rows, which is not written yet."""
    whole = [{name: row.get(name) for name in SCHEMA.names} for row in rows]
    return VolumeIndex(path, root, pa.Table.from_pylist(whole, schema=SCHEMA))


def write_index(index: VolumeIndex) -> None:
    """Publish the index under its path, atomically. Equal rows give equal bytes."""
    layout = SCHEMA.with_metadata({"schema_version": str(SCHEMA_VERSION), "root": index.root})
    write_atomic(index.path, to_bytes(index.table.cast(layout)))


def read_index(path: str) -> VolumeIndex:
    """The index at a path or URL. MissingFile if there is none; UserError for another file, a damaged one, or one of a
    newer version."""
    folder, slash, name = path.rpartition("/")
    try:
        data = Storage.of(folder or slash or ".").read_bytes(name)
    except MissingFile as e:
        raise MissingFile("no index of volumes here", file=public(path), expected=EXPECTED) from e
    if data[: len(PARQUET)] != PARQUET:
        raise UserError("not an index of volumes", file=public(path), found="no parquet file", expected=EXPECTED)
    table = of_bytes(data, public(path), "index of volumes")
    meta = table.schema.metadata or {}
    version = meta.get(b"schema_version", b"").decode()
    if b"root" not in meta or not version.isdecimal():
        raise UserError("not an index of volumes", file=public(path), found=table.column_names, expected=SCHEMA.names)
    if int(version) > SCHEMA_VERSION:
        message = "the index was written by a newer version"
        raise UserError(message, file=public(path), key="schema_version", found=version, expected=SCHEMA_VERSION)
    if table.column_names != SCHEMA.names:
        raise UserError("not an index of volumes", file=public(path), found=table.column_names, expected=SCHEMA.names)
    return VolumeIndex(path, meta[b"root"].decode(), table.replace_schema_metadata(None))
