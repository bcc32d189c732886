"""The teacher's average against float64, at its ends, with buffers, and its refusal of another model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from pathray.errors import UserError
from pathray.optim.ema import Ema, drift


def student() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))


@pytest.mark.parametrize("as_tensor", [True, False])
def test_the_teacher_follows_the_moving_average(as_tensor):
    learner = student()
    teacher = Ema.teacher_of(learner)
    expected = {n: p.detach().numpy().astype(np.float64) for n, p in learner.named_parameters()}
    for step in range(20):
        momentum = 0.9 + 0.005 * step
        with torch.no_grad():
            for p in learner.parameters():
                p.add_(torch.randn_like(p))
        Ema.update(teacher, learner, torch.tensor(momentum) if as_tensor else momentum)
        for name, p in learner.named_parameters():
            expected[name] = momentum * expected[name] + (1 - momentum) * p.detach().numpy()
    for name, p in teacher.named_parameters():
        np.testing.assert_allclose(p.numpy(), expected[name], rtol=1e-5, atol=1e-5)


def test_momentum_one_keeps_the_teacher_and_zero_copies_the_student_exactly():
    learner = student()
    teacher = Ema.teacher_of(student())
    before = copy.deepcopy(teacher.state_dict())
    Ema.update(teacher, learner, 1.0)
    assert all(torch.equal(p, before[n]) for n, p in teacher.named_parameters())
    Ema.update(teacher, learner, torch.tensor(0.0))
    assert all(torch.equal(p, q) for p, q in zip(teacher.parameters(), learner.parameters(), strict=True))


def test_buffers_are_copied_and_not_averaged():
    learner = student()
    teacher = Ema.teacher_of(learner)
    learner(torch.randn(8, 4))
    Ema.update(teacher, learner, 0.99)
    for (name, buffer), other in zip(teacher.named_buffers(), learner.buffers(), strict=True):
        assert torch.equal(buffer, other), name
    assert int(teacher[1].num_batches_tracked) == 1


def test_the_teacher_is_a_frozen_copy_in_evaluation_mode():
    learner = student()
    teacher = Ema.teacher_of(learner)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(m.training for m in teacher.modules()) and learner.training
    with torch.no_grad():
        learner[0].weight.zero_()
    assert teacher[0].weight.abs().sum() > 0


def test_another_model_is_refused_by_name():
    with pytest.raises(UserError, match="1.weight"):
        Ema.update(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 0.9)
    with pytest.raises(UserError, match="weight"):
        Ema.update(nn.Linear(2, 2), nn.Linear(3, 2), 0.9)


def test_drift_is_relative_to_the_students_size():
    a, b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    with torch.no_grad():
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            p.copy_(q * 1.5)
    assert drift(a, b) == pytest.approx(0.5)
