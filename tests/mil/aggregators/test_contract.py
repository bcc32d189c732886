"""The one contract that every registered aggregator keeps, on small widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mil.aggregators import Aggregator, aggregator_names, build_aggregator
from mil.aggregators.base import PER_INSTANCE
from pathray.errors import UserError

D, E, N, C = 12, 16, 37, 3
SMALL: dict[str, dict[str, Any]] = {
    "transmil": {"heads": 2, "landmarks": 8},
    "perceiver": {"latents": 4, "layers": 2, "heads": 2},
    "bimamba2": {"state": 8, "head_dim": 8, "chunk": 8},
    "vit_alibi": {"layers": 2, "heads": 2},
    "multihead_abmil": {"heads": 3},
    "dtfd": {"classes": C, "pseudo_bags": 4},
} | {name: {"classes": C} for name in ("clam_sb", "clam_mb", "dsmil")}
NAMES = aggregator_names()
ATTENTIVE = [name for name in NAMES if name != "static"]
every = pytest.mark.parametrize("name", NAMES)


def small(name: str, **more: Any) -> Aggregator:
    torch.manual_seed(3)
    return build_aggregator(name, D, embed_dim=E, dropout=0.0, **SMALL.get(name, {}), **more).eval()


def bag(length: int = N, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, coords = torch.randn(1, length, D, generator=g), 5000 * torch.rand(1, length, 2, generator=g)
    return x, torch.ones(1, length, dtype=torch.bool), coords


def padded(bags: list[tuple[Tensor, Tensor, Tensor]], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bags of several lengths in one batch; padding is NaN."""
    x, coords = torch.full((len(bags), length, D), torch.nan), torch.full((len(bags), length, 2), torch.nan)
    mask = torch.zeros(len(bags), length, dtype=torch.bool)
    for i, (own, _, at) in enumerate(bags):
        x[i, : own.shape[1]], coords[i, : own.shape[1]], mask[i, : own.shape[1]] = own[0], at[0], True
    return x, mask, coords


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


class OnAccelerator(nn.Module):
    """The path that batches with padding take where a mask cannot be looked at."""

    def __init__(self, model: Aggregator) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, mask: Tensor, coords: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        out = self.model._masked(x, mask, coords if self.model.uses_coords else None, self.model.attention_rows > 0)
        return out.embedding, out.extras


@every
def test_neither_padding_nor_the_rest_of_the_batch_changes_an_embedding(name: str) -> None:
    model, bags = small(name), [bag(37, 1), bag(5, 2), bag(1, 3), bag(20, 4)]
    alone = torch.cat([model.forward_features(*b).embedding for b in bags])
    assert alone.shape == (4, E) and bool(alone.isfinite().all())
    close(model.forward_features(*padded(bags, 37)).embedding, alone)
    close(model.forward_features(*padded(bags, 61)).embedding, alone)
    close(model.forward_features(*padded(bags[::-1], 37)).embedding, alone.flip(0))


@every
def test_a_mask_that_cannot_be_looked_at_gives_the_same(name: str) -> None:
    model, bags = small(name), [bag(37, 1), bag(5, 2), bag(1, 3), bag(20, 4)]
    x, mask, coords = padded(bags, 50)
    wanted = model.forward_features(x, mask, coords, return_attention=True)
    embedding, extras = OnAccelerator(model)(x, mask, coords)
    close(embedding, wanted.embedding)
    for key in PER_INSTANCE.keys() & extras.keys():
        close(extras[key], wanted.extras[key])


@every
def test_a_padded_batch_trains_with_the_gradients_of_its_bags_on_both_paths(name: str) -> None:
    model, bags = small(name), [bag(30, 1), bag(9, 2)]
    x, mask, coords = padded(bags, 33)
    runs = [
        lambda: torch.cat([model.forward_features(*b).embedding for b in bags]),
        lambda: model.forward_features(x, mask, coords).embedding,
        lambda: OnAccelerator(model)(x, mask, coords)[0],
    ]
    wanted, *others = [gradients(model, run().square().sum()) for run in runs]
    for found in others:
        assert found.keys() == wanted.keys()
        for key, grad in wanted.items():
            torch.testing.assert_close(found[key], grad, atol=1e-4, rtol=1e-3, msg=lambda m, key=key: f"{key}: {m}")


