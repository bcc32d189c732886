"""The regulariser of a recipe: its weight, kinds of embeddings, directions. Of several ranks: test_exactness.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pathray.config.sections import RegulariserConfig
from pathray.errors import UserError
from pathray.nn.regularise import covariance_term, sigreg, variance_term
from pathray.train import regulariser as module
from pathray.train.regulariser import Regulariser


def batch(seed: int, rows: int = 12, dim: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, dim)))


def regulariser(kind: str, **changes: object) -> Regulariser:
    return Regulariser(RegulariserConfig(kind, **changes), seed=7, micro_key="optimization.micro_batch")  # type: ignore[arg-type]


def test_vicreg_is_the_weighted_mean_over_the_kinds_of_embeddings() -> None:
    kinds = [batch(1), 0.1 * batch(2)]
    expected = 0.3 * np.mean([float(variance_term(x)) + float(covariance_term(x)) / 25 for x in kinds])
    found = regulariser("vicreg", regulariser_weight=0.3)(kinds, step=0, global_batch=12)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_sigreg_draws_directions_that_seed_and_step_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def keep(x: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        drawn.append(directions)
        return sigreg(x, directions)

    monkeypatch.setattr(module, "sigreg", keep)
    term = regulariser("sigreg", regulariser_directions=9)
    first, again, other = (term([batch(1), batch(2)], step, 12) for step in (3, 3, 4))
    assert all(d.shape == (5, 9) for d in drawn) and torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[4]) and torch.equal(first, again) and not torch.equal(first, other)
    expected = 0.05 * (sigreg(batch(1), drawn[0]) + sigreg(batch(2), drawn[0])) / 2
    assert float(first) == pytest.approx(float(expected), rel=1e-12)


def test_half_precision_is_computed_in_float32() -> None:
    x = batch(1).to(torch.bfloat16)
    assert regulariser("vicreg")([x], 0, 12).dtype == torch.float32


@pytest.mark.parametrize("kind", ["vicreg", "sigreg"])
def test_a_part_of_the_global_batch_is_refused_with_the_key(kind: str) -> None:
    with pytest.raises(UserError, match="needs the whole global batch at once") as e:
        regulariser(kind)([batch(1)], step=0, global_batch=24)
    assert e.value.where["key"] == "optimization.micro_batch" and "12 images at a time" in str(e.value)
    assert f"model.regulariser={kind}" in str(e.value) and "workers x micro_batch = global_batch" in str(e.value)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"regulariser": "sig"}, "model.regulariser"),
        ({"regulariser": "sigreg", "regulariser_weight": 0.0}, "model.regulariser_weight"),
        ({"regulariser": "sigreg", "regulariser_directions": 0}, "model.regulariser_directions"),
        ({"regulariser_weight": 0.1}, "model.regulariser_weight"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object], key: str) -> None:
    config = RegulariserConfig(**changes)  # type: ignore[arg-type]
    with pytest.raises(UserError) as e:
        config.check_regulariser("model")
    assert e.value.where["key"] == key
