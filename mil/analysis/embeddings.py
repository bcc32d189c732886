"""Slides in two dimensions: the embeddings of each split's own model, and the mean features, which all splits share.

Every model has a space of its own, so embeddings of different splits are never in one panel. Not here: the projection
(pathray.evaluation.projection), the drawing (.scatter).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mil.analysis.trained_run import TrainedRun
from mil.store.reading import Store
from pathray.errors import UserError
from pathray.evaluation.projection import METHODS, NEIGHBOURS, Embedding, embed
from pathray.files.sheet import read_sheet

FEATURES = "mean features"  # the space of all splits


@dataclass(frozen=True)
class Space:
    """Slides of one space: its name, their ids, vectors `[N, E]` and what became of them in two dimensions."""

    name: str
    names: Sequence[str]
    vectors: npt.NDArray[np.float32]
    embedding: Embedding


def spaces_of(run: TrainedRun, store: Store | None, method: str) -> list[Space]:
    """A space per split with its tested slides; the last one, where there is a store, has the mean features of all.
    UserError as in `embed`, and for UMAP of a split with too few slides."""
    vectors = {split: run.embeddings(split) for split in run.splits}
    if store is not None:
        known = [name for name in run.slides if name in store.index]
        vectors[FEATURES] = (known, store.means[[store.index[name] for name in known]])
    if method == METHODS[1]:
        _check_sizes({name: len(found[0]) for name, found in vectors.items()})
    return [Space(name, ids, x, embed(x, method)) for name, (ids, x) in vectors.items() if len(ids)]


def _check_sizes(sizes: Mapping[str, int]) -> None:
    few = min(sizes, key=lambda name: sizes[name])
    if sizes[few] <= NEIGHBOURS:
        found, expected = f"{sizes[few]} slides in {few}", f"more than {NEIGHBOURS} in each, or projection=pca"
        raise UserError("too few slides for UMAP", key="projection", found=found, expected=expected)


def columns_of(csv: str, columns: Sequence[str], slide_column: str = "slide_id") -> dict[str, dict[str, str]]:
    """Of each column, such as the hospital, the value of each slide. MissingFile; UserError for a missing column."""
    sheet = read_sheet(csv, "table of slides")
    sheet.need(slide_column, *columns)
    names = sheet.texts(slide_column)
    return {
        column: dict(zip(names, sheet.texts(column, may_be_empty=True), strict=True)) for column in columns
    }  # fmt: skip


def embeddings_table(run: TrainedRun, spaces: Sequence[Space], columns: Mapping[str, Mapping[str, str]]) -> pa.Table:
    """A row per slide and space (`fold`: the split whose model made the embedding; of mean features the one that tested
    the slide): slide_id, patient_id, label, fold, space, x, y, embedding, and the columns."""
    ids = [name for space in spaces for name in space.names]
    slides = [run.slides[name] for name in ids]
    folds = [run.slides[n].fold if space.name == FEATURES else space.name for space in spaces for n in space.names]
    points = np.concatenate([space.embedding.points for space in spaces])
    vectors = [row.tolist() for space in spaces for row in space.vectors]
    known = {
        "slide_id": ids, "patient_id": [s.patient for s in slides], "label": [s.truth for s in slides],
        "fold": folds, "space": [space.name for space in spaces for _ in space.names],
        "x": points[:, 0], "y": points[:, 1], "embedding": pa.array(vectors, pa.list_(pa.float32())),
    }  # fmt: skip
    more = {f"by_{c}" if c in known else c: [values.get(name, "") for name in ids] for c, values in columns.items()}
    return pa.table({**known, **more})
