"""Turns a table and its split into a plan: a unit per training row, and a table of all rows with targets and parts.

Rows are sorted by path, so the order of a table does not matter. Not here: the plan's format on disk
(pathray.data.plan).
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pathray.data.plan import Plan, PlanWriter
from pathray.data.splits import Split
from regression.normalise import Normaliser
from regression.tables.table import Table


def build_plan(table: Table, split: Split, out_dir: str, *, normalize_target: bool = True) -> Plan:
    """Write the plan into the folder `out_dir` and open it.

    Units have one column, `source`: the row in `plan.sources`, which has name, path, group_id, split and target, and
    the places of the images if the table has them. The normalisation of the training rows is in `plan.meta`, with the
    unit. UserError for a gene that does not vary over them.
    """
    order = np.argsort(table.names)
    part = split.of[order]
    train = np.flatnonzero(part == "train")
    targets = table.targets[order]
    none = Normaliser.none(table.genes)
    normaliser = Normaliser.fit(targets[train], table.genes) if normalize_target else none
    paths = table.paths
    columns = {
        "name": table.names[order],
        "path": [paths[i] for i in order],
        "group_id": table.groups[order],
        "split": part,
        "target": pa.FixedSizeListArray.from_arrays(pa.array(targets.ravel()), targets.shape[1]),
    }
    sources = pa.table(columns | (table.places.take(order).columns() if table.places is not None else {}))
    facts = [table.hash, part.tolist(), list(table.genes), normalize_target]
    identity = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    meta = {"kind": "regression-images", "identity": identity, "table": table.hash, "normaliser": normaliser.plain()}
    meta["unit"] = table.unit
    with PlanWriter(out_dir, {"source": np.int32}, sources, meta) as writer:
        writer.append({"source": train})
    return Plan.open(out_dir)


def identity(plan: Plan) -> str:
    """Digest of the table, the split and the targets' scale, not of where the images are."""
    return str(plan.meta["identity"])


def normaliser(plan: Plan) -> Normaliser:
    return Normaliser.of(plan.meta["normaliser"])


def targets(plan: Plan) -> npt.NDArray[np.float64]:
    """Targets `[N, K]` of all rows of `plan.sources`, in their own units."""
    column = plan.sources["target"].combine_chunks()
    values: npt.NDArray[np.float64] = column.flatten().to_numpy().reshape(len(column), -1)
    return values


def rows_of(plan: Plan, part: str) -> npt.NDArray[np.int64]:
    """Rows of `plan.sources` that train, validate or test."""
    return np.flatnonzero(np.array(plan.sources["split"].to_pylist()) == part)
