"""Predicts slides with a trained model, shared among workers by slide, and validates while it trains.

Each bag is predicted whole and alone. Not here: intervals and figures (mil.results), training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mil.data import BagReader
from mil.model.ensemble import SlideEnsemble
from mil.model.slide_model import SlideModel
from mil.plan import rows_of, target_of, truth_of
from mil.validation import scores_of
from pathray.data.plan import Plan
from pathray.device import Device
from pathray.features.inference import read_ahead
from pathray.train.state import TrainState

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
READ_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Predicted:
    """`values` `[N, K]`: probabilities of the classes, numbers in their own units or log-risks `[N, 1]`; embeddings
    `[N, E]`; of `rows` `[N]` of `plan.sources`."""

    rows: Ints
    values: Floats
    embeddings: npt.NDArray[np.float32]


def predict_slides(
    net: SlideModel | SlideEnsemble, reader: BagReader, rows: Ints, device: Device, threads: int
) -> Predicted:
    """Predictions of whole bags, by all ranks together. Call it on every rank, in evaluation mode. UnreadableUnit for a
    bag that cannot be read: an evaluation leaves nothing out."""
    whole = reader.whole()
    own = rows[device.rank :: device.world_size]
    values, embeddings = [], []

    def read(row: int) -> dict[str, Any]:
        return whole.collate([whole.read({"source": row}, 0, 0)])

    for batch in read_ahead(read, own.tolist(), threads=threads, timeout_s=READ_TIMEOUT_S):
        micro = device.to_device({name: batch[name] for name in ("features", "mask", "coords")})
        with torch.no_grad():
            found = net.predict(micro["features"].float(), None, micro["coords"])
        values.append(found.values[0].double().cpu().numpy())
        embeddings.append(found.embedding[0].float().cpu().numpy())
    part = (own, np.array(values), np.array(embeddings, np.float32))
    parts = [p for p in (device.gather_objects(part) if device.world_size > 1 else [part]) if p[0].size]
    seen = np.concatenate([p[0] for p in parts])
    order = np.argsort(seen)[np.argsort(np.argsort(rows))]
    return Predicted(rows, np.concatenate([p[1] for p in parts])[order], np.concatenate([p[2] for p in parts])[order])


def validator(plan: Plan, reader: BagReader, threads: int) -> Callable[[TrainState], Mapping[str, float]]:
    """The function that pathray.train.supervised calls."""
    rows, task = rows_of(plan, "val"), target_of(plan).task
    truth = truth_of(plan, rows)

    def validate(state: TrainState) -> Mapping[str, float]:
        net = state.recipe.modules["net"]
        assert isinstance(net, SlideModel)
        return scores_of(truth, predict_slides(net, reader, rows, state.device, threads).values, task)

    return validate
