"""Turns an index of volumes into a plan: one unit per volume, and a table of what is known of each.

A unit has one column, `source`: the row of the table. Units are grouped by device, then sorted by path, so that neither
the order of the manifest nor the place of the files matters. Not here: the plan's format on disk (pathray.data.plan),
which unit is read when (pathray.data.order).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from oct.indexing.file_lists import describe, select
from oct.indexing.index_file import VolumeIndex, read_index
from oct.indexing.manifest import Spacing
from oct.volume import AXES
from pathray.data.plan import Plan, PlanWriter
from pathray.errors import UserError
from pathray.store.storage import Storage
from pathray.urls import public

COLUMNS: dict[str, type[np.generic]] = {"source": np.int32}
SPACINGS, SOURCES = [f"spacing_{axis}_mm" for axis in AXES], [f"source_{axis}" for axis in AXES]
IDENTITY = ["path", "person", "device", "sop_instance_uid", "frames", "rows", "columns", *SPACINGS, *SOURCES]
SOURCE_COLUMNS = [*IDENTITY, "region", "laterality", "bits", "transfer_syntax_uid", "bytes", "state"]


def build_plan(
    index_path: str,
    out_dir: str,
    *,
    devices: Collection[str] = (),
    regions: Collection[str] = (),
    persons: Collection[str] | None = None,
    paths: Collection[str] | None = None,
    held_out: Collection[str] = (),
    min_frames: int = 1,
    root: str = "",
) -> Plan:
    """Write the plan of an index's accepted volumes into the folder `out_dir` and open it.

    `devices` and `regions` (none: all), `persons` and `paths` (None: all; those of a split or a file list) select the
    volumes. Those of the persons `held_out` have no units: they are further sources, whose `held_out` is true, for
    validation. `root`: where the files are, if they moved since they were indexed. `plan.sources` has `SOURCE_COLUMNS`
    and `held_out`, `path` being below the root. MissingFile for a missing index; UserError, saying what there is, if
    nothing is selected, a path is not an accepted volume of the index, or a person is trained on and held out.
    """
    index = read_index(index_path)
    known = select(index, devices=devices, regions=regions, min_frames=min_frames)
    table = _sorted(_only(index, _only(index, known, "person", persons), "path", paths))
    others = _sorted(_only(index, known, "person", held_out)) if held_out else known.slice(0, 0)
    _check_apart(index, table, others)
    meta = {
        "kind": "oct-volumes",
        "root": Storage.of(root or index.root).url,
        "identity": _digest(table),
    }
    sources = pa.concat_tables(
        part.select(SOURCE_COLUMNS).append_column("held_out", pa.array([own] * part.num_rows, pa.bool_()))
        for part, own in ((table, False), (others, True))
    )
    return _write(out_dir, sources, meta)


def relocate(plan: Plan, root: str, out_dir: str) -> Plan:
    """The plan with its files below `root`, in the folder `out_dir`; the same plan if they are there already. Identity
    and order do not change."""
    root = Storage.of(root).url
    if root == plan.meta["root"] and plan.origin == out_dir:
        return plan
    return _write(out_dir, plan.sources, {**plan.meta, "root": root})


def identity(plan: Plan) -> str:
    """Digest of which volumes are in which row, and of their sizes and spacings; not of where the files are."""
    return str(plan.meta["identity"])


def locations(plan: Plan) -> list[str]:
    """Paths or URLs of the files, by `source`."""
    root = str(plan.meta["root"]).rstrip("/")
    return [f"{root}/{path}" for path in plan.sources["path"].to_pylist()]


def manifest_spacing(source: Mapping[str, Any]) -> Spacing:
    """What the manifest gave to the spacing of a row of `plan.sources`, as oct.dicom.header.read_header takes it."""
    z, y, x = (source[mm] if source[of] == "manifest" else None for mm, of in zip(SPACINGS, SOURCES, strict=True))
    return z, y, x


def _only(index: VolumeIndex, table: pa.Table, column: str, values: Collection[str] | None) -> pa.Table:
    """The rows with one of these values."""
    if values is None:
        return table
    if column == "path":
        _check_paths(index, values)
    kept = table.filter(pc.is_in(table[column], pa.array(sorted(values), pa.string())))
    if not kept.num_rows:
        there = f"{describe(table)} of {len(pc.unique(table['person']))} persons"
        found = f"{len(values)} of others, such as {min(values)}" if values else "none"
        raise UserError(f"no volume has one of the {column}s", file=public(index.path), found=found, expected=there)
    return kept


def _check_paths(index: VolumeIndex, paths: Collection[str]) -> None:
    why = dict(zip(index.table["path"].to_pylist(), index.table["exclusion"].to_pylist(), strict=True))
    accepted = set(index.accepted["path"].to_pylist())
    if lost := sorted(set(paths) - accepted):
        found = f"{lost[0]} ({why.get(lost[0], 'not in the index')})" + f" and {len(lost) - 1} more" * (len(lost) > 1)
        message = "a listed path is not an accepted volume of the index"
        raise UserError(message, file=public(index.path), key="path", found=found, expected=describe(index.accepted))


def _sorted(table: pa.Table) -> pa.Table:
    return table.sort_by([("device", "ascending"), ("path", "ascending")])


def _check_apart(index: VolumeIndex, table: pa.Table, others: pa.Table) -> None:
    if both := sorted(set(table["person"].to_pylist()) & set(others["person"].to_pylist())):
        message, expected = "a person is trained on and held out", "one part for each person"
        raise UserError(message, file=public(index.path), key="person", found=both[0], expected=expected)


def held_out_sources(plan: Plan) -> list[int]:
    """The sources of the held-out volumes, in order."""
    return np.flatnonzero(plan.sources["held_out"].to_numpy()).tolist()


def _digest(table: pa.Table) -> str:
    """Of the identifying columns, row by row; floats exactly."""
    digest = hashlib.sha256()
    for row in zip(*(table[name].to_pylist() for name in IDENTITY), strict=True):
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def _write(out_dir: str, sources: pa.Table, meta: dict[str, Any]) -> Plan:
    with PlanWriter(out_dir, COLUMNS, sources, meta) as writer:
        writer.append({"source": np.flatnonzero(~sources["held_out"].to_numpy())})
    return Plan.open(out_dir)