@every
def test_masked_instances_within_a_bag_do_not_count(name: str) -> None:
    model = small(name)
    x, mask, coords = bag()
    mask[0, ::3] = False
    kept = mask[0]
    wanted = model.forward_features(x[:, kept], mask[:, kept], coords[:, kept], return_attention=True)
    x[0, ::3] = torch.nan
    found = model.forward_features(x, mask, coords, return_attention=True)
    close(found.embedding, wanted.embedding)
    if model.attention_rows:
        close(found.extras["attention_probs"][:, :, kept], wanted.extras["attention_probs"])
        assert not found.extras["attention_probs"][:, :, ~kept].any()
    close(OnAccelerator(model)(x, mask, coords)[0], wanted.embedding)


@every
def test_bool_float_and_no_mask_are_the_same(name: str) -> None:
    model = small(name)
    x, mask, coords = bag()
    wanted = model.forward_features(x, None, coords).embedding
    assert torch.equal(model.forward_features(x, mask, coords).embedding, wanted)
    x, mask, coords = padded([bag(20, 1), bag(9, 2)], 25)
    wanted = model.forward_features(x, mask, coords).embedding
    assert torch.equal(model.forward_features(x, mask.float(), coords).embedding, wanted)


@every
def test_order_matters_exactly_where_the_model_says_so(name: str) -> None:
    model = small(name)
    x, mask, coords = bag()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    before = model.forward_features(x, mask, coords).embedding
    after = model.forward_features(x[:, order], mask, coords[:, order]).embedding
    if model.permutes:
        close(after, before)
    else:
        assert (after - before).abs().max() > 1e-3


@every
def test_coords_change_the_models_that_use_them_and_no_other(name: str) -> None:
    model = small(name)
    x, mask, coords = bag()
    before = model.forward_features(x, mask, coords).embedding
    moved = coords.clone()
    moved[0, 0] += 800.0
    after = model.forward_features(x, mask, moved).embedding
    assert torch.equal(after, before) != model.uses_coords
    if model.uses_coords:
        with pytest.raises(UserError, match="needs coords"):
            model.forward_features(x, mask)
    else:
        assert torch.equal(model.forward_features(x, mask).embedding, before)


@every
def test_an_empty_bag_is_named(name: str) -> None:
    model = small(name)
    x, mask, coords = padded([bag(9, 1), bag(5, 2), bag(7, 3)], 9)
    mask[1] = False
    with pytest.raises(UserError, match=r"no real instance \(row: 1"):
        model.forward_features(x, mask, coords)
    embedding = OnAccelerator(model)(x, mask, coords)[0]
    assert not embedding[1].isfinite().all() and bool(embedding[[0, 2]].isfinite().all())


@every
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    model = small(name).train()
    x, mask, coords = padded([bag(30, 1), bag(9, 2), bag(20, 3)], 33)
    out = model.forward_features(x, mask, coords)
    logits = out.extras.get("logits", out.embedding)
    loss = out.embedding.square().sum() + logits.square().sum()
    auxiliary = model.auxiliary_loss(out.extras, torch.tensor([0, 2, 1]))
    if auxiliary is not None:
        loss = loss + auxiliary[0] / auxiliary[1]
    grads = gradients(model, loss)
    assert grads.keys() == {key for key, _ in model.named_parameters()}
    assert all(bool(grad.isfinite().all()) for grad in grads.values())
    silent = {key for key, grad in grads.items() if not grad.any()}
    assert all(key.endswith("score.bias") for key in silent), silent  # a softmax does not see it


@pytest.mark.parametrize("name", ATTENTIVE)
def test_attention_has_its_shape_and_sums_to_one_over_real_instances(name: str) -> None:
    model = small(name)
    x, mask, coords = padded([bag(30, 1), bag(9, 2)], 33)
    extras = model.forward_features(x, mask, coords, return_attention=True).extras
    rows = model.attention_rows
    assert rows == (C if model.attends_by_class else rows) > 0
    logits, weights = extras["attention_logits"], extras["attention_probs"]
    assert logits.shape == weights.shape == (2, rows, 33)
    close(weights.sum(dim=2), torch.ones(2, rows))
    assert not weights.masked_select(~mask[:, None]).any() and bool((weights >= 0).all())
    assert bool(logits.masked_select(mask[:, None]).isfinite().all())
    assert bool((logits.masked_select(~mask[:, None]) == -torch.inf).all())
    close(logits.softmax(dim=2), weights)


