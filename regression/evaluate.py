"""Predicts a part of the rows, shared among workers by row, and evaluates the predictions gene by gene.

Shares carry row numbers, so that joining them cannot lose or duplicate a row. Not here: baselines
(regression.baseline), and the workers.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pathray.data.plan import Plan
from pathray.device import Device
from pathray.errors import UnreadableUnit, UserError
from pathray.stats.correlation import CorrelationIntervals, Method, bootstrap_correlation, correlation
from pathray.store.sealed_parquet import to_bytes
from pathray.store.storage import write_atomic
from pathray.train.state import TrainState
from pathray.train.supervised import Validate
from regression.config import EvalConfig
from regression.data import read_square
from regression.plan import normaliser, rows_of, targets
from regression.recipe import RegressionRecipe
from regression.tables.places import Places, places_in

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Strings = npt.NDArray[np.str_]
Part = tuple[Ints, npt.NDArray[np.float32]]  # row numbers, and the values of these rows


def share(rows: Ints, rank: int, world: int) -> Ints:
    """The rows of one worker: every `world`-th, so that shares differ by one row at most."""
    assert 0 <= rank < world, (rank, world)
    return rows[rank::world]


def join_parts(rows: Ints, parts: Sequence[Part]) -> npt.NDArray[np.float32]:
    """The values of `rows`, in their order, from parts that must contain every row exactly once."""
    found = np.concatenate([ids for ids, _ in parts])
    assert found.size == rows.size and np.array_equal(np.sort(found), np.sort(rows)), "rows were lost or duplicated"
    values = np.concatenate([v for _, v in parts])
    return values[np.argsort(found)][np.argsort(np.argsort(rows))]


def predict(recipe: RegressionRecipe, plan: Plan, rows: Ints, device: Device, batch_size: int) -> Floats:
    """Predictions `[N, K]` for `rows` of `plan.sources` in the targets' own units, computed by all ranks together.

    Call it on every rank; each gets the whole result. UserError naming an unreadable image: an evaluation replaces
    nothing and leaves nothing out.
    """
    own = share(rows, device.rank, device.world_size)
    paths, size = plan.sources["path"], recipe.preprocessing.size
    out = np.zeros((own.size, len(recipe.normaliser.genes)), np.float32)
    training = recipe.net.training
    recipe.net.eval()
    with torch.no_grad():
        for first in range(0, own.size, batch_size):
            batch = own[first : first + batch_size]
            if recipe.features is not None:
                features = _require_read(recipe.features[batch], [paths[int(i)].as_py() for i in batch])
                predicted = recipe.net.head(torch.from_numpy(features).to(device.torch_device))
            else:
                pixels = np.stack([_read(paths[int(i)].as_py(), size) for i in batch])
                predicted = recipe.net(recipe.inputs(torch.from_numpy(pixels).to(device.torch_device)))
            out[first : first + batch_size] = predicted.float().cpu().numpy()
    recipe.net.train(training)
    return recipe.normaliser.invert(join_parts(rows, device.gather_objects((own, out))))


def metrics(predicted: Floats, measured: Floats, config: EvalConfig) -> dict[str, float]:
    """Means over genes (and, if configured, over images) of `[N, K]` in the targets' own units, the mean squared error,
    and the number of genes without a correlation, which count as 0."""
    methods: tuple[Method, ...] = ("spearman", "pearson")
    of = {name: correlation(predicted, measured, name) for name in methods}
    out: dict[str, float] = {name: found.mean for name, found in of.items()}
    out |= {"mse": float(np.square(predicted - measured).mean()), "n_undefined": float(of["spearman"].n_undefined)}
    if config.samplewise:
        for name in methods:
            found = correlation(predicted, measured, name, samplewise=True)
            out |= {f"samplewise_{name}": found.mean, f"samplewise_{name}_undefined": float(found.n_undefined)}
    return out


def validator(plan: Plan, config: EvalConfig, device: Device) -> Validate:
    """The function that pathray.train.supervised calls: metrics of the validation rows. UserError when the split has
    fewer than two."""
    rows = rows_of(plan, "val")
    if rows.size < 2:
        raise UserError("too few rows to validate on", key="data.split", found=int(rows.size), expected="2 val rows")
    measured = targets(plan)[rows]

    def validate(state: TrainState) -> Mapping[str, float]:
        recipe = state.recipe
        assert isinstance(recipe, RegressionRecipe)
        return metrics(predict(recipe, plan, rows, device, config.batch_size), measured, config)

    return validate


@dataclass(frozen=True)
class Evaluation:
    """Rows `[N]` of a plan with predicted and measured values `[N, K]` in the targets' own units, and their places in
    the sections, if known."""

    rows: Ints
    names: Strings
    groups: Strings
    predicted: Floats
    measured: Floats
    genes: tuple[str, ...]
    places: Places | None = None
    unit: str = ""

    @classmethod
    def of(cls, plan: Plan, rows: Ints, predicted: Floats) -> Evaluation:
        names, groups = (np.array(plan.sources[key].to_pylist())[rows] for key in ("name", "group_id"))
        places, unit = places_in(plan.sources), plan.meta.get("unit", "")
        own = places.take(rows) if places is not None else None
        return cls(rows, names, groups, predicted, targets(plan)[rows], normaliser(plan).genes, own, unit)

    def intervals(self, method: Method, config: EvalConfig, seed: int) -> CorrelationIntervals | None:
        """Cluster bootstrap by group; None if there is only one group."""
        if np.unique(self.groups).size < 2:
            return None
        return bootstrap_correlation(
            self.predicted, self.measured, self.groups, method=method, resamples=config.resamples, seed=seed
        )

    def predictions(self) -> pa.Table:
        """One row per image: path, group_id, and `predicted_…` and `measured_…` per gene."""
        columns: dict[str, Any] = {"path": self.names, "group_id": self.groups}
        columns |= {f"predicted_{gene}": self.predicted[:, k] for k, gene in enumerate(self.genes)}
        columns |= {f"measured_{gene}": self.measured[:, k] for k, gene in enumerate(self.genes)}
        return pa.table(columns)

    def both_intervals(self, config: EvalConfig, seed: int) -> dict[Method, CorrelationIntervals | None]:
        methods: tuple[Method, ...] = ("spearman", "pearson")
        return {method: self.intervals(method, config, seed) for method in methods}

    def per_gene(self, intervals: Mapping[Method, CorrelationIntervals | None]) -> pa.Table:
        """One row per gene: both correlations with their intervals (empty if there is one group), whether they are
        undefined, and the root mean squared error."""
        error = np.sqrt(np.square(self.predicted - self.measured).mean(axis=0))
        columns: dict[str, Any] = {"gene": list(self.genes)}
        for method, between in intervals.items():
            found = correlation(self.predicted, self.measured, method)
            ends = [(i.low, i.high) for i in between.genes] if between else [(None, None)] * len(self.genes)
            columns |= {method: found.values, f"{method}_low": [a for a, _ in ends]}
            columns |= {f"{method}_high": [b for _, b in ends], "undefined": found.undefined}
        return pa.table(columns | {"rmse": error})


def write_csv(path: str, table: pa.Table) -> None:
    """Publish a small table as CSV."""
    from pyarrow import csv

    buffer = io.BytesIO()
    csv.write_csv(table, buffer)
    write_atomic(path, buffer.getvalue())


def write_parquet(path: str, table: pa.Table) -> None:
    """Publish a table as parquet."""
    write_atomic(path, to_bytes(table))


def _require_read(features: npt.NDArray[np.float32], paths: Sequence[str]) -> npt.NDArray[np.float32]:
    lost = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if lost.size:
        raise UserError("an image to be evaluated cannot be read", file=paths[int(lost[0])])
    return features


def _read(path: str, size: int) -> npt.NDArray[np.uint8]:
    try:
        return read_square(path, size)
    except UnreadableUnit as e:
        raise UserError("an image to be evaluated cannot be read", file=path, found=f"{e.reason} {e.detail}") from e
