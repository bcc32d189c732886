"""AdamW, SGD and LARS against torch and float64 numpy; the flag that voids a step; the strict state dict."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pathray.errors import UserError
from pathray.optim import adamw
from pathray.optim.adamw import AdamW
from pathray.optim.groups import decay_groups
from pathray.optim.lars import LARS
from pathray.optim.optimizer import Optimizer
from pathray.optim.sgd import SGD


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.LayerNorm(7), nn.Linear(7, 3))


def feed(module: nn.Module, seed: int) -> None:
    """Gradients that are a function of the seed alone, over four orders of magnitude."""
    g = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, generator=g) * 10 ** float(torch.randint(-3, 1, (), generator=g))


def torch_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    yes, no = decay_groups(module.named_parameters())
    return [
        {"params": [p for _, p in yes], "weight_decay": weight_decay},
        {"params": [p for _, p in no], "weight_decay": 0.0},
    ]


def snapshot(module: nn.Module, optimizer: Optimizer | LARS) -> dict[str, Tensor]:
    tensors = {**dict(module.named_parameters()), **optimizer.state_dict()}
    return {k: v.detach().clone() for k, v in tensors.items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def run_beside(
    ours: Optimizer, module: nn.Module, oracle: torch.optim.Optimizer, twin: nn.Module, decay: float
) -> None:
    for step in range(40):
        lr, wd = 1e-2 * (1 + step % 7), decay * (1 + step % 3)
        ours.set(lr=lr, weight_decay=wd)
        oracle.param_groups[0]["weight_decay"] = wd
        for group in oracle.param_groups:
            group["lr"] = lr
        feed(module, step)
        feed(twin, step)
        ours.step(torch.tensor(True))
        oracle.step()
        for (name, p), q in zip(module.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=lambda m, n=name, s=step: f"{n}, step {s}: {m}")


@pytest.fixture(params=["fused", "written out"])
def adamw_path(request, monkeypatch) -> str:
    """Both ways of AdamW, wherever it occurs in a test."""
    if request.param == "written out":
        monkeypatch.setattr(adamw, "fused_runs", lambda device: False)
    elif not adamw.fused_runs(torch.device("cpu")):
        pytest.skip("this PyTorch has no fused AdamW for the CPU")
    return str(request.param)


@pytest.mark.usefixtures("adamw_path")
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95), (0.0, 0.99)])
def test_adamw_is_torchs_adamw_under_changing_rate_and_decay(betas):
    module, twin = model(), model()
    oracle = torch.optim.AdamW(torch_groups(twin, 0.1), lr=0, betas=betas)
    run_beside(AdamW(module.named_parameters(), betas=betas), module, oracle, twin, 0.1)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_torchs_sgd_under_changing_rate_and_decay(momentum, nesterov):
    module, twin = model(), model()
    oracle = torch.optim.SGD(torch_groups(twin, 0.1), lr=1, momentum=momentum, nesterov=nesterov)
    run_beside(SGD(module.named_parameters(), momentum=momentum, nesterov=nesterov), module, oracle, twin, 0.1)


def every_kind(module: nn.Module) -> list[Optimizer | LARS]:
    options = {"lr": 0.01, "weight_decay": 0.1}
    named = list(module.named_parameters())
    return [
        AdamW(named, **options),
        SGD(named, nesterov=True, **options),
        LARS(SGD(named, **options)),
        LARS(AdamW(named, **options), clip="larc"),
    ]


@pytest.mark.usefixtures("adamw_path")
@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("first", [True, False])
def test_a_voided_step_changes_nothing_even_when_gradients_are_not_finite(kind, poison, first):
    module = model()
    optimizer = every_kind(module)[kind]
    if not first:
        feed(module, 1)
        optimizer.step(torch.tensor(True))
    before = snapshot(module, optimizer)
    feed(module, 2)
    for p in module.parameters():
        assert p.grad is not None
        p.grad[0] = poison
    optimizer.step(torch.tensor(0.0))
    assert_equal(before, snapshot(module, optimizer))
    assert int(optimizer.steps) == (0 if first else 1)


@pytest.mark.usefixtures("adamw_path")
@pytest.mark.parametrize("kind", range(4))
def test_after_a_voided_step_training_goes_on_as_if_it_had_not_been(kind):
    module, twin = model(), model()
    a, b = every_kind(module)[kind], every_kind(twin)[kind]
    for step in range(6):
        feed(module, step)
        feed(twin, step)
        a.step(torch.tensor(True))
        b.step()
        feed(module, 100 + step)
        a.step(torch.tensor(False))
    assert_equal(snapshot(module, a), snapshot(twin, b))


@pytest.mark.usefixtures("adamw_path")
@pytest.mark.parametrize("kind", range(4))
def test_a_flat_gradient_stands_in_for_the_parameters_own(kind):
    module, twin = model(), model()
    a, b = every_kind(module)[kind], every_kind(twin)[kind]
    feed(module, 5)
    flat = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    kept = flat.clone()
    a.step(torch.tensor(True))
    b.step(gradient=flat)
    assert_equal(snapshot(module, a), snapshot(twin, b))
    assert torch.equal(flat, kept)


def test_both_ways_of_adamw_agree_and_the_kernel_is_tried_once(monkeypatch):
    module, twin = model(), model()
    a, b = (AdamW(m.named_parameters(), lr=0.01, weight_decay=0.1) for m in (module, twin))
    for step in range(30):
        feed(module, step)
        feed(twin, step)
        a.step(torch.tensor(step % 5 > 0))
        with monkeypatch.context() as patch:
            patch.setattr(adamw, "fused_runs", lambda device: False)
            b.step(torch.tensor(step % 5 > 0))
    for (name, x), y in zip(snapshot(module, a).items(), snapshot(twin, b).values(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6, msg=name)
    calls = []
    adamw.fused_runs.cache_clear()
    monkeypatch.setattr(adamw, "_fused_adamw", lambda *_: calls.append(1))
    assert not adamw.fused_runs(torch.device("cpu")) and not adamw.fused_runs(torch.device("cpu"))
    assert len(calls) == 2, "a kernel that does nothing is not taken"
    monkeypatch.undo()
    adamw.fused_runs.cache_clear()
    assert not adamw.fused_runs(torch.device("meta"))


def test_a_parameter_without_gradient_has_gradient_zero():
    module, twin = model(), model()
    a, b = AdamW(module.named_parameters(), lr=0.1), AdamW(twin.named_parameters(), lr=0.1)
    feed(module, 1)
    feed(twin, 1)
    list(module.parameters())[0].grad = None
    list(twin.parameters())[0].grad = torch.zeros(7, 5)
    a.step()
    b.step()
    assert_equal(snapshot(module, a), snapshot(twin, b))


@pytest.mark.parametrize("clip", ["ratio", "larc"])
def test_lars_is_its_formula_in_float64(clip):
    module = model()
    lr, wd, eta = 0.3, 0.05, 0.02
    optimizer = LARS(SGD(module.named_parameters(), lr=lr, weight_decay=wd, momentum=0.0), trust=eta, clip=clip)
    module[3].weight.data *= 1e4 if clip == "ratio" else 1.0  # so that the clip acts on one layer and not on the other
    feed(module, 4)
    expected = {}
    for name, p in module.named_parameters():
        w, g = p.detach().numpy().astype(np.float64), p.grad.numpy().astype(np.float64)
        if p.ndim > 1:
            wn, gn = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
            r = eta * wn / (gn + wd * wn + 1e-8)
            g = (min(r, 10.0) if clip == "ratio" else min(r / lr, 1.0)) * (g + wd * w)
        expected[name] = w - lr * g
    optimizer.step(torch.tensor(True))
    for name, p in module.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), expected[name], rtol=2e-6, atol=1e-7, err_msg=name)


def test_lars_moves_a_weight_that_starts_at_zero():
    module = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(module.weight)
    optimizer = LARS(SGD(module.named_parameters(), lr=0.5, momentum=0.0))
    module.weight.grad = torch.ones(2, 3)
    optimizer.step()
    assert torch.equal(module.weight, torch.full((2, 3), -0.5))


def test_weight_decay_spares_biases_norms_and_tokens():
    module = nn.ModuleDict({"linear": nn.Linear(3, 2), "norm": nn.LayerNorm(2)})
    named = [*module.named_parameters(), ("mask_token", nn.Parameter(torch.ones(1, 1, 4)))]
    named += [("prefix_tokens", nn.Parameter(torch.ones(1, 2, 4))), ("pos_embed", nn.Parameter(torch.ones(9, 4)))]
    yes, no = decay_groups(named)
    assert [n for n, _ in yes] == ["linear.weight"]
    assert {n for n, _ in no} == {"linear.bias", "norm.weight", "norm.bias", "mask_token", "prefix_tokens", "pos_embed"}


@pytest.mark.parametrize("kind", range(4))
def test_state_goes_to_another_optimizer_and_back_bit_for_bit(kind):
    module, twin = model(), model()
    a, b = every_kind(module)[kind], every_kind(twin)[kind]
    for step in range(3):
        feed(module, step)
        a.step(torch.tensor(True))
    twin.load_state_dict(module.state_dict())
    b.load_state_dict({k: v.clone() for k, v in a.state_dict().items()})
    for m, o in ((module, a), (twin, b)):
        feed(m, 9)
        o.step(torch.tensor(True))
    assert_equal(snapshot(module, a), snapshot(twin, b))


def test_foreign_state_is_refused_by_name_and_nothing_is_loaded():
    module = model()
    optimizer = AdamW(module.named_parameters(), lr=0.1)
    feed(module, 0)
    optimizer.step()
    before, state = snapshot(module, optimizer), dict(optimizer.state_dict())
    wrong = {
        "exp_avg/3.weight": {k: v for k, v in state.items() if k != "exp_avg/3.weight"},
        "exp_avg_sq/9.weight": {**state, "exp_avg_sq/9.weight": torch.zeros(1)},
        "exp_avg/0.bias": {**state, "exp_avg/0.bias": torch.zeros(8)},
    }
    for name, bad in wrong.items():
        with pytest.raises(UserError, match=name):
            optimizer.load_state_dict({k: v + 1 for k, v in bad.items()})
    assert_equal(before, snapshot(module, optimizer))


def test_two_runs_are_equal_to_the_bit():
    results = []
    for _ in range(2):
        module = model()
        optimizer = AdamW(module.named_parameters(), lr=0.01, weight_decay=0.1)
        for step in range(10):
            feed(module, step)
            optimizer.step(torch.tensor(True))
        results.append(snapshot(module, optimizer))
    assert_equal(*results)
