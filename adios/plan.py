"""Turns a patch index into a plan: 24 bytes per patch of one size, and a table of archives.

Columns of a unit: `source` int32 (row of the table of archives), `offset` int64 (of the member's local header),
`compressed` and `bytes` uint32 (as stored, and decompressed), `crc` uint32. With these a patch is one ranged read that
can be verified; its name and compression are in the local header, its place on the slide in the index. 10^8 patches
are 2.4 GB on disk, memory-mapped. Not here: the plan's format on disk (pathray.data.plan).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from adios.patches.index import PatchIndex, archive_path
from pathray.data.plan import Plan, PlanWriter
from pathray.errors import UserError
from pathray.store.storage import Storage

COLUMNS: dict[str, type[np.generic]] = {
    "source": np.int32,
    "offset": np.int64,
    "compressed": np.uint32,
    "bytes": np.uint32,
    "crc": np.uint32,
}

COPIED = 1 << 20  # units at a time


def build_plan(index_path: str, out_dir: str, *, patch_size: int = 448, root: str = "") -> Plan:
    """Write the plan of an index's patches of `patch_size`² pixels into the folder `out_dir` and open it.

    `plan.sources` has `archive` (below the root) and `path`; `root` is where the archives are, if moved since they were
    indexed. Memory does not grow with the patches. Raises MissingFile for a missing index, and UserError with the
    counts of all sizes if there is no patch of this size.
    """
    index = PatchIndex.open(index_path)
    root = Storage.of(root).url if root else index.root
    sizes, archives = _count_sizes(index, patch_size)
    if not archives:
        message = f"the index has no patches of {patch_size} pixels"
        found = {f"{size} px": count for size, count in sorted(sizes.items())}
        raise UserError(message, file=index_path, key="patch_size", found=found)
    sources = pa.table({"archive": archives, "path": [archive_path(root, name) for name in archives]})
    digest = hashlib.sha256(json.dumps([archives, patch_size]).encode())
    number = {name: i for i, name in enumerate(archives)}
    meta: dict[str, Any] = {"kind": "adios-patches", "patch_size": patch_size}
    with PlanWriter(out_dir, COLUMNS, sources, meta) as writer:
        for units in _units(index, patch_size, number):
            writer.append(units)
            for values in units.values():
                digest.update(np.ascontiguousarray(values).astype("<i8").tobytes())
        writer.meta["identity"] = digest.hexdigest()
    return Plan.open(out_dir)


def relocate(plan: Plan, root: str, out_dir: str) -> Plan:
    """The plan with its archives below `root`, in the folder `out_dir`; the same plan if they are there already.
    Identity and order do not change."""
    root = Storage.of(root).url
    moved = [archive_path(root, name) for name in plan.sources["archive"].to_pylist()]
    if moved == paths(plan) and plan.origin == out_dir:
        return plan
    sources = plan.sources.set_column(plan.sources.schema.get_field_index("path"), "path", [moved])
    with PlanWriter(out_dir, COLUMNS, sources, plan.meta) as writer:
        for first in range(0, plan.rows, COPIED):
            writer.append(plan.take(np.arange(first, min(first + COPIED, plan.rows))))
    return Plan.open(out_dir)


def identity(plan: Plan) -> str:
    """Digest of which patches of which archives are in which row, not of where the archives are."""
    return str(plan.meta["identity"])


def paths(plan: Plan) -> list[str]:
    """Paths of the archives, by `source`."""
    found: list[str] = plan.sources["path"].to_pylist()
    return found


def _count_sizes(index: PatchIndex, patch_size: int) -> tuple[Counter[int], list[str]]:
    """Patches per size, and the archives that have some of `patch_size`, in the index's order."""
    sizes, archives = Counter[int](), dict[str, None]()
    for table in index.tables(("archive", "size")):
        values, counts = np.unique(table["size"].to_numpy(), return_counts=True)
        sizes.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        kept = table["archive"].filter(pc.equal(table["size"], patch_size))
        archives.update(dict.fromkeys(kept.unique().to_pylist()))
    return sizes, list(archives)


def _units(index: PatchIndex, patch_size: int, number: dict[str, int]) -> Iterator[dict[str, npt.NDArray[Any]]]:
    for table in index.tables(("archive", "offset", "compressed_bytes", "bytes", "crc", "size")):
        table = table.filter(pc.equal(table["size"], patch_size)).unify_dictionaries().combine_chunks()
        if not table.num_rows:
            continue
        archive = table["archive"].chunk(0)
        numbers = np.array([number.get(name, -1) for name in archive.dictionary.to_pylist()], np.int64)
        columns = {"offset": "offset", "compressed": "compressed_bytes", "bytes": "bytes", "crc": "crc"}
        units = {name: table[column].to_numpy() for name, column in columns.items()}
        yield {"source": numbers[archive.indices.to_numpy()], **units}
