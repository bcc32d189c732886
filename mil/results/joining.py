"""Joins the test predictions of splits into one row per slide.

Folds test every slide once. The inner models of an outer fold test the same slides: their mean counts. The repeats of a
Monte-Carlo cross-validation test a slide several times, or never: the mean of those that did. Not here: scores.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from mil.judging.predictions import NUMBER, PROBABILITY, RISK
from mil.splits import outer_of


def join(tested: Mapping[str, pa.Table], repeated: bool) -> pa.Table:
    """One row per slide, sorted, of each split's predictions with the truth. `fold` is the number of the split, or of
    the outer fold; with `repeated` there is none, but `times`, how often the slide was tested."""
    outer = list(dict.fromkeys(outer_of(name) for name in tested))
    numbers = [outer.index(outer_of(name)) for name, table in tested.items() for _ in range(table.num_rows)]
    rows = pa.concat_tables(list(tested.values())).append_column("fold", pa.array(numbers, pa.int64()))
    names, first, place, counts = np.unique(
        np.array(rows["slide_id"].to_pylist(), np.str_), return_index=True, return_inverse=True, return_counts=True
    )
    out = rows.take(pa.array(first))
    for key in out.column_names:
        if key.startswith(PROBABILITY) or key in (NUMBER, RISK):
            values = rows[key].to_numpy()
            mean = np.bincount(place, values, len(names)) / counts
            mean = np.where(counts == 1, values[first], mean)
            out = out.set_column(out.column_names.index(key), key, pa.array(mean))
    if repeated:
        out = out.drop_columns(["fold"]).append_column("times", pa.array(counts))
    return out
