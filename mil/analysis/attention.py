"""The attention of a slide's tiles, raw and as percentiles, with the prediction that it belongs to.

Not here: tiles' places (.places), pictures (.heatmap).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mil.artifact import Trained
from mil.judging.predictions import NUMBER, PROBABILITY
from mil.model.slide_model import SlideModel
from mil.store.reading import Store
from pathray.errors import UserError
from pathray.stats.correlation import ranks

Floats = npt.NDArray[np.float64]
EVEN = 0.9  # spread, above which a map says little
MEAN, ONLY = "mean of heads", "attention"
TOLERANCE = 1e-4  # of a value: devices round differently, other features or weights differ by far more


@dataclass(frozen=True)
class Attention:
    """`weights` and `logits` `[M, N]` of N tiles under M `names`; what the model says, by the names of
    mil.judging.predictions; the embedding `[E]`."""

    names: tuple[str, ...]
    weights: Floats
    logits: Floats
    values: Mapping[str, float]
    embedding: Floats

    @property
    def percentiles(self) -> Floats:
        """`[M, N]`: 0 for the least, 100 for the most attended tile, ties in the middle; 50 where all are equal."""
        n = self.weights.shape[1]
        if n == 1:
            return np.full(self.weights.shape, 50.0)
        return np.asarray(100 * (ranks(self.weights) - 1) / (n - 1), np.float64)

    def spread(self, row: int) -> float:
        """The share of tiles that a row's attention is spread over, exp(entropy) / N: 1 where all weigh alike."""
        p = self.weights[row] / max(float(self.weights[row].sum()), 1e-300)
        entropy = -float((p * np.log(np.maximum(p, 1e-300))).sum())
        return float(np.exp(entropy) / p.size)


def attend_slide(trained: Trained, store: Store, slide: int) -> Attention:
    """One forward pass over a slide's whole bag, as predictions are made. Several heads without classes become their
    mean, first, and each. UserError for a model without attention, and attention that is not finite."""
    import torch

    net = trained.net
    assert isinstance(net, SlideModel) and net.head is not None, "a split's model is one with a head"
    if not net.attention_names:
        raise UserError("the model has no attention", key="model", found=trained.description["model"]["name"])
    features, places = np.array(store.features(slide), np.float32), store.positions(slide)
    coords = np.full((len(features), 2), np.nan, np.float32) if places is None else places
    with torch.no_grad():
        out = net(torch.from_numpy(features)[None], None, torch.from_numpy(coords)[None], return_attention=True)
        values = {name: float(value) for name, value in net.head.predict(out.logits).items()}
    weights, logits = (out.extras[f"attention_{kind}"][0].double().numpy() for kind in ("probs", "logits"))
    if not (np.isfinite(weights).all() and np.isfinite(logits).all()):
        raise UserError("the attention is not finite", key=store.ids[slide], expected="a model that has not diverged")
    names = net.attention_names
    if len(names) > 1 and names[0] == "head_0":
        weights, logits = (np.concatenate([x.mean(axis=0, keepdims=True), x]) for x in (weights, logits))
        names = (MEAN, *names)
    elif len(names) == 1:
        names = (ONLY,)
    return Attention(names, weights, logits, _renamed(values), out.slide_embedding[0].double().numpy())


def check_same(found: Mapping[str, float], expected: Mapping[str, float], slide_id: str) -> float:
    """The largest difference to what the training's table says. UserError if it is more than rounding: then features or
    weights are not those of the table, and a picture of them would explain another prediction."""
    far = {name: abs(found[name] - value) / max(1.0, abs(value)) for name, value in expected.items() if name in found}
    if not far:
        raise UserError("no common column", key=slide_id, found=list(found), expected=list(expected))
    worst = max(far, key=lambda name: far[name])
    if far[worst] > TOLERANCE:
        message = "the model now says something else than its table: features or weights have changed"
        raise UserError(message, key=slide_id, found=f"{worst} {found[worst]:.6f}", expected=f"{expected[worst]:.6f}")
    return far[worst]


def _renamed(values: dict[str, float]) -> dict[str, float]:
    """A regression's value is named after its label by the head, and `predicted` in tables."""
    if len(values) == 1 and not next(iter(values)).startswith(PROBABILITY) and "risk" not in values:
        return {NUMBER: next(iter(values.values()))}
    return values
