"""The ViT against a plain float64 version of itself: every option, visible tokens, packs, image sizes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pathray.errors import UserError
from pathray.nn.vit import PRESETS, PatchEmbed, ViT, ViTConfig, take, vit_config
from tests.builders.plain_vit import plain_forward, shake

SMALL = {"img_size": (24, 32), "patch_size": (8, 8), "dim": 48, "depth": 2, "heads": 3}
VOLUME = {"img_size": (8, 16, 24), "patch_size": (4, 8, 8), "in_channels": 1, "dim": 48, "depth": 2, "heads": 3}
VARIANTS = {
    "plain": {},
    "learned": {"positions": "learned"},
    "rope": {"positions": "rope", "cls_token": True, "registers": 2},
    "adios": {"mlp": "swiglu", "cls_token": True, "registers": 4, "layer_scale": 0.1, "qk_norm": True},
    "no_bias": {"qkv_bias": False, "mlp_ratio": 2.0},
}


def build(**options: object) -> ViT:
    torch.manual_seed(1)
    vit = ViT(ViTConfig(**options)).eval()
    shake(vit)
    return vit


def image(vit: ViT, *spatial: int, batch: int = 2, seed: int = 5) -> Tensor:
    shape = (batch, vit.config.in_channels, *(spatial or vit.config.img_size))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_oracle(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("base", [SMALL, VOLUME], ids=["2d", "3d"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_variant_is_the_plain_formulas(base, variant):
    vit = build(**{**base, **variant})
    assert_oracle(vit(image(vit)), plain_forward(vit, image(vit)))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("spatial", [(16, 16), (48, 24), (8, 40)])
def test_evaluation_at_another_image_size_works(variant, spatial):
    vit = build(**{**SMALL, **variant})
    out = vit(image(vit, *spatial))
    assert out.shape == (2, vit.num_prefix + spatial[0] * spatial[1] // 64, 48)
    assert_oracle(out, plain_forward(vit, image(vit, *spatial)))


@pytest.mark.parametrize("positions", ["sincos", "learned", "rope"])
def test_a_volume_of_another_size_works(positions):
    vit = build(**VOLUME, positions=positions)
    assert_oracle(vit(image(vit, 12, 16, 8)), plain_forward(vit, image(vit, 12, 16, 8)))


@pytest.mark.parametrize("spatial", [(24, 33), (4, 8), (24,), (8, 24, 32)])
def test_an_image_that_is_not_whole_patches_is_refused(spatial):
    vit = build(**SMALL)
    with pytest.raises(UserError, match="patch size"):
        vit(torch.zeros(1, 3, *spatial))


@pytest.mark.parametrize("base", [SMALL, VOLUME], ids=["2d", "3d"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_kept_tokens_are_those_of_masked_full_attention(base, variant):
    vit = build(**{**base, **variant})
    x = image(vit)
    keep = torch.tensor([[7, 2, 11, 3], [7, 2, 11, 3]])
    visible = torch.zeros(12, dtype=torch.bool)
    visible[keep[0]] = True
    full = plain_forward(vit, x, visible)
    expected = torch.cat([full[:, : vit.num_prefix], full[:, vit.num_prefix :][:, keep[0]]], 1)
    assert_oracle(vit(x, keep=keep), expected)


def test_hidden_pixels_cannot_reach_the_kept_tokens_and_each_sample_keeps_its_own():
    vit = build(**SMALL, cls_token=True)
    keep = torch.tensor([[0, 5, 10], [3, 4, 11]])
    x = image(vit)
    before = vit(x, keep=keep)
    patches = x.reshape(2, 3, 3, 8, 4, 8).permute(0, 2, 4, 1, 3, 5).reshape(2, 12, -1).clone()
    for b in range(2):
        hidden = [i for i in range(12) if i not in keep[b].tolist()]
        patches[b, hidden] = float("nan")
    x = patches.reshape(2, 3, 4, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 24, 32)
    assert torch.equal(vit(x, keep=keep), before)
    alone = torch.cat([vit(image(vit)[b : b + 1], keep=keep[b : b + 1]) for b in range(2)])
    torch.testing.assert_close(alone, before, rtol=1e-5, atol=1e-6)


def test_only_visible_tokens_go_through_the_blocks():
    vit = build(**SMALL, cls_token=True)
    seen = []
    vit.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    vit.patch_embed.proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    vit(image(vit), keep=torch.tensor([[1, 2], [3, 4]]))
    assert seen == [(2, 2, 192), (2, 3, 48)]


def test_keeping_all_in_order_is_the_whole_image():
    vit = build(**SMALL, positions="rope", registers=1)
    keep = torch.arange(12).expand(2, -1)
    torch.testing.assert_close(vit(image(vit), keep=keep), vit(image(vit)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_packed_batches_equal_one_pass_each_forward_and_backward(variant):
    vit = build(**{**SMALL, **variant})
    images = [image(vit, *s, batch=b) for b, s in [(2, (24, 32)), (3, (16, 16)), (1, (24, 32)), (2, (8, 24))]]

    def losses(outputs: list[Tensor]) -> Tensor:
        return sum(((o * torch.linspace(-1, 1, o.numel()).reshape(o.shape)).sum() for o in outputs), torch.zeros(()))

    packed, single = vit.forward_packed(images), [vit(x) for x in images]
    for a, b in zip(packed, single, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    names = [n for n, _ in vit.named_parameters()]
    grads = [torch.autograd.grad(losses(o), list(vit.parameters())) for o in (packed, single)]
    for name, a, b in zip(names, *grads, strict=True):
        scale = float(b.abs().max())
        assert float((a - b).abs().max()) <= 1e-5 * max(scale, 1.0), name


def test_packing_with_stochastic_depth_trains():
    vit = build(**SMALL, drop_path=0.5).train()
    out = vit.forward_packed([image(vit), image(vit, 16, 16, batch=3)])
    sum(o.sum() for o in out).backward()
    assert all(torch.isfinite(p.grad).all() for p in vit.parameters())


@pytest.mark.parametrize("positions", ["sincos", "learned", "rope"])
def test_checkpointing_changes_no_gradient_not_even_with_stochastic_depth(positions):
    vit = build(**SMALL, positions=positions, drop_path=0.3).train()
    saving = copy.deepcopy(vit)
    saving.config = ViTConfig(**{**SMALL, "positions": positions, "drop_path": 0.3, "checkpointing": True})
    grads = []
    for model in (vit, saving):
        torch.manual_seed(7)
        model(image(vit)).square().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    assert all(torch.equal(grads[0][n], grads[1][n]) for n in grads[0])


def test_inner_features_lead_to_the_output():
    vit = build(**{**SMALL, "depth": 4}, registers=1)
    inner = vit.intermediate(image(vit), [4, 1, 2])
    assert [t.shape for t in inner] == [(2, 13, 48)] * 3
    torch.testing.assert_close(vit.norm(inner[0]), vit(image(vit)))
    torch.testing.assert_close(vit.blocks[1](inner[1]), inner[2])


@pytest.mark.parametrize("patch", [(4, 8), (2, 4, 8)])
def test_patch_embedding_is_a_convolution_with_stride(patch):
    embed = PatchEmbed(patch, 2, 10)
    x = torch.randn(3, 2, *(3 * p for p in patch))
    conv = F.conv2d if len(patch) == 2 else F.conv3d
    expected = conv(x, embed.proj.weight.reshape(10, 2, *patch), embed.proj.bias, stride=patch)
    torch.testing.assert_close(embed(x), expected.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_stochastic_depth_rises_to_the_last_block():
    vit = build(**{**SMALL, "depth": 5}, drop_path=0.2)
    assert [b.drop_path.rate for b in vit.blocks] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


@pytest.mark.parametrize(
    ("name", "millions"), [("vit_tiny", 5.49), ("vit_small", 21.59), ("vit_base", 85.65), ("vit_large", 303.1)]
)
def test_presets_have_the_known_sizes(name, millions):
    """Of DeiT and ViT (arXiv 2012.12877, 2010.11929) less the class token, positions and head."""
    with torch.device("meta"):
        vit = ViT(vit_config(name))
    assert sum(p.numel() for p in vit.parameters()) / 1e6 == pytest.approx(millions, rel=1e-3)


def test_huge_and_unknown_models():
    assert vit_config("vit_huge").depth == 32 and set(PRESETS) == {
        f"vit_{n}" for n in "micro tiny small base large huge".split()
    }
    with pytest.raises(UserError, match="vit_giant"):
        vit_config("vit_giant")
    with pytest.raises(UserError, match="imgsize"):
        vit_config("vit_tiny", imgsize=(64, 64))
    with pytest.raises(UserError, match="heads"):
        vit_config("vit_tiny", heads=5)
    with pytest.raises(UserError, match="positions"):
        vit_config("vit_tiny", positions="alibi")
    with pytest.raises(UserError, match="2-D or both 3-D"):
        vit_config("vit_tiny", patch_size=(4, 16, 16))
    assert vit_config("vit_tiny", img_size=[32, 32]).img_size == (32, 32)


@pytest.mark.parametrize("positions", ["sincos", "learned", "rope"])
def test_no_value_decides_a_shape_so_a_compiled_graph_serves_every_batch(positions):
    """On the meta device there are no values: anything that looked at one would raise."""
    vit = ViT(ViTConfig(**SMALL, positions=positions, cls_token=True, drop_path=0.1)).to("meta")
    x, keep = torch.empty(2, 3, 24, 32, device="meta"), torch.empty(2, 5, dtype=torch.int64, device="meta")
    out = vit(x, keep=keep)
    out.sum().backward()
    assert out.shape == (2, 6, 48) and vit.patch_embed.proj.weight.grad is not None
    assert [t.shape for t in vit.forward_packed([x, x])] == [(2, 13, 48)] * 2


def test_two_passes_are_equal_to_the_bit():
    vit = build(**SMALL, drop_path=0.2, positions="learned").train()
    keep = torch.tensor([[0, 5, 10], [3, 4, 11]])
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        vit.zero_grad()
        (vit(image(vit, 48, 32), keep=keep).square().sum() + vit(image(vit)).sum()).backward()
        runs.append([p.grad.clone() for p in vit.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_inference_first_does_not_spoil_training():
    vit = build(**{**SMALL, "img_size": (56, 72)}, positions="rope")
    with torch.inference_mode():
        vit(image(vit, 40, 56))
    vit(image(vit, 40, 56)).sum().backward()


def test_take_picks_rows_per_sample():
    tokens = torch.arange(24.0).reshape(2, 4, 3)
    index = torch.tensor([[3, 0], [1, 1]])
    assert torch.equal(take(tokens, index), torch.stack([tokens[b, index[b]] for b in range(2)]))
