"""I-JEPATH and ADIOS on a GPU without Ray: a CPU's numbers in float32, half precision, resumes to the bit, no waits."""

import math
import warnings
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from adios.config import MaskModelSettings, OptimizationConfig, StudentConfig
from adios.recipe import MASK, STUDENT, AdiosRecipe
from adios.settings import loop_settings
from pathray.nn import attention
from pathray.store import checkpoint
from pathray.train.loop import LoopSettings
from tests.builders import small
from tests.builders.runs import adios_run
from tests.builders.small import losses, train

G = 8


class Science(NamedTuple):
    """What `pathray.train.loop.run` wants, made anew for every run."""

    recipe: object
    batches: object
    settings: LoopSettings

    def train(self, device, **how):
        return train(self.recipe, self.batches, self.settings, device, **how)


def ijepath(plan, precision="fp32", **changes):
    parts = small.assemble(small.config(), plan, 1)
    settings = replace(parts.settings, precision=precision, **changes)
    return Science(parts.recipe, small.stream(parts, plan), settings)


def adios(kind, precision="fp32", *, steps=8, drop_path=0.0, layer_scale=1.0, head=(16, 16, 8), **changes):
    """Eight images a step of a student whose LayerScale begins at 1 in place of 0.1: a fresh encoder sees all images
    alike, and rounding is a thousand times as large a part of their contrasts."""
    config = adios_run.config(
        batch_size_per_gpu=G,
        total_iterations=steps,
        mask_model_type=kind,
        student=StudentConfig(head=[*head], drop_path=drop_path),
        mask_model=MaskModelSettings(channels=8, dim=16, depth=4, heads=1, drop_path=drop_path),
        optimization=OptimizationConfig(warmup_iterations=2, precision=precision),
    )
    recipe = AdiosRecipe(config)
    with torch.no_grad():
        for name, parameter in recipe.modules.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(layer_scale)
    values = {"log_every": G, "poll_every_steps": 1, "precision": precision, **changes}
    return Science(recipe, adios_run.stream(config), replace(loop_settings(config, 1), **values))


def made(name, plan, precision="fp32", **changes):
    """Eight steps; in fp16 more of ADIOS, and with the student as it begins: the other's gradients are in thousands."""
    if name == "ijepath":
        return ijepath(plan, precision, **changes)
    fp16 = {"steps": 16, "layer_scale": 0.1, "head": (256, 256, 64)} if precision == "fp16" else {}
    return adios(name, precision, **fp16, **changes)


def apart(found, expected, before, network):
    """‖found − expected‖ over how far training moved the network's weights."""

    def joined(state):
        names = [n for n in before if n.startswith(f"model.{network}.")]
        return torch.cat([state[n].double().cpu().ravel() for n in names])

    moved = float((joined(expected) - joined(before)).norm())
    assert moved > 0, network
    return float((joined(found) - joined(expected)).norm()) / moved


NETWORKS = {"ijepath": ("student", "predictor"), "adios": (STUDENT, "mask_model"), "vit_unet": (STUDENT, "mask_model")}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_float32_trains_as_a_cpu_does(name, plan, gpu, cpu, record_property):
    first = made(name, plan)
    before = {f"model.{k}": v.clone() for k, v in first.recipe.modules.state_dict().items()}
    ticks, _, (found, meta) = first.train(gpu)
    expected_ticks, _, (expected, _) = made(name, plan).train(cpu)
    assert meta["ran_on"]["kind"] == "cuda" and ticks[-1].end == "budget"
    np.testing.assert_allclose(losses(ticks), losses(expected_ticks), rtol=1e-3, atol=1e-4)
    assert max(losses(ticks)) - min(losses(ticks)) > 0.05, "it learned something to compare"
    for network in NETWORKS[name]:
        share = apart(found, expected, before, network)
        record_property(network, share)
        print(f"{name}: weights of {network} end {share:.1e} of their way from a CPU's")
        assert share < 0.1, network  # AdamW makes whole steps of gradients that are nothing but rounding
    if name != "ijepath":
        for tick, other in zip(ticks[:2], expected_ticks, strict=False):
            for key in (f"loss/{MASK}", "sparsity_penalty", "mask_mean/0", "feature_std", f"grad_norm/{STUDENT}"):
                assert tick.metrics[key] == pytest.approx(other.metrics[key], rel=1e-3), (tick.step, key)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_half_precision_trains_close_to_float32_and_keeps_float32_weights(name, precision, plan, gpu):
    reference = made(name, plan).train(gpu)[0]
    full = losses(reference)
    ticks, _, (tensors, _) = made(name, plan, precision).train(gpu)
    assert {t.dtype for n, t in tensors.items() if n.startswith("model.") and t.is_floating_point()} == {torch.float32}
    if precision == "bf16" or name == "ijepath":
        assert losses(ticks) == pytest.approx(full, rel=0.1, abs=0.02) and losses(ticks) != full
        assert ticks[0].metrics["grad_norm"] == pytest.approx(reference[0].metrics["grad_norm"], rel=0.1)
    if precision == "bf16":
        return
    done = {n: int(t) for n, t in tensors.items() if n.startswith("optimizer.") and n.endswith(".steps")}
    print(f"{name} in fp16: {done} steps of {len(ticks)} fitted the loss scale")
    assert done and all(steps >= len(ticks) / 4 for steps in done.values()), done
    assert all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point())


