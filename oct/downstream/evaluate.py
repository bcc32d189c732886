"""Predicts units with a fine-tuned network, shared among workers by volume, and validates while it trains.

A unit's prediction is the mean over its eyes, and over the scans of an eye, of the volumes' probabilities or numbers.
A volume that cannot be read is left out of its unit. Not here: intervals (pathray.stats.scores).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oct.downstream.data import LabelledReader
from oct.downstream.plan import classes_of, scale_of, volumes_of
from oct.downstream.recipe import FinetuneRecipe
from pathray.data.plan import Plan
from pathray.device import Device
from pathray.errors import UnreadableUnit
from pathray.features.inference import read_ahead
from pathray.stats.scores import classification_scores, regression_scores
from pathray.store.outages import read_through_outages
from pathray.train.state import TrainState

log = logging.getLogger(__name__)
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Predict = Callable[[Tensor, Tensor], Tensor]
READ_TIMEOUT_S = 3600.0


def predict_volumes(
    predict: Predict, reader: LabelledReader, plan: Plan, rows: Ints, device: Device, *, batch: int, threads: int
) -> Floats:
    """`[N, K]` probabilities, or `[N, 1]` numbers in their own units, of rows of `plan.sources`, by all ranks together;
    NaN for a volume that cannot be read. Call it on every rank, in evaluation mode."""
    classes, (mean, std) = len(classes_of(plan)), scale_of(plan)
    own = rows[device.rank :: device.world_size]
    out = np.full((own.size, classes or 1), np.nan)
    for places, units in _batches(reader, own, batch, threads):
        placed = device.to_device({name: np.stack([unit[name] for unit in units]) for name in ("image", "inside")})
        with torch.no_grad():
            z = predict(placed["image"], placed["inside"]).double().cpu()
        out[places] = (z.softmax(dim=1) if classes else z * std + mean).numpy()
    parts = device.gather_objects((own, out)) if device.world_size > 1 else [(own, out)]
    found = np.concatenate([ids for ids, _ in parts])
    values: Floats = np.concatenate([v for _, v in parts])[np.argsort(found)][np.argsort(np.argsort(rows))]
    return values


def _batches(
    reader: LabelledReader, rows: Ints, size: int, threads: int
) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
    """(places among `rows`, volumes) of those that can be read, `size` at once; read ahead by threads."""

    def read(row: int) -> dict[str, Any] | None:
        try:
            return read_through_outages(lambda: reader.read({"source": row}, 0, 0), "the storage of volumes")
        except UnreadableUnit as e:
            log.warning("left out: %s", e)
            return None

    places, units = list[int](), list[dict[str, Any]]()
    for place, unit in enumerate(read_ahead(read, rows.tolist(), threads=threads, timeout_s=READ_TIMEOUT_S)):
        if unit is None:
            continue
        places, units = [*places, place], [*units, unit]
        if len(units) == size:
            yield places, units
            places, units = [], []
    if units:
        yield places, units


def pool_units(values: Floats, units: Ints, eyes: Sequence[str]) -> tuple[Ints, Floats]:
    """(units that have a prediction, sorted, their predictions `[M, K]`) of volumes `[N, K]`: the mean over eyes of the
    mean over an eye's scans, of those that are not NaN."""
    known = np.flatnonzero(np.isfinite(values).all(axis=1))
    sums: dict[int, dict[str, list[int]]] = {}
    for i in known.tolist():
        sums.setdefault(int(units[i]), {}).setdefault(eyes[i], []).append(i)
    names = sorted(sums)
    pooled = [np.mean([values[scans].mean(axis=0) for scans in sums[unit].values()], axis=0) for unit in names]
    return np.array(names, np.int64), np.array(pooled).reshape(len(names), values.shape[1])


def predict_units(
    predict: Predict, reader: LabelledReader, plan: Plan, part: str, device: Device, *, batch: int, threads: int
) -> tuple[Ints, Floats]:
    """(units of a part, predictions `[M, K]` or `[M, 1]`), of those with a readable volume."""
    rows = volumes_of(plan, part)
    values = predict_volumes(predict, reader, plan, rows, device, batch=batch, threads=threads)
    table = plan.sources.take(rows)
    return pool_units(values, table["unit"].to_numpy(), [str(eye) for eye in table["laterality"].to_pylist()])


def validator(
    plan: Plan, reader: LabelledReader, batch: int, threads: int
) -> Callable[[TrainState], Mapping[str, float]]:
    """The function that pathray.train.supervised calls: scores of the validation units, without intervals."""
    truth = dict(zip(plan.sources["unit"].to_pylist(), plan.sources["truth"].to_pylist(), strict=True))
    centred, classes = reader.without_crops(), classes_of(plan)

    def validate(state: TrainState) -> Mapping[str, float]:
        recipe = state.recipe
        assert isinstance(recipe, FinetuneRecipe)
        units, values = predict_units(recipe.predict, centred, plan, "val", state.device, batch=batch, threads=threads)
        own = np.array([truth[unit] for unit in units.tolist()])
        scores = (
            classification_scores(own.astype(np.int64), values) if classes else regression_scores(own, values[:, 0])
        )
        return {name: float(score(np.ones((1, len(own))))[0]) for name, score in scores.items()}

    return validate
