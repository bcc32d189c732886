"""The networks and the whole loss against V-JEPA 2 in float64 NumPy, and what must not flow where."""

import numpy as np
import pytest
import torch

from oct.model import MlpPredictor, build_modules, encode_context, encode_target
from oct.recipe import OctRecipe
from oct.sections import MaskConfig, ModelConfig
from pathray.train.recipe import Progress
from tests.builders.oct import plain_vjepa
from tests.builders.oct.volumes import PATCH, micro, small_config
from tests.builders.plain_vit import shake

START = Progress(0, 8, 4)
SMALL = {"name": "vit_micro", "patch_size": PATCH, "pred_dim": 48, "pred_depth": 2, "pred_heads": 2}


def shaken(config) -> OctRecipe:
    """A recipe whose teacher and student differ, with no weight at its neutral start."""
    torch.manual_seed(5)
    recipe = OctRecipe(config)
    for name in ("student", "predictor", "teacher"):
        shake(recipe.modules[name])
    return recipe


def oracle(recipe, prepared, kind: str) -> list[float]:
    """The loss of each volume by float64 NumPy: the mean over its masks."""
    w = {name: plain_vjepa.weights_of(recipe.modules[name]) for name in ("student", "predictor", "teacher")}
    heads, grid = recipe.student.config.heads, recipe.grid
    losses = []
    for b, volume in enumerate(prepared["image"][:, 0].double().numpy()):
        h = plain_vjepa.layer_norm(plain_vjepa.encode(w["teacher"], volume, PATCH, heads), eps=1e-5)
        each = []
        for i in range(recipe.masks):
            visible, hidden = (prepared[f"{name}_{i}"][b].numpy() for name in ("context", "target"))
            context = plain_vjepa.encode(w["student"], volume, PATCH, heads, visible)
            z = plain_vjepa.predict(w["predictor"], context, visible, hidden, grid, 2)
            each.append(plain_vjepa.compare(kind, z, h, visible, hidden, grid, 0.5))
        losses.append(np.mean(each))
    return losses


@pytest.mark.parametrize(
    ("kind", "masks"), [("l1", "block"), ("normalized_mse", "random"), ("dense", "block"), ("l1", "vjepa")]
)
def test_the_loss_is_that_of_v_jepa_2_in_float64(kind, masks):
    config = small_config(model=ModelConfig(**SMALL, loss=kind), mask=MaskConfig(kind=masks))
    recipe = shaken(config)
    prepared = recipe.prepare(micro(config, range(2)), START)
    expected = oracle(recipe, prepared, kind)
    loss = recipe.loss("model", prepared, START)
    assert float(loss.sum.detach()) == pytest.approx(sum(expected), rel=1e-5) and float(loss.weight) == 2


def test_the_encoder_does_not_see_a_hidden_voxel():
    config = small_config()
    student = build_modules(config)["student"].eval()
    x, keep = torch.randn(1, 1, 8, 32, 32), torch.tensor([[0, 5, 21, 63]])
    other = x.clone()
    other[:, :, :2, :8, 8:16] += 100.0  # token 1
    with torch.no_grad():
        assert torch.equal(encode_context(student, x, keep), encode_context(student, other, keep))
        seen = torch.tensor([[0, 1, 21, 63]])
        assert not torch.equal(encode_context(student, x, seen), encode_context(student, other, seen))


def test_targets_are_layer_normed_and_carry_no_gradient():
    modules = build_modules(small_config())
    h = encode_target(modules["teacher"].train(), torch.randn(2, 1, 8, 32, 32, requires_grad=True))
    assert h.shape == (2, 64, 192) and not h.requires_grad
    assert torch.allclose(h.mean(-1), torch.zeros(2, 64), atol=1e-5) and not modules["teacher"].training
    assert torch.allclose(h.var(-1, correction=0), torch.ones(2, 64), atol=1e-3)


def test_no_gradient_reaches_the_teacher_and_every_other_weight_has_one():
    config = small_config()
    recipe = OctRecipe(config)
    recipe.loss("model", recipe.prepare(micro(config, range(2)), START), START).sum.backward()
    assert all(p.grad is None and not p.requires_grad for p in recipe.encoder.parameters())
    missing = [name for name, p in recipe.params["model"] if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


def test_the_teacher_begins_as_the_student_and_the_seed_decides():
    first, same = build_modules(small_config()), build_modules(small_config())
    for name, p in first["student"].named_parameters():
        assert torch.equal(p, same["student"].get_parameter(name))
        assert torch.equal(p, first["teacher"].get_parameter(name))


def test_the_mlp_knows_the_mean_visible_token_and_the_place_alone():
    torch.manual_seed(0)
    net = MlpPredictor(48, 32).eval()
    context, where, grid = torch.randn(2, 5, 48), torch.zeros(2, 5, dtype=torch.long), (2, 3, 4)
    wanted = torch.tensor([[3, 3, 9], [0, 1, 3]])
    out = net(context, where, wanted, grid)
    assert out.shape == (2, 3, 48) and torch.equal(out[0, 0], out[0, 1]) and not torch.allclose(out[0, 0], out[0, 2])
    assert torch.allclose(net(context.flip(1), where, wanted, grid), out, atol=1e-6)
    assert not torch.allclose(out[0, 0], out[1, 2])  # another volume, the same place
    kinds = [type(m).__name__ for m in net.head.layers]
    assert kinds == ["Linear", "_OverFeatures", "GELU", "Linear"] and net.head.layers[0].out_features == 32


@pytest.mark.parametrize("positions", ["sincos", "learned", "rope"])
def test_every_kind_of_positions_trains_with_checkpointing_and_drop_path(positions):
    config = small_config(model=ModelConfig(**SMALL, positions=positions, checkpointing=True, drop_path=0.1))
    recipe = OctRecipe(config)
    recipe.loss("model", recipe.prepare(micro(config, range(2)), START), START).sum.backward()
    assert all(torch.isfinite(p.grad).all() for _, p in recipe.params["model"])
    assert (recipe.modules["predictor"].rotary is not None) == (positions == "rope")
