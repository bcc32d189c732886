"""The plan of a fine-tuning: a unit per training volume, and a table of all labelled volumes with truth and part.

Not here: the plan's format on disk (pathray.data.plan), who trains (oct.downstream.folds).
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from oct.downstream.cohort import Cohort
from oct.plan import SOURCE_COLUMNS
from pathray.data.plan import Plan, PlanWriter
from pathray.data.splits import Split

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def build_plan(cohort: Cohort, split: Split, out_dir: str) -> Plan:
    """Write the plan into the folder `out_dir` and open it.

    Units have one column, `source`: the row in `plan.sources`, which has what the index says of a volume, its unit and
    truth, and its part. `plan.meta` has the classes, and mean and deviation of the training volumes' truth.
    """
    part, truth = split.of[cohort.unit], cohort.truth[cohort.unit]
    known = pa.Table.from_pylist([{name: row[name] for name in SOURCE_COLUMNS} for row in cohort.volumes])
    columns = {"unit": cohort.unit, "truth": truth, "split": part.tolist()}
    for name, values in columns.items():
        known = known.append_column(name, pa.array(values))
    train = np.flatnonzero(part == "train")
    own = truth[train]
    facts = [cohort.hash, split.of.tolist(), [row["path"] for row in cohort.volumes]]
    meta = {
        "kind": "oct-labelled",
        "root": cohort.root,
        "identity": hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        "classes": list(cohort.classes),
        "scale": [0.0, 1.0] if cohort.classes else [float(own.mean()), float(own.std()) or 1.0],
    }
    with PlanWriter(out_dir, {"source": np.int32}, known, meta) as writer:
        writer.append({"source": train})
    return Plan.open(out_dir)


def identity(plan: Plan) -> str:
    """Digest of labels, volumes and parts, not of where the volumes are."""
    return str(plan.meta["identity"])


def classes_of(plan: Plan) -> tuple[str, ...]:
    return tuple(plan.meta["classes"])


def scale_of(plan: Plan) -> tuple[float, float]:
    """Mean and deviation by which numbers are standardised; (0, 1) for classes."""
    mean, std = plan.meta["scale"]
    return float(mean), float(std)


def volumes_of(plan: Plan, part: str) -> Ints:
    """Rows of `plan.sources` that train, validate or test."""
    return np.flatnonzero(np.array(plan.sources["split"].to_pylist()) == part)
