"""The files of folds' predictions, and what folds say together: scores, figures, a page.

A fold's `preds_val.parquet` and `preds_test.parquet` have a row per slide (mil.judging.predictions). The test slides of
all folds with their truth are `oof_predictions.parquet`. Not here: predicting (mil.predict), scores (mil.judging).
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mil.cohort import Cohort
from mil.config import RunConfig
from mil.judging.output import write_judgement
from mil.judging.predictions import EVENT, TIME, columns_of, of_table
from mil.plan import target_of
from mil.predict import Predicted
from mil.target import ORDINAL
from mil.validation import scores_of
from pathray.data.plan import Plan
from pathray.errors import MissingFile, UserError
from pathray.run.layout import ENCODER
from pathray.store.sealed_parquet import of_bytes, to_bytes
from pathray.store.storage import Storage

VAL, TEST, EMBEDDINGS = "preds_val.parquet", "preds_test.parquet", "embeddings.npy"
OOF, FOLDS = "oof_predictions.parquet", "cv_results.json"


def write_fold(folder: str, plan: Plan, parts: Mapping[str, Predicted], identity: str) -> None:
    """Write the predictions of validation and test slides, and their embeddings `[N, E]` in that order. The file of the
    test slides comes last: with it a fold is finished."""
    store, target = Storage.of(folder), target_of(plan)
    data = io.BytesIO()
    np.save(data, np.concatenate([one.embeddings for one in parts.values()]), allow_pickle=False)
    store.write_bytes(EMBEDDINGS, data.getvalue())
    for part, name in (("val", VAL), ("test", TEST)):
        if part in parts:
            one = parts[part]
            chosen = plan.sources.take(pa.array(one.rows))
            columns: dict[str, Any] = {"slide_id": chosen["name"], "patient_id": chosen["group"]}
            table = pa.table(columns | columns_of(one.values, target.classes, target.task))
            store.write_bytes(name, to_bytes(table.replace_schema_metadata({"identity": identity})))


def finished_identity(folder: str) -> str | None:
    """The identity of the run whose predictions a fold's folder has; None without any."""
    try:
        table = _read(Storage.of(folder), TEST)
    except MissingFile:
        return None
    return (table.schema.metadata or {}).get(b"identity", b"").decode() or None


def list_unfinished(root: Storage, names: Sequence[str]) -> list[str]:
    return [name for name in names if finished_identity(root.join(name)) is None]


def judge_folds(config: RunConfig, cohort: Cohort, names: Sequence[str]) -> dict[str, object]:
    """Join the test slides of the finished folds, score them, and write what came of it; returns the files. Thresholds
    are chosen on the folds' validation slides."""
    root = Storage.of(str(config.output))
    tested = [_labelled(_read(root.at(name), TEST), cohort) for name in names]
    fold = np.repeat(np.arange(len(names)), [len(t) for t in tested])
    oof = pa.concat_tables([t.replace_schema_metadata(None) for t in tested]).append_column("fold", pa.array(fold))
    oof = oof.sort_by("slide_id")
    root.write_bytes(OOF, to_bytes(oof))
    whole = of_table(oof, cohort.classes)
    validated = [_labelled(_read(root.at(n), VAL), cohort) for n in names if root.exists(f"{n}/{VAL}")]
    chosen_on = of_table(pa.concat_tables([_bare(t) for t in validated]), cohort.classes) if validated else None
    each = {name: _scores(t, cohort) for name, t in zip(names, tested, strict=True)}
    models = {name: root.join(name, ENCODER) for name in names}
    root.write_bytes(FOLDS, _json({"folds": each, "models": models}))
    facts = [
        ("Labels", f"{cohort.file}, column {cohort.label}"),
        ("Model", config.model.name),
        ("Folds", str(len(names))),
    ]
    written = write_judgement(
        root, whole, chosen_on, title=f"{cohort.label} by {config.model.name}", facts=facts, folds=each,
        left_out=cohort.left_out, resamples=config.eval.resamples, seed=config.splits.seed, models=models,
        ordinal=cohort.task == ORDINAL,
    )  # fmt: skip
    return {"predictions": root.join(OOF), "folds": root.join(FOLDS), **written}


def _labelled(table: pa.Table, cohort: Cohort) -> pa.Table:
    """With the truth, in a column `label`; of survival in `time` and `event`."""
    place = {name: i for i, name in enumerate(cohort.names.tolist())}
    rows = [place[name] for name in table["slide_id"].to_pylist()]
    if cohort.events is not None:
        table = table.append_column(TIME, pa.array(cohort.truth[rows]))
        return table.append_column(EVENT, pa.array(cohort.events[rows]))
    labels = cohort.labels[rows].tolist() if cohort.classes else cohort.truth[rows]
    return table.append_column("label", pa.array(labels))


def _scores(table: pa.Table, cohort: Cohort) -> dict[str, float | None]:
    one = of_table(table, cohort.classes)
    truth = one.truth if one.events is None else np.stack([one.truth, one.events], axis=1)
    found = scores_of(truth, one.values, cohort.task)
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


def _bare(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(None)


def _read(store: Storage, name: str) -> pa.Table:
    table = of_bytes(store.read_bytes(name), store.join(name), "table of predictions")
    if "slide_id" not in table.column_names:
        raise UserError("not a table of predictions", file=store.join(name), found=table.column_names)
    return table


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
