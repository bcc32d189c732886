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
from mil.model.slide_model import SlideModel
from mil.plan import classes_of, rows_of, truth_of
from pathray.data.plan import Plan
from pathray.device import Device
from pathray.features.inference import read_ahead
from pathray.stats.scores import classification_scores, regression_scores
from pathray.train.state import TrainState

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
READ_TIMEOUT_S = 3600.0
LEAST = 1e-12  # probability, in the logarithm
CLASS_SCORES, NUMBER_SCORES = ("accuracy", "balanced_accuracy", "auc"), ("r2", "mae", "pearson")


@dataclass(frozen=True)
class Predicted:
    """`values` `[N, K]`: probabilities of the classes, or numbers in their own units `[N, 1]`; embeddings `[N, E]`; of
    `rows` `[N]` of `plan.sources`."""

    rows: Ints
    values: Floats
    embeddings: npt.NDArray[np.float32]


def predict_slides(net: SlideModel, reader: BagReader, rows: Ints, device: Device, threads: int) -> Predicted:
    """Predictions of whole bags, by all ranks together. Call it on every rank, in evaluation mode. UnreadableUnit for a
    bag that cannot be read: an evaluation leaves nothing out."""
    whole, head = reader.whole(), net.head
    assert head is not None
    own = rows[device.rank :: device.world_size]
    values, embeddings = [], []

    def read(row: int) -> dict[str, Any]:
        return whole.collate([whole.read({"source": row}, 0, 0)])

    for batch in read_ahead(read, own.tolist(), threads=threads, timeout_s=READ_TIMEOUT_S):
        micro = device.to_device({name: batch[name] for name in ("features", "mask", "coords")})
        with torch.no_grad():
            out = net(micro["features"].float(), None, micro["coords"])
        values.append([float(value) for value in head.predict(out.logits).values()])
        embeddings.append(out.slide_embedding.float().cpu().numpy()[0])
    part = (own, np.array(values).reshape(len(own), -1), np.array(embeddings, np.float32).reshape(len(own), -1))
    parts = [p for p in (device.gather_objects(part) if device.world_size > 1 else [part]) if p[0].size]
    found = np.concatenate([p[0] for p in parts])
    order = np.argsort(found)[np.argsort(np.argsort(rows))]
    return Predicted(rows, np.concatenate([p[1] for p in parts])[order], np.concatenate([p[2] for p in parts])[order])


def scores_of(truth: Floats, values: Floats, classes: int) -> dict[str, float]:
    """What a validation reports, without intervals: `loss` (log-loss, or squared error) and scores; NaN: undefined."""
    if not np.isfinite(values).all():  # a model that has diverged: no validation is worse
        return {"loss": float("nan"), **dict.fromkeys(CLASS_SCORES if classes else NUMBER_SCORES, float("nan"))}
    ones = np.ones((1, len(truth)))
    if not classes:
        found = {name: float(score(ones)[0]) for name, score in regression_scores(truth, values[:, 0]).items()}
        return {"loss": float(np.square(truth - values[:, 0]).mean()), **found}
    number = truth.astype(np.int64)
    chosen = values[np.arange(len(number)), number]
    scores = classification_scores(number, values)
    loss = float(-np.log(np.maximum(chosen, LEAST)).mean())
    return {"loss": loss, **{name: float(score(ones)[0]) for name, score in scores.items()}}


def validator(plan: Plan, reader: BagReader, threads: int) -> Callable[[TrainState], Mapping[str, float]]:
    """The function that pathray.train.supervised calls."""
    rows = rows_of(plan, "val")
    truth, classes = truth_of(plan, rows), len(classes_of(plan))

    def validate(state: TrainState) -> Mapping[str, float]:
        net = state.recipe.modules["net"]
        assert isinstance(net, SlideModel)
        return scores_of(truth, predict_slides(net, reader, rows, state.device, threads).values, classes)

    return validate
