"""OCT on XLA, SPMD over four devices: the CPU's numbers, and no new graph after the third step, saves included."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from oct.assembly import build
from oct.sections import MaskConfig, ModelConfig
from pathray.data.plan import Plan
from tests.builders.oct.volumes import PATCH, SmallReader, small_budget, small_config, write_plan
from tests.builders.small import losses, stream, train

G, MICRO, STEPS = 8, 4, 5
OTHERS = {"loss": "dense", "positions": "rope", "regulariser": "sigreg"}
KINDS: dict[str, dict[str, Any]] = {
    "defaults": {},  # block masks, normalised MSE
    "others": {"mask": MaskConfig(kind="vjepa"), "model": OTHERS, "micro": G},
}


def config_of(kind: str) -> Any:
    changes = dict(KINDS[kind])
    model = ModelConfig(name="vit_micro", patch_size=PATCH, pred_dim=48, pred_depth=1, **changes.pop("model", {}))
    micro = changes.pop("micro", MICRO)
    budget = small_budget(total_images=G * STEPS, global_batch=G, batch_size_per_gpu=micro)
    return small_config(model=model, optimization=budget, **changes)


def run_oct(config: Any, plan: Plan, device: Any, **how: Any) -> Any:
    reader = SmallReader(config)
    parts = build(config, plan, 1, reader, reader, "digest")
    parts.recipe.gather = device.gather_sum_grad
    settings = replace(parts.settings, log_every=G, poll_every_steps=1, precision="fp32")
    assert parts.watch is not None, "the plan has held-out volumes"
    parts.watch.device = device
    return train(parts.recipe, stream(parts, plan), settings, device, watch=parts.watch, **how)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plan]:
    yield write_plan(tmp_path_factory.mktemp("oct") / "plan")


@pytest.fixture(scope="module", params=list(KINDS))
def whole(request, volumes, xla):
    """A config, and what a run with it did: ticks, compilations after each step and after its state was read."""
    config = config_of(request.param)
    ticks, compilations, state = run_oct(config, volumes, xla)
    return config, ticks, [*compilations, xla.compile_count()], state


def test_nothing_is_compiled_after_the_third_step_nor_by_a_save(whole):
    _, ticks, compilations, (_, meta) = whole
    assert meta["images_seen"] == G * STEPS and ticks[-1].end == "budget"
    assert compilations[0] > 0 and len(set(compilations[2:])) == 1, compilations


def test_steps_agree_with_a_cpu(whole, volumes, cpu):
    config, ticks, _, (tensors, _) = whole
    reference, _, (expected, _) = run_oct(config, volumes, cpu)
    np.testing.assert_allclose(losses(ticks), losses(reference), rtol=5e-3)
    assert losses(ticks)[-1] < losses(ticks)[0], "it learned something to compare"
    for name in ("target_rankme", "explained", "teacher_student_drift"):
        assert ticks[-1].metrics[name] == pytest.approx(reference[-1].metrics[name], rel=2e-2, abs=1e-3), name
    teacher = [name for name in expected if name.startswith("model.teacher")]
    assert teacher and max(float((tensors[n] - expected[n]).abs().max()) for n in teacher) < 1e-3


@pytest.mark.parametrize("whole", ["defaults"], indirect=True)
def test_a_run_resumes_to_the_bit(whole, volumes, xla):
    config, _, _, (tensors, _) = whole
    half = run_oct(config, volumes, xla, stop_at=2)[2]
    resumed = run_oct(config, volumes, xla, state=half)[2][0]
    assert tensors.keys() == resumed.keys()
    assert all(torch.equal(tensors[name], resumed[name]) for name in tensors)
