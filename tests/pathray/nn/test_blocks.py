"""MLPs, LayerScale, stochastic depth and initialisation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pathray.nn.blocks import Block, DropPath, LayerScale, SwiGLU, init_transformer, layer_scale_init


@pytest.mark.parametrize(("dim", "width"), [(192, 512), (384, 1024), (768, 2048), (1024, 2736), (100, 272)])
def test_swiglu_has_two_thirds_of_the_hidden_width_in_eights(dim, width):
    mlp = SwiGLU(dim, 4 * dim)
    assert (int(4 * dim * 2 / 3) + 7) // 8 * 8 == width
    assert mlp.fc1.weight.shape == (2 * width, dim) and mlp.fc2.weight.shape == (dim, width)


def test_swiglu_is_its_formula():
    mlp = SwiGLU(6, 24)
    x = torch.randn(2, 5, 6)
    gate, value = mlp.fc1.weight.chunk(2), mlp.fc1.bias.chunk(2)
    expected = mlp.fc2(F.silu(x @ gate[0].T + value[0]) * (x @ gate[1].T + value[1]))
    torch.testing.assert_close(mlp(x), expected)


def test_stochastic_depth_drops_whole_samples_and_scales_the_others():
    drop = DropPath(0.25)
    x = torch.rand(4000, 3, 5) + 1
    out = drop(x)
    kept = (out != 0).flatten(1)
    assert torch.equal(kept.any(1), kept.all(1)), "part of a sample was dropped"
    rows = kept.all(1)
    torch.testing.assert_close(out[rows], x[rows] / 0.75)
    assert float(rows.float().mean()) == pytest.approx(0.75, abs=0.03)


def test_stochastic_depth_in_a_packed_sequence_drops_whole_segments():
    drop, lengths = DropPath(0.5), [3, 1, 4, 4, 7] * 40
    out = drop(torch.ones(1, sum(lengths), 2), lengths)
    seen = {0.0: 0, 2.0: 0}
    for segment in out[0].split(lengths):
        assert torch.unique(segment).numel() == 1
        seen[float(segment[0, 0])] += 1
    assert min(seen.values()) > 60


def test_a_block_drops_the_whole_residual_of_a_sample():
    block = Block(16, 2, drop_path=0.6)
    x = torch.randn(64, 5, 16)
    changed = (block(x) != x).flatten(1)
    assert 0 < int(changed.any(1).sum()) < 64
    assert torch.equal(changed.any(1), changed.float().mean(1) > 0.5)


def test_stochastic_depth_sleeps_in_evaluation_and_at_rate_zero():
    x = torch.randn(3, 4, 5)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0)(x) is x


def test_layer_scale_multiplies_and_its_start_falls_with_depth():
    scale = LayerScale(4, 0.1)
    torch.testing.assert_close(scale(torch.ones(2, 3, 4)), torch.full((2, 3, 4), 0.1))
    assert [layer_scale_init(d) for d in (12, 17, 18, 23, 24, 48)] == [0.1, 0.1, 1e-5, 1e-5, 1e-6, 1e-6]


def test_last_projections_start_smaller_the_deeper_they_are():
    blocks = [Block(192, 3) for _ in range(4)]
    init_transformer(nn.ModuleList(blocks), blocks)
    for number, block in enumerate(blocks, 1):
        assert float(block.attn.qkv.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
        assert float(block.mlp.fc1.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
        for last in (block.attn.proj, block.mlp.fc2):
            assert float(last.weight.detach().std()) == pytest.approx(0.02 / (2 * number) ** 0.5, rel=0.02)
            assert not last.bias.any()
