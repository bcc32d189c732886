"""The plan of one training: a unit per training slide, and a table of all slides of the split.

Truth of test slides is not in it: nothing that trains, stops or chooses can see it. Not here: the plan's format on disk
(pathray.data.plan), who tests (mil.splits).
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mil.cohort import Cohort
from mil.store.reading import Store
from mil.target import REGRESSION, Target
from pathray.data.order import Stratum
from pathray.data.plan import Plan, PlanWriter
from pathray.data.splits import Split

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
HIDDEN = "test"  # the part whose truth is left out


def build_plan(cohort: Cohort, split: Split, store: Store, out_dir: str) -> Plan:
    """Write the plan into the folder `out_dir` and open it.

    Units have one column, `source`: the row in `plan.sources`, which has name, group, part, truth (NaN in test) and the
    row of the store; in survival `event` is beside the truth, which is the time. Training units are sorted by class, so
    that classes are ranges (`strata`). `plan.meta` has task, classes, store, and mean and deviation of the training
    slides' truth.
    """
    hidden = split.of == HIDDEN
    seen = np.where(hidden, np.nan, cohort.truth)
    events = {} if cohort.events is None else {"event": np.where(hidden, np.nan, cohort.events)}
    train = np.flatnonzero(split.of == "train")
    train = train[np.argsort(seen[train], kind="stable")] if cohort.classes else train
    digests = [store.slides["sha256"][int(i)].as_py() for i in cohort.slides]
    columns = (cohort.names.tolist(), split.of.tolist(), seen.tolist(), digests, *(e.tolist() for e in events.values()))
    rows = sorted(zip(*columns, strict=True))
    identity = hashlib.sha256(json.dumps([rows, cohort.task, cohort.classes]).encode()).hexdigest()
    own = seen[train]
    sources = pa.table(
        {
            "name": cohort.names,
            "group": cohort.groups,
            "split": split.of,
            "truth": seen,
            "slide": cohort.slides,
            **events,
        }
    )
    encoders = {str(store.slides["encoder"][int(i)].as_py()) for i in cohort.slides}
    meta = {
        "kind": "mil-slides",
        "encoder": encoders.pop() if len(encoders) == 1 else "",
        "identity": identity,
        "store": store.path,
        "dim": store.dim,
        "label": cohort.label,
        "task": cohort.task,
        "classes": list(cohort.classes),
        "scale": [0.0, 1.0] if cohort.task != REGRESSION else [float(own.mean()), float(own.std()) or 1.0],
    }
    with PlanWriter(out_dir, {"source": np.int32}, sources, meta) as writer:
        writer.append({"source": train})
    return Plan.open(out_dir)


def identity(plan: Plan) -> str:
    """Digest of the slides, their content, parts and labels but for those of test; not of where the store is."""
    return str(plan.meta["identity"])


def classes_of(plan: Plan) -> tuple[str, ...]:
    return tuple(plan.meta["classes"])


def scale_of(plan: Plan) -> tuple[float, float]:
    """Mean and deviation of the training slides' numbers; (0, 1) for classes."""
    mean, std = plan.meta["scale"]
    return float(mean), float(std)


def rows_of(plan: Plan, part: str) -> Ints:
    """Rows of `plan.sources` that train, validate or test."""
    return np.flatnonzero(np.array(plan.sources["split"].to_pylist()) == part)


def truth_of(plan: Plan, rows: Ints) -> Floats:
    """Class numbers or numbers `[N]`, or times and events `[N, 2]`, of rows of `plan.sources`; NaN in test."""
    keys = [key for key in ("truth", "event") if key in plan.sources.column_names]
    columns = [np.asarray(plan.sources[key].to_numpy(), np.float64)[rows] for key in keys]
    return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)


def target_of(plan: Plan) -> Target:
    """What a model of this plan is built for."""
    counts = tuple(class_counts(plan).tolist()) if classes_of(plan) else ()
    meta = plan.meta
    return Target(int(meta["dim"]), str(meta["label"]), str(meta["task"]), classes_of(plan), scale_of(plan), counts)


def strata(plan: Plan) -> list[Stratum]:
    """The classes as ranges of the plan's units, for sampling that is balanced among them."""
    truth = truth_of(plan, np.asarray(plan.take(np.arange(plan.rows))["source"], np.int64)).astype(int)
    ends = np.searchsorted(truth, np.arange(len(classes_of(plan)) + 1))
    return [Stratum(name, int(ends[k]), int(ends[k + 1] - ends[k])) for k, name in enumerate(classes_of(plan))]


def class_counts(plan: Plan) -> Ints:
    """Training slides of each class `[K]`."""
    return np.array([s.rows for s in strata(plan)], np.int64)
