"""The regulariser of a recipe: its weight, kinds of embeddings, directions. Of several ranks: test_exactness.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pathray.config.sections import RegulariserConfig
from pathray.errors import UserError
from pathray.fingerprint import fingerprint, flatten
from pathray.nn.regularise import covariance_term, sigreg, variance_term
from pathray.train import regulariser as module
from pathray.train.regulariser import Regulariser


def batch(seed: int, rows: int = 12, dim: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, dim)))


VIEWS = [batch(1), batch(1) + 0.1 * batch(2), 0.3 * batch(3)]


def regulariser(kind: str, **changes: object) -> Regulariser:
    config = RegulariserConfig(kind, projection_dim=6, **changes)  # type: ignore[arg-type]
    return Regulariser(config, 5, seed=7, micro_key="optimization.micro_batch").double()


def embeddings(term: Regulariser) -> list[torch.Tensor]:
    """By hand, of all views: one batch norm over views and samples together."""
    first, norm, act, last = term.head.layers
    x = torch.cat(VIEWS) @ first.weight.T
    x = (x - x.mean(dim=0)) / (x.var(dim=0, correction=0) + norm.eps).sqrt()
    return list((act(x) @ last.weight.T + last.bias).split(len(VIEWS[0])))


def test_vicreg_is_the_weighted_mean_over_views_and_their_distance() -> None:
    term = regulariser("vicreg", regulariser_weight=0.3, invariance_weight=2.0)
    z = embeddings(term)
    spread = torch.stack([variance_term(x) + covariance_term(x) / 25 for x in z]).mean()
    middle = sum(z) / 3
    apart = torch.stack([(x - middle).square().mean() for x in z]).mean()
    found, terms = term(VIEWS, step=0, global_batch=12)
    assert float(found.detach()) == pytest.approx(float((0.3 * spread + 2 * apart).detach()), rel=1e-9)
    assert float(terms["loss_spread"]) == pytest.approx(float(spread.detach()), rel=1e-9)
    assert float(terms["loss_invariance"]) == pytest.approx(float(apart.detach()), rel=1e-9)


def test_sigreg_draws_directions_that_seed_and_step_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def keep(x: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        drawn.append(directions)
        return sigreg(x, directions)

    monkeypatch.setattr(module, "sigreg", keep)
    term = regulariser("sigreg", regulariser_directions=9, invariance_weight=0.0)
    first, again, other = (term(VIEWS, step, 12)[0] for step in (3, 3, 4))
    assert all(d.shape == (6, 9) for d in drawn) and len(drawn) == 9
    assert all(torch.equal(d, drawn[0]) for d in drawn[:6]) and not torch.equal(drawn[0], drawn[6])
    assert torch.equal(first, again) and not torch.equal(first, other)
    expected = 0.05 * torch.stack([sigreg(z, drawn[0].double()) for z in embeddings(term)]).mean()
    assert float(first.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)


@pytest.mark.parametrize("kind", ["vicreg", "sigreg"])
def test_descent_opens_collapsed_features_and_keeps_views_of_a_sample_together(kind: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder, term = torch.nn.Linear(5, 5), regulariser(kind, regulariser_weight=1.0).float()
    torch.nn.init.constant_(encoder.weight, 0.2)
    x = batch(4, rows=64).float()
    seen = [x + 0.05 * batch(s, rows=64).float() for s in (5, 6)]
    optimizer = torch.optim.Adam([*encoder.parameters(), *term.parameters()], lr=1e-2)
    values = []
    for step in range(80):
        loss, terms = term([encoder(v) for v in seen], step, 64)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append({name: float(value) for name, value in terms.items()})
    assert values[-1]["loss_spread"] < 0.5 * values[0]["loss_spread"] and values[-1]["loss_invariance"] < 0.1


def test_half_precision_is_computed_in_float32_also_under_autocast() -> None:
    views = [x.to(torch.bfloat16) for x in VIEWS]
    term = regulariser("sigreg").float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = term(views, 0, 12)[0]
    assert found.dtype == torch.float32 and torch.equal(found, term(views, 0, 12)[0])


@pytest.mark.parametrize("kind", ["vicreg", "sigreg"])
def test_a_part_of_the_global_batch_is_refused_with_the_key(kind: str) -> None:
    with pytest.raises(UserError, match="needs the whole global batch at once") as e:
        regulariser(kind)(VIEWS, step=0, global_batch=24)
    assert e.value.where["key"] == "optimization.micro_batch" and "12 images at a time" in str(e.value)
    assert f"model.regulariser={kind}" in str(e.value) and "workers x micro_batch = global_batch" in str(e.value)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"regulariser": "sig"}, "model.regulariser"),
        ({"regulariser": "sigreg", "regulariser_weight": 0.0}, "model.regulariser_weight"),
        ({"regulariser": "sigreg", "regulariser_directions": 0}, "model.regulariser_directions"),
        ({"regulariser": "vicreg", "invariance_weight": -1.0}, "model.invariance_weight"),
        ({"regulariser": "vicreg", "projection_dim": 0}, "model.projection_dim"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object], key: str) -> None:
    config = RegulariserConfig(**changes)  # type: ignore[arg-type]
    with pytest.raises(UserError) as e:
        config.check_regulariser("model")
    assert e.value.where["key"] == key


def test_a_single_image_has_no_statistics() -> None:
    with pytest.raises(UserError, match="model.regulariser=sigreg compares images"):
        regulariser("sigreg")([x[:1] for x in VIEWS], step=0, global_batch=1)


def test_settings_of_a_regulariser_belong_to_a_runs_identity_while_there_is_one() -> None:
    idle = RegulariserConfig(regulariser_weight=0.1, projection_dim=8)
    assert fingerprint(idle)["values"] == {} and flatten(idle)["projection_dim"] == (8, False)
    assert fingerprint(RegulariserConfig("sigreg"))["values"] == {
        "regulariser": "sigreg", "regulariser_weight": None, "regulariser_directions": 256, "invariance_weight": 1,
        "projection_dim": 64,
    }  # fmt: skip


def test_the_projection_is_linear_without_a_hidden_layer_and_older_runs_have_the_hidden_one() -> None:
    values = fingerprint(RegulariserConfig("sigreg"))["values"]
    assert "projection_hidden" not in values, "runs from before that key resume"
    linear = RegulariserConfig("sigreg", projection_hidden=0, projection_dim=6)
    assert fingerprint(linear)["values"]["projection_hidden"] == 0
    head = Regulariser(linear, 8, seed=0, micro_key="micro_batch").head
    a, b = torch.randn(5, 8), torch.randn(5, 8)
    torch.testing.assert_close(head(a) + head(b), head(a + b) + head(torch.zeros(5, 8)))
