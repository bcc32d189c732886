"""Networks and losses: against float64 numpy, and what must not flow where."""

import numpy as np
import pytest
import torch

from ijepath.config import DataConfig, ModelConfig, OptimizationConfig, RunConfig, SiteConfig
from ijepath.model import (
    SiteHead,
    build_modules,
    encode_context,
    encode_targets,
    pooled_loss,
    predict,
    site_loss,
    tokens_loss,
)


def config(**sections) -> RunConfig:
    data = sections.pop("data", DataConfig(context_fov_um=128, target_fov_um=32, targets_per_context=2))
    model = sections.pop("model", ModelConfig(name="vit_tiny", pred_depth=2, pred_emb_dim=96))
    return RunConfig(data=data, model=model, optimization=OptimizationConfig(total_images_budget=64), **sections)


@pytest.fixture(scope="module")
def modules():
    return build_modules(config())


def smooth_l1(a, b):
    d = np.abs(a - b)
    return np.where(d < 1, 0.5 * d * d, d - 0.5)


def test_pooled_loss_equals_the_formula_in_float64():
    g = torch.Generator().manual_seed(0)
    z, h = torch.randn(3, 2, 5, 8, generator=g) * 2, torch.randn(3, 2, 7, 8, generator=g)
    expected = smooth_l1(z.double().numpy().mean(2), h.double().numpy().mean(2)).mean((1, 2))
    assert np.allclose(pooled_loss(z, h).numpy(), expected, rtol=1e-5)


def test_tokens_loss_compares_every_covered_teacher_token_with_its_context_token():
    g = torch.Generator().manual_seed(0)
    z, h = torch.randn(2, 2, 3, 4, generator=g) * 2, torch.randn(2, 2, 6, 4, generator=g)
    cells = torch.tensor([[[0, 0, 1, 2, -1, 2], [1, 1, 1, 1, 0, 2]], [[-1, -1, -1, 0, 1, 2], [2, 1, 0, -1, 0, 0]]])
    expected = []
    for b in range(2):
        terms = [
            smooth_l1(z[b, k, int(c)].double().numpy(), h[b, k, i].double().numpy()).mean()
            for k in range(2)
            for i, c in enumerate(cells[b, k])
            if c >= 0
        ]
        expected.append(np.mean(terms))
    assert np.allclose(tokens_loss(z, h, cells).numpy(), expected, rtol=1e-5)


def test_targets_are_layer_normed_without_affine_and_carry_no_gradient(modules):
    crops = torch.randn(4, 3, 64, 64)
    h = encode_targets(modules["teacher"], crops, 2)
    assert h.shape == (2, 2, 16, 192) and not h.requires_grad
    assert torch.allclose(h.mean(-1), torch.zeros(2, 2, 16), atol=1e-5)
    assert torch.allclose(h.var(-1, correction=0), torch.ones(2, 2, 16), atol=1e-3)


def test_the_teacher_is_a_copy_that_is_never_trained_and_stays_in_eval_mode():
    modules = build_modules(config(model=ModelConfig(name="vit_tiny", pred_depth=1, pred_emb_dim=96, drop_path=0.5)))
    modules.train()
    assert not any(p.requires_grad for p in modules["teacher"].parameters())
    for a, b in zip(modules["teacher"].parameters(), modules["student"].parameters(), strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()
    crops = torch.randn(2, 3, 64, 64)
    first, second = encode_targets(modules["teacher"], crops, 1), encode_targets(modules["teacher"], crops, 1)
    assert torch.equal(first, second)


def test_the_context_encoder_is_blind_to_hidden_pixels(modules):
    keep = torch.tensor([[0, 3, 17, 40, 63]])
    image = torch.randn(1, 3, 128, 128)
    other = torch.randn(1, 3, 128, 128)
    for token in keep[0].tolist():
        y, x = token // 8 * 16, token % 8 * 16
        other[:, :, y : y + 16, x : x + 16] = image[:, :, y : y + 16, x : x + 16]
    student = modules["student"]
    assert torch.equal(encode_context(student, image, keep), encode_context(student, other, keep))


def test_joint_and_separate_predictions_agree_for_one_target_and_have_the_same_shape(modules):
    tokens, keep = torch.randn(2, 10, 192), torch.arange(10).repeat(2, 1)
    one = torch.arange(20, 29).reshape(1, 1, 9).repeat(2, 1, 1)
    p = modules["predictor"]
    assert torch.allclose(
        predict(p, tokens, keep, one, 8, joint=True), predict(p, tokens, keep, one, 8, joint=False), atol=1e-5
    )
    two = torch.stack([one[:, 0], one[:, 0] + 20], dim=1)
    joint, apart = (predict(p, tokens, keep, two, 8, joint=j) for j in (True, False))
    assert joint.shape == apart.shape == (2, 2, 9, 192)
    assert torch.allclose(apart[:, :1], predict(p, tokens, keep, one, 8, joint=True), atol=1e-5)


def test_building_depends_on_the_seed_and_leaves_torchs_own_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b = build_modules(config()), build_modules(config())
    assert torch.equal(torch.rand(1), expected)
    c = build_modules(config(data=DataConfig(context_fov_um=128, target_fov_um=32, seed=1)))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(a.state_dict().values(), c.state_dict().values(), strict=True))


def test_site_head_learns_the_site_and_the_encoder_gets_the_opposite_gradient():
    torch.manual_seed(0)
    head = SiteHead(6, 16, 3, weight=0.25)
    features = torch.randn(5, 6, requires_grad=True)
    site = torch.tensor([0, 1, 2, -1, 1])
    loss = site_loss(head(features), site)
    assert loss[3] == 0
    loss.sum().backward()
    plain = features.detach().clone().requires_grad_()
    logits = head.layers(plain)
    torch.nn.functional.cross_entropy(logits, site, ignore_index=-1, reduction="sum").backward()
    assert torch.allclose(features.grad, -0.25 * plain.grad, atol=1e-6)
    assert torch.allclose(head(features.detach()), logits, atol=1e-5)


def test_a_site_head_is_built_only_when_asked_for():
    assert "site" not in build_modules(config())
    assert "site" in build_modules(config(site=SiteConfig(adversarial=True)), sites=3)
    with pytest.raises(AssertionError):
        build_modules(config(site=SiteConfig(adversarial=True)), sites=1)
