"""What the splits of a training say together: scores, figures, a page, and models for use.

Not here: scores (mil.judging), how predictions are joined (mil.results.joining), other seeds (mil.results.seeds).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from mil.cohort import Cohort
from mil.config import RunConfig
from mil.judging.output import write_judgement
from mil.judging.predictions import of_table
from mil.results.files import FOLDS, OOF, TEST, VAL, read_part
from mil.results.joining import join
from mil.results.models import write_models
from mil.results.repeats import spread_of_repeats
from mil.results.seeds import seeds_table
from mil.splits import is_repeated
from mil.target import ORDINAL
from mil.validation import scores_of
from pathray.data.splits import Split
from pathray.run.layout import ENCODER
from pathray.store.sealed_parquet import to_bytes
from pathray.store.storage import Storage


def judge_folds(
    config: RunConfig, cohort: Cohort, splits: Mapping[str, Split], seeds: Mapping[str, Any] | None = None
) -> dict[str, object]:
    """Join the test slides of the finished splits, score them, and write what came of it with the models for use;
    returns the files. Thresholds are chosen on the splits' validation slides. `seeds`: what `spread_of_seeds` found."""
    root, names, repeated = Storage.of(str(config.output)), list(splits), is_repeated(splits)
    tested = {name: read_part(root.at(name), TEST, cohort) for name in names}
    oof = join(tested, repeated)
    root.write_bytes(OOF, to_bytes(oof))
    validated = {name: read_part(root.at(name), VAL, cohort) for name in names if root.exists(f"{name}/{VAL}")}
    chosen_on = of_table(pa.concat_tables(list(validated.values())), cohort.classes) if validated else None
    each = {name: scores(table, cohort) for name, table in tested.items()}
    at_validation = {name: scores(validated[name], cohort) if name in validated else {} for name in names}
    models = write_models(config, at_validation)
    found: dict[str, Any] = {
        "folds": each, "validation": at_validation,
        "models": {name: root.join(name, ENCODER) for name in names} | models,
    }  # fmt: skip
    facts = [("Labels", f"{cohort.file}, column {cohort.label}"), ("Model", config.model.name), _scheme(splits)]
    if repeated:
        found["repeats"] = spread_of_repeats(each, splits)
        facts += [(f"{name}, mean of repeats", told) for name, told in found["repeats"]["in_words"].items()]
    root.write_bytes(FOLDS, to_json(found))
    tables = [] if seeds is None else [seeds_table(seeds)]
    written = write_judgement(
        root, of_table(oof, cohort.classes), chosen_on, title=f"{cohort.label} by {config.model.name}", facts=facts,
        folds=each, left_out=[*cohort.left_out, *_untested(oof, cohort)], resamples=config.eval.resamples,
        seed=config.splits.seed, models=models, ordinal=cohort.task == ORDINAL, tables=tables,
    )  # fmt: skip
    return {"predictions": root.join(OOF), "folds": root.join(FOLDS), **written}


def joined_predictions(config: RunConfig, cohort: Cohort, splits: Mapping[str, Split]) -> pa.Table:
    """The test predictions of all splits with the truth, a row per slide (mil.results.joining)."""
    root = Storage.of(str(config.output))
    return join({name: read_part(root.at(name), TEST, cohort) for name in splits}, is_repeated(splits))


def scores(table: pa.Table, cohort: Cohort) -> dict[str, float | None]:
    """The plain scores of one table; None where not defined."""
    one = of_table(table, cohort.classes)
    truth = one.truth if one.events is None else np.stack([one.truth, one.events], axis=1)
    found = scores_of(truth, one.values, cohort.task)
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


def to_json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def _scheme(splits: Mapping[str, Split]) -> tuple[str, str]:
    kinds = sorted({str(split.meta.get("kind", "")) for split in splits.values()})
    return "Splits", f"{len(splits)} ({', '.join(kind for kind in kinds if kind) or 'from files'})"


def _untested(oof: pa.Table, cohort: Cohort) -> list[tuple[str, str]]:
    missing = sorted(set(cohort.names.tolist()) - set(oof["slide_id"].to_pylist()))
    return [(name, "no split tests it") for name in missing]
