"""Lists of volumes for single-domain (one device) and multi-domain training, chosen from an index by filters.

Not here: splits into train, val and test (oct.indexing.person_splits), the order of training (oct.plan).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from oct.indexing.index_file import VolumeIndex
from pathray.errors import UserError
from pathray.files.text import read_user_text
from pathray.store.storage import write_atomic
from pathray.urls import public

Strings = npt.NDArray[np.str_]
FACTS = ("path", "person", "device", "region", "laterality")


@dataclass(frozen=True)
class FileList:
    """Accepted volumes of the index `file`: a GroupedTable whose groups are the persons.

    names `[N]`: paths below the root. groups `[N]`: persons. strata `[N]`: device, region and eye. lines `[N]`: of the
    manifest.
    """

    file: str
    names: Strings
    groups: Strings
    strata: Strings
    lines: Sequence[int]

    @property
    def hash(self) -> str:
        """Digest of all rows, independent of their order and of where the volumes are."""
        rows = sorted(zip(self.names.tolist(), self.groups.tolist(), self.strata.tolist(), strict=True))
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def row_of(self, index: int) -> int:
        return self.lines[index]


def list_files(
    index: VolumeIndex,
    *,
    devices: Collection[str] = (),
    regions: Collection[str] = (),
    lateralities: Collection[str] = (),
    min_frames: int = 1,
) -> FileList:
    """The accepted volumes that pass all filters, in the index's order; a filter without values passes all.

    A region is named as in the manifest ("Macula, 6 x 6") or by what is before the comma, in any case. UserError,
    saying what there is, if no volume passes.
    """
    table = select(index, devices=devices, regions=regions, lateralities=lateralities, min_frames=min_frames)
    columns = {name: table[name].to_pylist() for name in FACTS}
    strata = [" | ".join(facts) for facts in zip(*(columns[name] for name in FACTS[2:]), strict=True)]
    names, groups = np.array(columns["path"], np.str_), np.array(columns["person"], np.str_)
    return FileList(index.path, names, groups, np.array(strata, np.str_), table["line"].to_pylist())


def select(
    index: VolumeIndex,
    *,
    devices: Collection[str] = (),
    regions: Collection[str] = (),
    lateralities: Collection[str] = (),
    min_frames: int = 1,
) -> pa.Table:
    """The rows of the index that `list_files` lists."""
    accepted = index.accepted
    kept = pc.greater_equal(accepted["frames"], min_frames)
    wanted = {
        "devices": ("device", devices),
        "regions": ("region", regions),
        "lateralities": ("laterality", lateralities),
    }
    for key, (column, values) in wanted.items():
        kept = pc.and_(kept, _matches(index, accepted, key, column, values))
    if not (table := accepted.filter(kept)).num_rows:
        chosen = {key: sorted(values) for key, (_, values) in wanted.items() if values} | {"min_frames": min_frames}
        raise UserError(
            "no volume passes the filters", file=public(index.path), found=chosen, expected=describe(accepted)
        )
    return table


def describe(accepted: pa.Table) -> str:
    """What there is, for errors: 12 bioptigen_sdois, 1 zeiss_cirrus."""
    counts = Counter(accepted["device"].to_pylist())
    return ", ".join(f"{count:,} {device}" for device, count in sorted(counts.items())) or "no accepted volume"


def _matches(index: VolumeIndex, table: pa.Table, key: str, column: str, values: Collection[str]) -> pa.Array:
    """Whether each row has one of the values. UserError for a value that no row has: it may be misspelt."""
    cells = table[column].to_pylist()
    if not values:
        return pa.array([True] * len(cells), pa.bool_())
    there = [{cell.casefold(), cell.partition(",")[0].strip().casefold()} for cell in cells]
    wanted = {value.casefold() for value in values}
    if absent := sorted(wanted - set[str]().union(*there)):
        expected = f"of {sorted(set(cells))}, or [] for all"
        raise UserError(
            "no volume has this value", file=public(index.path), key=f"data.{key}", found=absent, expected=expected
        )
    return pa.array([bool(wanted & own) for own in there], pa.bool_())


def write_file_list(path: str, names: Sequence[str]) -> None:
    """Write paths below the root, one a line."""
    write_atomic(path, "".join(f"{name}\n" for name in names).encode())


def read_file_list(path: str) -> list[str]:
    """The paths of a file list, in its order; blank lines and lines that begin with # are skipped.

    MissingFile; UserError, naming the line, for a path that is there twice, and for an empty list.
    """
    first: dict[str, int] = {}
    for number, line in enumerate(read_user_text(path, "file list", "a text with a path a line").splitlines(), start=1):
        name = line.strip().lstrip("/")
        if not name or name.startswith("#"):
            continue
        if name in first:
            expected = f"each path once: it is in line {first[name]}, too"
            raise UserError("a path is there twice", file=public(path), row=number, found=name, expected=expected)
        first[name] = number
    if not first:
        raise UserError("the file list is empty", file=public(path), expected="a path a line")
    return list(first)
