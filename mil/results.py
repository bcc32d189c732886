"""What folds predict, and what they say together: files of predictions, scores with intervals over patients.

A fold's `preds_val.parquet` and `preds_test.parquet` have a row per slide with the probability of each class by
its name. `oof_predictions.parquet` joins the test slides of all folds with their truth. Not here: predicting
(mil.evaluate).
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
from mil.evaluate import Predicted
from mil.plan import classes_of
from pathray.data.plan import Plan
from pathray.errors import MissingFile, UserError
from pathray.reports.summary import Summary, write_summary
from pathray.run.layout import ENCODER
from pathray.stats.scores import classification_scores, intervals, regression_scores
from pathray.store.sealed_parquet import of_bytes, to_bytes
from pathray.store.storage import Storage

VAL, TEST, EMBEDDINGS = "preds_val.parquet", "preds_test.parquet", "embeddings.npy"
OOF, METRICS, FOLDS = "oof_predictions.parquet", "metrics.json", "cv_results.json"
PROBABILITY, NUMBER = "prob_", "predicted"


def write_fold(folder: str, plan: Plan, parts: Mapping[str, Predicted], identity: str) -> None:
    """Write the predictions of validation and test slides, and their embeddings `[N, E]` in that order. The file of the
    test slides comes last: with it a fold is finished."""
    store, classes = Storage.of(folder), classes_of(plan)
    data = io.BytesIO()
    np.save(data, np.concatenate([one.embeddings for one in parts.values()]), allow_pickle=False)
    store.write_bytes(EMBEDDINGS, data.getvalue())
    for part, name in (("val", VAL), ("test", TEST)):
        if part in parts:
            one = parts[part]
            chosen = plan.sources.take(pa.array(one.rows))
            columns: dict[str, Any] = {"slide_id": chosen["name"], "patient_id": chosen["group"]}
            table = pa.table(columns | _value_columns(one.values, classes))
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


def judge(config: RunConfig, cohort: Cohort, names: Sequence[str]) -> dict[str, object]:
    """Join the test slides of the finished folds, score them, and write what came of it; returns the files."""
    root = Storage.of(str(config.output))
    tables = [_read(root.at(name), TEST) for name in names]
    place = {name: i for i, name in enumerate(cohort.names.tolist())}
    joined = pa.concat_tables([t.replace_schema_metadata(None) for t in tables])
    rows = np.array([place[name] for name in joined["slide_id"].to_pylist()], np.int64)
    truth = cohort.truth[rows]
    labels = pa.array(cohort.labels[rows].tolist()) if cohort.classes else pa.array(truth)
    fold = np.repeat(np.arange(len(names)), [len(t) for t in tables])
    oof = joined.append_column("label", labels).append_column("fold", pa.array(fold))
    oof = oof.sort_by("slide_id")
    root.write_bytes(OOF, to_bytes(oof))
    seed, resamples = config.splits.seed, config.eval.resamples
    scores = score_table(oof, cohort.classes, resamples, seed)
    each = {
        name: score_table(_labelled(t, cohort, place), cohort.classes, 0, seed)
        for name, t in zip(names, tables, strict=True)
    }
    root.write_bytes(
        METRICS,
        _json({"classes": list(cohort.classes), "slides": len(oof), "patients": cohort.patients, "scores": scores}),
    )
    root.write_bytes(FOLDS, _json({"folds": each, "models": {name: root.join(name, ENCODER) for name in names}}))
    write_summary(root.url, _summary(config, cohort, scores, root, names))
    files = {"predictions": OOF, "metrics": METRICS, "folds": FOLDS}
    return {what: root.join(name) for what, name in files.items()}


def score_table(table: pa.Table, classes: Sequence[str], resamples: int, seed: int) -> dict[str, Any]:
    """Scores of rows with columns label, patient_id and predictions. With `resamples` each is {estimate, low, high}: a
    95% interval over patients; null where it is not defined."""
    groups = np.array(table["patient_id"].to_pylist())
    if classes:
        values = np.stack([table[f"{PROBABILITY}{name}"].to_numpy() for name in classes], axis=1)
        number = {name: k for k, name in enumerate(classes)}
        truth = np.array([number[label] for label in table["label"].to_pylist()], np.int64)
        scores = classification_scores(truth, values)
    else:
        scores = regression_scores(table["label"].to_numpy(), table[NUMBER].to_numpy())
    if not resamples:
        return {name: _plain(float(score(np.ones((1, len(table))))[0])) for name, score in scores.items()}
    found = intervals(scores, groups, resamples=resamples, seed=seed)
    return {
        name: {"estimate": _plain(i.estimate), "low": _plain(i.low), "high": _plain(i.high), "patients": i.n}
        for name, i in found.items()
    }


def _labelled(table: pa.Table, cohort: Cohort, place: Mapping[str, int]) -> pa.Table:
    rows = [place[name] for name in table["slide_id"].to_pylist()]
    labels = cohort.labels[rows].tolist() if cohort.classes else cohort.truth[rows]
    return table.append_column("label", pa.array(labels))


def _value_columns(values: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    if not classes:
        return {NUMBER: values[:, 0]}
    return {f"{PROBABILITY}{name}": values[:, k] for k, name in enumerate(classes)}


def _read(store: Storage, name: str) -> pa.Table:
    table = of_bytes(store.read_bytes(name), store.join(name), "table of predictions")
    if "slide_id" not in table.column_names:
        raise UserError("not a table of predictions", file=store.join(name), found=table.column_names)
    return table


def _summary(
    config: RunConfig, cohort: Cohort, scores: Mapping[str, Any], root: Storage, names: Sequence[str]
) -> Summary:
    facts: dict[str, object] = {"labels": cohort.file, "slides": len(cohort.names), "patients": cohort.patients}
    for name, one in scores.items():
        ends = f"[{one['low']:.3f}, {one['high']:.3f}]" if one["low"] is not None else "no interval"
        facts[name.replace("_", " ")] = (
            f"{one['estimate']:.3f} {ends}" if one["estimate"] is not None else "not defined"
        )
    settings = {"model": config.model.name, "splits": config.splits.scheme, "lr": config.training.lr}
    files = {
        "out-of-fold predictions": root.join(OOF),
        "scores": root.join(METRICS),
        "scores by fold": root.join(FOLDS),
    }
    files |= {f"model of {name}": root.join(name, ENCODER) for name in names}
    return Summary(
        "MIL classifier" if cohort.classes else "MIL regression", facts, settings, skipped=cohort.left_out, files=files
    )


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