def test_crops_of_several_sizes_attend_in_a_kernel_for_packed_sequences(gpu, monkeypatch):
    name = attention.attention_backend(gpu.torch_device, torch.bfloat16, 16)
    print(f"packed attention on {torch.cuda.get_device_name()}: {name}")
    if name == "sdpa":
        pytest.skip(f"no kernel for packed sequences runs here: torch {torch.__version__}")
    calls, kernel = [], attention._PACKED[name]
    monkeypatch.setitem(attention._PACKED, name, lambda *args: calls.append(args[3]) or kernel(*args))
    adios("adios", "bf16", steps=3).train(gpu)
    assert calls and all(len(set(lengths)) == 2 for lengths in calls), "whole views and crops in one sequence"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_run_that_goes_on_from_its_checkpoint_ends_bit_equal(name, precision, plan, gpu, tmp_path):
    changes = {"deterministic": True} if name == "ijepath" else {"deterministic": True, "drop_path": 0.2}
    try:
        _, _, (whole, _) = made(name, plan, precision, **changes).train(gpu)
        _, _, half = made(name, plan, precision, **changes).train(gpu, stop_at=3)
        saved = checkpoint.save(str(tmp_path), "small-latest", *half)
        loaded = checkpoint.load(saved.path)
        ticks, _, (resumed, _) = made(name, plan, precision, **changes).train(gpu, state=loaded)
    finally:
        torch.use_deterministic_algorithms(False)
    assert ticks[0].step == 4 and ticks[-1].end == "budget"
    assert precision == "fp16" or all(math.isfinite(loss) for loss in losses(ticks))
    assert whole.keys() == resumed.keys()
    assert [n for n in whole if not torch.equal(whole[n], resumed[n])] == []


def test_a_convolution_in_float32_is_not_one_in_tf32(gpu):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 64, 32, 32, generator=generator)
    weight = torch.randn(64, 64, 3, 3, generator=generator)
    found = torch.nn.functional.conv2d(x.to(gpu.torch_device), weight.to(gpu.torch_device)).cpu().double()
    expected = torch.nn.functional.conv2d(x.double(), weight.double())
    assert float((found - expected).norm() / expected.norm()) < 1e-5, "TF32 is some 3e-4 off"


def test_a_checkpoint_of_a_gpu_goes_on_on_a_cpu_and_back(plan, gpu, cpu):
    _, _, (whole, _) = ijepath(plan).train(cpu)
    _, _, there = ijepath(plan).train(gpu, stop_at=3)
    _, _, back = ijepath(plan).train(cpu, state=there, stop_at=6)
    ticks, _, (found, _) = ijepath(plan).train(gpu, state=back)
    assert ticks[-1].end == "budget"
    for name in whole:
        torch.testing.assert_close(found[name].cpu(), whole[name], rtol=0, atol=1e-3, msg=name)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_no_step_waits_for_the_device(name, plan, gpu):
    """PyTorch warns at each operation that makes the host wait. The end of a run has some; twice the steps, no more."""

    def waits(steps):
        science = made(name, plan, "bf16", log_every=0, poll_every_steps=1000)
        assert steps * G <= science.settings.total_images
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                train(science.recipe, science.batches, science.settings, gpu, stop_at=steps)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return [f"{w.filename}:{w.lineno}" for w in seen if "synchroniz" in str(w.message).lower()]

    waits(3)  # what the first run of a process makes once
    few, many = waits(3), waits(7)
    assert few, "copying the state to the host waits, or nothing was listened to"
    assert len(many) == len(few), sorted(set(many))
