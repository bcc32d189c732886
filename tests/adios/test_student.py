"""The student: packed crops equal crops one by one, and the shapes, widths and starting values that are published."""

import numpy as np
import pytest
import torch

from adios.config import RunConfig, StudentConfig
from adios.student import Student, build_student, student_config
from pathray.errors import UserError
from pathray.nn.blocks import SwiGLU
from pathray.nn.vit import ViTConfig
from tests.builders.runs.adios_run import config


def student(**changes: object) -> Student:
    options = {"img_size": (32, 32), "patch_size": (8, 8), "dim": 32, "depth": 3, "heads": 2, "registers": 4}
    torch.manual_seed(0)
    return Student(ViTConfig(**{**options, "cls_token": True, "mlp": "swiglu", "layer_scale": 0.1, **changes}), (16, 8))


@pytest.mark.parametrize("positions", ["learned", "sincos", "rope"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_packed_crops_equal_crops_one_by_one_forward_and_backward(positions, seed):
    net, g = student(positions=positions), np.random.default_rng(seed)
    sizes = [(8 * int(g.integers(1, 6)), 8 * int(g.integers(1, 6))) for _ in range(int(g.integers(2, 6)))]
    batches = [torch.randn(int(g.integers(1, 4)), 3, *size) for size in sizes]
    results = []
    for lists in ([net.tokens(batches)], [net.tokens([b])[0] for b in batches]):
        tokens = lists[0] if len(lists) == 1 else lists
        z = net.embed(torch.cat([t.cls for t in tokens]))
        loss = (z[:, 0] ** 2).sum() + sum((t.patches**3).mean() + t.registers.mean() for t in tokens)
        net.zero_grad()
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        results.append((torch.cat([torch.cat([t.flatten() for t in each]) for each in tokens]), gradient))
    (packed, packed_gradient), (single, single_gradient) = results
    assert float((packed - single).abs().max()) < 1e-5
    assert float((packed_gradient - single_gradient).abs().max()) < 1e-5 * float(single_gradient.abs().max())


def test_registers_follow_the_class_token_and_have_no_position():
    net = student(positions="learned")
    (found,) = net.tokens([torch.randn(2, 3, 32, 32)])
    assert found.cls.shape == (2, 32) and found.registers.shape == (2, 4, 32) and found.patches.shape == (2, 16, 32)
    assert net.vit.pos_embed.shape == (16, 32), "only patches have positions"
    embedded, _ = net.vit._embed(torch.randn(1, 3, 32, 32), None)
    torch.testing.assert_close(embedded[0, :5], net.vit.prefix_tokens[0])


@pytest.mark.parametrize(
    ("arch", "depth", "scale", "width", "heads"),
    [("vit_small", 12, 0.1, 384, 6), ("vit_base", 12, 0.1, 768, 12), ("vit_large", 24, 1e-6, 1024, 16)],
)
def test_the_published_sizes(arch, depth, scale, width, heads):
    found = student_config(RunConfig(arch=arch))
    assert (found.dim, found.depth, found.heads, found.layer_scale) == (width, depth, heads, scale)
    assert found.registers == 4 and found.cls_token and found.qkv_bias and found.grid == (14, 14)
    hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8
    assert SwiGLU(width, 4 * width).fc2.in_features == hidden


def test_depth_width_and_heads_can_be_given_and_layer_scale_follows_the_depth():
    found = student_config(RunConfig(arch="vit_small", depth=18, embed_dim=192, num_heads=3))
    assert (found.depth, found.dim, found.heads, found.layer_scale) == (18, 192, 3, 1e-5)
    with pytest.raises(UserError, match="heads"):
        student_config(RunConfig(arch="vit_small", embed_dim=100))


def test_the_head_has_no_norm_and_gives_unit_vectors():
    net = build_student(config(student=StudentConfig(head=[24, 24, 8])))
    kinds = [type(layer).__name__ for layer in net.head.layers]
    assert kinds == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    weights = torch.cat([layer.weight.flatten() for layer in net.head.layers[::2]])
    assert float(weights.std()) == pytest.approx(0.02, rel=0.1) and float(weights.abs().max()) <= 2
    z = net.embed(torch.randn(5, 32))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(5))
    with torch.autocast("cpu", torch.bfloat16):
        assert net.embed(torch.randn(5, 32)).dtype == torch.float32


def test_a_student_is_its_seed_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, second, other = (build_student(config(seed=s)) for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.vit.prefix_tokens, other.vit.prefix_tokens)