def test_attention_logits_are_never_clamped() -> None:
    model = small("abmil")
    nn.init.constant_(model.get_parameter("attention.score.bias"), 5000.0)
    extras = model.forward_features(*bag(), return_attention=True).extras
    assert extras["attention_logits"].max() > 4000


@every
def test_autocast_keeps_softmaxes_in_float32_and_results_close(name: str) -> None:
    model = small(name)
    x, mask, coords = padded([bag(30, 1), bag(9, 2)], 33)
    wanted = model.forward_features(x, mask, coords).embedding
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.forward_features(x, mask, coords, return_attention=True)
        half = model.forward_features(x.bfloat16(), mask, coords).embedding
    if model.attention_rows:
        assert found.extras["attention_probs"].dtype == torch.float32
    scale = wanted.std()
    assert bool(half.isfinite().all()) and (found.embedding.float() - wanted).abs().max() < 0.15 * scale.clamp(min=0.3)


@every
def test_a_saved_model_loads_to_the_same_bits(name: str, tmp_path: Path) -> None:
    model = small(name)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    torch.manual_seed(99)
    other = build_aggregator(name, D, embed_dim=E, dropout=0.0, **SMALL.get(name, {})).eval()
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(other.forward_features(*bag()).embedding, model.forward_features(*bag()).embedding)


@every
def test_checkpointing_changes_no_gradient(name: str) -> None:
    x, mask, coords = bag()
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        model = build_aggregator(name, D, embed_dim=E, checkpointing=checkpointing, **SMALL.get(name, {})).train()
        torch.manual_seed(7)
        out = model.forward_features(x, mask, coords)
        found.append(gradients(model, out.embedding.square().sum()))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@every
def test_training_draws_from_torchs_generator_alone(name: str) -> None:
    model = build_aggregator(name, D, embed_dim=E, fc_layers=2, **SMALL.get(name, {})).train()
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(model.forward_features(*bag()).embedding)
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@every
def test_features_of_another_width_are_named(name: str) -> None:
    with pytest.raises(UserError, match=r"\[B, N, 12\]"):
        small(name).forward_features(torch.zeros(1, 4, D + 1), torch.ones(1, 4), torch.zeros(1, 4, 2))


@pytest.mark.heavy
@every
def test_an_export_takes_any_number_of_bags_and_instances(name: str) -> None:
    model = small(name)
    x, mask, coords = padded([bag(40, 1), bag(9, 2), bag(21, 3)], 40)
    B, many = torch.export.Dim("B"), torch.export.Dim("N")
    shapes = ({0: B, 1: many},) * 3
    exported = torch.export.export(OnAccelerator(model), (x, mask, coords), dynamic_shapes=shapes).module()
    for length in (1, 2, 3, 16, 17, 64, 65, 255, 256, 257):
        x, mask, coords = padded([bag(length, 5), bag((length + 1) // 2, 6)], length)
        close(exported(x, mask, coords)[0], model.forward_features(x, mask, coords).embedding)


def test_an_unknown_name_or_argument_says_what_is_near() -> None:
    with pytest.raises(UserError, match="did you mean 'transmil'"):
        build_aggregator("transmill", D)
    with pytest.raises(UserError, match="did you mean 'attention_dim'"):
        build_aggregator("abmil", D, attention_dims=3)


def gradients(model: Aggregator, loss: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {key: grad for key, grad in zip(named, grads, strict=True) if grad is not None}


def test_positions_are_sides_of_a_tile_that_distant_tiles_feel():
    """In µm a neighbour would be 256 away: a bias that counts in other units would leave no trace of distance."""
    torch.manual_seed(0)
    model = build_aggregator("vit_alibi", 8, embed_dim=16, layers=2, heads=2).eval()
    x, coords = torch.randn(1, 12, 8), torch.rand(1, 12, 2) * 4
    near, far = (model.forward_features(x, coords=coords * scale).embedding for scale in (1.0, 8.0))
    assert float((near - far).detach().abs().max()) > 1e-3
