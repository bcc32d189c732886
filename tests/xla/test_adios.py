"""ADIOS on XLA, SPMD over four devices: each image is contrasted with those of the other devices too, the CPU's numbers
come out in both phases, and all graphs are those of the first steps."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from adios.config import MaskModelSettings, OptimizationConfig, StudentConfig
from adios.recipe import MASK, STUDENT, AdiosRecipe
from adios.settings import loop_settings
from tests.builders.runs.adios_run import config, stream
from tests.builders.small import losses, train

G = 8
STEPS = {"adios": 5, "vit_unet": 3}  # the latter's up-path is as wide as a large model's, and slow here

# How far weights may end from a CPU's, as a share of how far they moved (L2 over a network), beside what was seen.
# AdamW makes whole steps of gradients that are nothing but rounding, and the wide up-path of vit_unet has many of them:
# its weights end 1e-2 apart on a CPU alone, too, when they begin 1e-7 apart (the others 1e-5 to 3e-5).
APART = {
    ("adios", "student"): 1e-4,  # 4e-6, 5e-8 of the weights themselves
    ("adios", "mask_model"): 2e-4,  # 1e-5, 5e-8
    ("vit_unet", "student"): 1e-4,  # 9e-6, 9e-8
    ("vit_unet", "mask_model"): 5e-2,  # 5e-3, 5e-5
}


def joined(state, names):
    return torch.cat([state[name].double().ravel() for name in names])


def small_run(*, drop_path, precision="fp32", steps=4, **changes):
    """Two images per device."""
    return config(
        batch_size_per_gpu=G,
        total_iterations=steps,
        student=StudentConfig(head=[16, 16, 8], drop_path=drop_path),
        mask_model=MaskModelSettings(channels=8, dim=16, depth=4, heads=1, drop_path=drop_path),
        optimization=OptimizationConfig(warmup_iterations=2, precision=precision),
        **changes,
    )


def recipe_of(run_config, device):
    """ADIOS' own recipe, but for LayerScale, which begins at 1 in place of 0.1: a fresh encoder sees all images alike,
    so that contrasts are of the fourth digits of its numbers, and their rounding is a thousand times as large."""
    recipe = AdiosRecipe(run_config, device.gather_sum_grad, device.rank)
    with torch.no_grad():
        for name, parameter in recipe.modules.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(1.0)
    return recipe


def run_adios(run_config, device):
    """All ranks look at every step. `precision` is stated, because settings of a CPU would have none other."""
    settings = replace(
        loop_settings(run_config, 1), log_every=G, poll_every_steps=1, precision=run_config.optimization.precision
    )
    return train(recipe_of(run_config, device), stream(run_config), settings, device)


@pytest.fixture(scope="module", params=list(STEPS))
def undropped(request):
    """XLA draws other random numbers than a CPU: nothing is dropped where the two are compared."""
    return small_run(drop_path=0.0, mask_model_type=request.param, steps=STEPS[request.param])


@pytest.fixture(scope="module")
def whole(undropped, xla):
    return run_adios(undropped, xla)


@pytest.fixture(scope="module")
def reference(undropped, cpu):
    return run_adios(undropped, cpu)


def test_both_networks_are_trained_as_a_cpu_trains_them(whole, reference, undropped, cpu):
    (ticks, _, (tensors, _)), (expected_ticks, _, (expected, _)) = whole, reference
    assert [t.step for t in ticks] == list(range(1, undropped.total_iterations + 1)) and ticks[-1].end == "budget"
    kind = undropped.mask_model_type
    first = recipe_of(undropped, cpu).modules.state_dict(prefix="model.")
    for network in (STUDENT, "mask_model"):
        names = [name for name in first if name.startswith(f"model.{network}.")]
        before, found, wanted = (joined(state, names) for state in (first, tensors, expected))
        moved, apart = float((wanted - before).norm()), float((found - wanted).norm())
        assert apart < APART[kind, network] * moved, (network, apart, moved)
        assert float((wanted - before).abs().max()) > 1e-4, network
    np.testing.assert_allclose(losses(ticks), losses(expected_ticks), rtol=1e-5)
    assert losses(ticks)[0] - losses(ticks)[-1] > 0.1, "it learned something to compare"


def test_losses_and_statistics_of_both_phases_are_those_of_a_cpu(whole, reference):
    for tick, expected in zip(whole[0], reference[0], strict=True):
        for name in (f"loss/{MASK}", "loss_whole", "loss_crops", "sparsity_penalty", "mask_mean/0", "mask_overlap"):
            assert tick.metrics[name] == pytest.approx(expected.metrics[name], rel=1e-5), (tick.step, name)
        for name in (f"grad_norm/{STUDENT}", f"grad_norm/{MASK}", "feature_std", "feature_rankme"):
            assert tick.metrics[name] == pytest.approx(expected.metrics[name], rel=1e-3), (tick.step, name)


def test_nothing_is_compiled_after_the_second_step(whole, record_property):
    ticks, compilations, _ = whole
    record_property("compilations", compilations)
    print(f"compilations of ADIOS after each step: {compilations}")
    assert compilations[0] > 0 and len(set(compilations[1:])) == 1, compilations
    assert len({t.metrics["temperature"] for t in ticks}) == len(ticks), "a temperature of its own at every step"


def test_bfloat16_with_dropped_paths_gives_finite_losses_in_both_phases_without_new_graphs(xla):
    """The mask model's turn comes every second step: its graphs are those of the second."""
    run_config = small_run(drop_path=0.2, precision="bf16", steps=4, mask_update_freq=2)
    ticks, compilations, (tensors, _) = run_adios(run_config, xla)
    assert len(set(compilations[1:])) == 1, compilations
    assert all(math.isfinite(loss) for loss in losses(ticks))
    assert [math.isfinite(t.metrics.get(f"loss/{MASK}", math.nan)) for t in ticks] == [False, True] * 2
    assert not any("bad_steps" in t.metrics for t in ticks), "none was skipped"
    assert {t.dtype for n, t in tensors.items() if n.startswith("model.")} == {torch.float32}
