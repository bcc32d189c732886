"""Learning rates per layer against torch's parameter groups."""

import copy

import pytest
import torch
from torch import nn

from pathray.optim.schedules import constant
from pathray.train.settings import PhaseOptim

RATES = (("0.", 0.25), ("1.", 0.5))


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))


def gradients(module, step):
    torch.manual_seed(step)
    for p in module.parameters():
        p.grad = torch.randn_like(p)


def test_a_factor_is_a_learning_rate_of_its_own():
    ours, twin = model(), None
    twin = copy.deepcopy(ours)
    groups = [
        {"params": [p], "lr": 0.01 * f, "weight_decay": 0.1 if p.ndim > 1 else 0.0}
        for layer, f in zip(twin, (0.25, 0.5, 1.0), strict=True)
        for p in layer.parameters()
    ]
    oracle = torch.optim.AdamW(groups)
    optimizer = PhaseOptim(rates=RATES).build(ours.named_parameters())
    optimizer.set(lr=0.01, weight_decay=0.1)
    for step in range(5):
        gradients(ours, step)
        gradients(twin, step)
        optimizer.step()
        oracle.step()
    for a, b in zip(ours.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("lars", [False, True])
def test_a_voided_step_changes_nothing(lars):
    ours = model()
    before = copy.deepcopy(ours.state_dict())
    optimizer = PhaseOptim(rates=RATES, lars=lars, lr=constant(0.1)).build(ours.named_parameters())
    optimizer.set(lr=0.1, weight_decay=0.1)
    gradients(ours, 0)
    ours[0].weight.grad[0, 0] = float("nan")
    optimizer.step(ok=torch.tensor(0.0))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_without_factors_there_is_no_wrapper():
    assert type(PhaseOptim().build(model().named_parameters())).__name__ == "AdamW"
