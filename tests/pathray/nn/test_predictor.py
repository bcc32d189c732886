"""The predictor knows places, not order; and the heads."""

from __future__ import annotations

import pytest
import torch

from pathray.nn.heads import LinearHead, ProjectionHead
from pathray.nn.predictor import TokenPredictor
from tests.builders.plain_vit import shake


def predictor(**options: object) -> TokenPredictor:
    torch.manual_seed(2)
    net = TokenPredictor(24, dim=32, depth=2, heads=2, **options).eval()
    shake(net)
    return net


@pytest.fixture
def case():
    return (
        torch.randn(2, 5, 24),
        torch.tensor([[0, 3, 7, 8, 11], [1, 2, 3, 4, 5]]),
        torch.tensor([[1, 2, 9], [7, 8, 0]]),
    )


@pytest.mark.parametrize("positions", ["sincos", "rope"])
def test_predictions_belong_to_places_and_not_to_the_order_of_tokens(case, positions):
    context, where, wanted = case
    net = predictor(positions=positions)
    out = net(context, where, wanted, (3, 4))
    assert out.shape == (2, 3, 24)
    shuffle = torch.tensor([4, 1, 0, 3, 2])
    torch.testing.assert_close(net(context[:, shuffle], where[:, shuffle], wanted, (3, 4)), out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(net(context, where, wanted.flip(1), (3, 4)), out.flip(1), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(net(context, where.flip(1), wanted, (3, 4)), out, atol=1e-3)
    assert not torch.allclose(out[:, 0], out[:, 1], atol=1e-3)


def test_predictions_of_visible_places_come_first_and_change_nothing_else(case):
    """Their own predictions, by the same projection: a visible token asked for as a target again is something else."""
    context, where, wanted = case
    net = predictor()
    both = net(context, where, wanted, (3, 4), visible_too=True)
    assert both.shape == (2, 8, 24) and torch.equal(both[:, 5:], net(context, where, wanted, (3, 4)))
    shuffle = torch.tensor([4, 1, 0, 3, 2])
    other = net(context[:, shuffle], where[:, shuffle], wanted, (3, 4), visible_too=True)
    torch.testing.assert_close(other[:, :5], both[:, shuffle], rtol=1e-5, atol=1e-5)


def test_samples_do_not_mix(case):
    net = predictor()
    alone = torch.cat([net(*(t[b : b + 1] for t in case), (3, 4)) for b in range(2)])
    torch.testing.assert_close(alone, net(*case, (3, 4)), rtol=1e-5, atol=1e-5)


def test_a_larger_grid_holds_places_outside_of_the_context(case):
    """A 3 x 4 context inside a 5 x 6 grid; rotary predictions depend on displacements only, so they are the same."""
    context, where, wanted = case
    net = predictor(positions="rope")
    shifted = [(t // 4 + 1) * 6 + t % 4 + 1 for t in (where, wanted)]
    torch.testing.assert_close(net(context, *shifted, (5, 6)), net(*case, (3, 4)), rtol=1e-5, atol=1e-5)
    assert torch.isfinite(net(context, shifted[0], torch.tensor([[0, 29], [5, 24]]), (5, 6))).all()


def test_volumes_other_widths_and_checkpointing_train(case):
    context, where, wanted = case
    plain = predictor(axes=3, out_dim=7).train()
    saving = predictor(axes=3, out_dim=7, checkpointing=True).train()
    for net in (plain, saving):
        out = net(context, where, wanted, (2, 2, 3))
        assert out.shape == (2, 3, 7)
        out.square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad) and a.grad.abs().sum() > 0, name


def test_no_value_decides_a_shape():
    net = TokenPredictor(24, dim=32, depth=1, heads=2).to("meta")
    index = torch.empty(2, 4, dtype=torch.int64, device="meta")
    assert net(torch.empty(2, 4, 24, device="meta"), index, index[:, :3], (3, 4)).shape == (2, 3, 24)


def test_the_projection_head_has_its_layers_and_no_norm_unless_asked():
    head = ProjectionHead([8, 16, 16, 4])
    assert [type(m).__name__ for m in head.layers] == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    weights = head.layers[0].weight.detach()
    assert float(weights.std()) == pytest.approx(0.02, rel=0.2) and not head.layers[0].bias.any()
    x = torch.randn(5, 8)
    expected = x
    for i in (0, 2, 4):
        expected = expected @ head.layers[i].weight.T + head.layers[i].bias
        expected = torch.nn.functional.gelu(expected) if i < 4 else expected
    torch.testing.assert_close(head(x), expected)


def test_batch_norm_in_a_head_is_over_all_tokens():
    head = ProjectionHead([6, 10, 3], norm="batch", activation="relu", last_bias=False)
    hidden = head.layers[1](torch.randn(4, 7, 6) @ head.layers[0].weight.T * 50)
    assert hidden.shape == (4, 7, 10)
    torch.testing.assert_close(hidden.flatten(0, 1).mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden.flatten(0, 1).var(0, unbiased=False), torch.ones(10), atol=1e-2, rtol=0)
    assert head.layers[0].bias is None and head.layers[3].bias is None
    assert head(torch.randn(4, 7, 6)).shape == (4, 7, 3) and LinearHead(6, 2)(torch.randn(4, 6)).shape == (4, 2)
