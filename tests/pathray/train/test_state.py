"""What a checkpoint holds, and what it is refused for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pathray.device import Device
from pathray.errors import UserError
from pathray.train.loop import run
from pathray.train.state import TrainState
from tests.builders.runs.recipes import Regression, TwoPhases, settings, stream

DEVICE = Device.of("cpu")


def trained() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    config = settings(total_images=12)
    state = list(run(Regression(), stream(config), config, device=DEVICE))[-1].state
    return {k: v.clone() for k, v in state.tensors().items()}, state.meta()


def test_another_model_is_refused_by_the_names_of_its_tensors_and_nothing_is_loaded() -> None:
    tensors, meta = trained()
    config = settings(phases=("student", "adversary"))
    state = TrainState(TwoPhases(), config, DEVICE)
    before = {k: v.clone() for k, v in state.tensors().items()}
    with pytest.raises(UserError, match=r"another model: model.student.0.weight: missing"):
        state.load(tensors, meta)
    assert all(torch.equal(v, before[k]) for k, v in state.tensors().items()) and state.images_seen == 0


def test_another_shape_is_refused_by_name_and_shapes() -> None:
    tensors, meta = trained()
    recipe = Regression()
    wide = nn.Linear(9, 1)
    recipe.modules["layer"], recipe.params["model"] = wide, list(wide.named_parameters())
    state = TrainState(recipe, settings(), DEVICE)
    with pytest.raises(UserError, match=r"model.layer.weight: float32\[1, 6\] in the checkpoint, float32\[1, 9\] here"):
        state.load(tensors, meta)


@pytest.mark.parametrize(("key", "value"), [("seed", 4), ("global_batch", 12)])
def test_another_seed_or_global_batch_is_refused(key: str, value: int) -> None:
    tensors, meta = trained()
    state = TrainState(Regression(), settings(**{key: value}), DEVICE)
    with pytest.raises(UserError, match=f"another run .*key: {key}"):
        state.load(tensors, meta)


def test_everything_comes_back_and_is_a_copy() -> None:
    tensors, meta = trained()
    state = TrainState(Regression(), settings(total_images=12), DEVICE)
    state.load(tensors, meta)
    assert state.images_seen == 12 and state.step == 2
    assert {k: v.tolist() for k, v in state.tensors().items()} == {k: v.tolist() for k, v in tensors.items()}
    state.recipe.modules["layer"].weight.data.zero_()
    assert tensors["model.layer.weight"].abs().sum() > 0


def test_a_phase_may_not_train_what_no_checkpoint_holds() -> None:
    recipe = Regression()
    recipe.params["model"].append(("stray", nn.Parameter(torch.zeros(2))))
    with pytest.raises(AssertionError, match="stray"):
        TrainState(recipe, settings(), DEVICE)


def test_notes_that_change_while_a_checkpoint_is_written_are_not_in_it() -> None:
    """A validation after the save would else count twice for who resumes."""
    state = TrainState(Regression(), settings(), Device.of("cpu"))
    state.notes["selection"] = {"evals": 1, "seen": [1]}
    saved = state.meta()
    state.notes["selection"]["seen"].append(2)
    state.notes["selection"] = {"evals": 2}
    assert saved["notes"] == {"selection": {"evals": 1, "seen": [1]}}
