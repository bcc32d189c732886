"""The files of one split's predictions.

`preds_val.parquet` and `preds_test.parquet` have a row per slide (mil.judging.predictions), `embeddings.npy` their
embeddings. Not here: predicting (mil.predict), what splits say together (mil.results.folds).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mil.cohort import Cohort
from mil.judging.predictions import EVENT, TIME, columns_of
from mil.plan import target_of
from mil.predict import Predicted
from pathray.data.plan import Plan
from pathray.errors import MissingFile, UserError
from pathray.store.sealed_parquet import of_bytes, to_bytes
from pathray.store.storage import Storage

VAL, TEST, EMBEDDINGS = "preds_val.parquet", "preds_test.parquet", "embeddings.npy"
OOF, FOLDS = "oof_predictions.parquet", "cv_results.json"


def write_fold(folder: str, plan: Plan, parts: Mapping[str, Predicted], identity: str) -> None:
    """Write the predictions of validation and test slides, and their embeddings `[N, E]` in that order. The file of the
    test slides comes last, without rows where none tests: with it a run is finished. UserError, naming the slide, for a
    prediction that is NaN or infinite; then nothing is written."""
    store, target = Storage.of(folder), target_of(plan)
    for one in parts.values():
        _check_finite(folder, plan, one)
    if parts:
        data = io.BytesIO()
        np.save(data, np.concatenate([one.embeddings for one in parts.values()]), allow_pickle=False)
        store.write_bytes(EMBEDDINGS, data.getvalue())
    width = max(1, len(target.classes))
    nothing = Predicted(np.empty(0, np.int64), np.empty((0, width)), np.empty((0, 0), np.float32))
    for part, name in (("val", VAL), ("test", TEST)):
        if part in parts or part == "test":
            one = parts.get(part, nothing)
            chosen = plan.sources.take(pa.array(one.rows))
            columns: dict[str, Any] = {"slide_id": chosen["name"], "patient_id": chosen["group"]}
            table = pa.table(columns | columns_of(one.values, target.classes, target.task))
            store.write_bytes(name, to_bytes(table.replace_schema_metadata({"identity": identity})))


def finished_identity(folder: str) -> str | None:
    """The identity of the run whose predictions a folder has; None without any."""
    try:
        table = _read(Storage.of(folder), TEST)
    except MissingFile:
        return None
    return (table.schema.metadata or {}).get(b"identity", b"").decode() or None


def list_unfinished(root: Storage, names: Sequence[str]) -> list[str]:
    return [name for name in names if finished_identity(root.join(name)) is None]


def read_part(store: Storage, name: str, cohort: Cohort) -> pa.Table:
    """The predictions in a file, with the truth in a column `label`; of survival in `time` and `event`."""
    table = _read(store, name).replace_schema_metadata(None)
    place = {slide: i for i, slide in enumerate(cohort.names.tolist())}
    rows = [place[slide] for slide in table["slide_id"].to_pylist()]
    if cohort.events is not None:
        table = table.append_column(TIME, pa.array(cohort.truth[rows]))
        return table.append_column(EVENT, pa.array(cohort.events[rows]))
    labels = cohort.labels[rows].tolist() if cohort.classes else cohort.truth[rows]
    return table.append_column("label", pa.array(labels))


def _check_finite(folder: str, plan: Plan, one: Predicted) -> None:
    """UserError for the predictions of a model that has diverged."""
    if (bad := np.flatnonzero(~np.isfinite(one.values).all(axis=1))).size:
        slide = plan.sources["name"][int(one.rows[bad[0]])].as_py()
        found = f"{one.values[bad[0]].tolist()} of slide {slide}, and {bad.size} such slides of {len(one.rows)}"
        message, expected = "the model has diverged: its predictions are not finite", "finite ones; lower training.lr"
        raise UserError(message, file=folder, key="training.lr", found=found, expected=expected)


def _read(store: Storage, name: str) -> pa.Table:
    table = of_bytes(store.read_bytes(name), store.join(name), "table of predictions")
    if "slide_id" not in table.column_names:
        raise UserError("not a table of predictions", file=store.join(name), found=table.column_names)
    return table
