"""What the loop is told is checked before it starts."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from pathray.errors import UserError
from pathray.optim.lars import LARS
from pathray.optim.sgd import SGD
from pathray.train.settings import PhaseOptim
from tests.builders.runs.recipes import settings


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"kind": "adam"}, "optimizer"), ({"lars_clip": "both"}, "lars_clip"), ({"clip": 0.0}, "clip")],
)
def test_a_senseless_optimizer_is_refused_with_its_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as e:
        PhaseOptim(**changes)
    assert e.value.where["key"] == key


@pytest.mark.parametrize(("key", "value"), [("precision", "fp8"), ("grad_sync", "ddp")])
def test_a_senseless_setting_is_refused_with_its_key(key: str, value: str) -> None:
    with pytest.raises(UserError) as e:
        settings(**{key: value})
    assert e.value.where["key"] == key


def test_a_budget_of_broken_steps_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="whole steps"):
        settings(total_images=61)


def test_micro_batches_of_a_rank_are_its_share_of_the_step() -> None:
    config = settings(global_batch=24, micro_batch=2, total_images=240)
    assert [config.micros_per_step(w) for w in (1, 2, 3, 4, 6, 12)] == [12, 6, 4, 3, 2, 1]
    with pytest.raises(UserError, match="must divide"):
        config.micros_per_step(5)


def test_lars_stands_in_front_of_the_named_optimizer() -> None:
    layer = nn.Linear(3, 2)
    built = PhaseOptim(kind="sgd", lars=True, lars_clip="larc", lars_trust=0.01).build(layer.named_parameters())
    assert isinstance(built, LARS) and isinstance(built.inner, SGD) and (built.clip, built.trust) == ("larc", 0.01)
