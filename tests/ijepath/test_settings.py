"""From config to loop: cadences, schedules, precision, and what an artifact says of its encoder."""

import pytest

from core.config import load_config
from ijepath.config import CONFIGS_DIR, GROUPS, RunConfig, resolve_global_batch
from ijepath.settings import loop_settings, precision, preprocessing, provenance


def load(*argv: str) -> RunConfig:
    config = load_config(RunConfig, argv, configs_dir=CONFIGS_DIR, groups=GROUPS).config
    return resolve_global_batch(config, 2)


def test_cadences_are_whole_steps_and_the_finest_log_cadence_wins():
    base = ("optimization.total_images_budget=1000", "data.batch_size_per_gpu=16", "training.log_every=500")
    loop = loop_settings(load(*base, "training.save_every=400"))
    assert (loop.global_batch, loop.micro_batch, loop.total_images) == (32, 16, 1024)
    assert (loop.log_every, loop.snapshot_every, loop.save_every) == (512, 416, 32)
    assert loop_settings(load(*base, "logging.step_log_every_images=0.1")).log_every == 128
    assert loop_settings(load(*base, "logging.step_log_every_images=96")).log_every == 96
    debug = ("logging.performance_debug.enable=true", "logging.performance_debug.log_every_images=64")
    assert loop_settings(load(*base, *debug)).log_every == 64
    assert loop_settings(load(*base, "checkpoint.latest_every=100")).save_every == 128


def test_the_tuning_cadence_replaces_the_snapshots_when_tuning_is_on():
    loop = loop_settings(load("--config", "pathorob_camelyon", "tuning.tune_every=320"))
    assert loop.snapshot_every == 320 and loop.poll_every_steps == 1
    assert loop_settings(load("--config", "pathorob_camelyon", "tuning.enable=false")).snapshot_every == 1_000_000


def test_schedules_start_peak_and_end_where_the_config_says():
    optim = loop_settings(load("optimization.total_images_budget=6400", "optimization.clip_grad=2")).optim["model"]
    total = 100
    assert [optim.lr(s, total) for s in (0, 10, 99)] == pytest.approx([2e-5, 2e-4, 1e-6])
    assert [optim.weight_decay(s, total) for s in (0, 99)] == pytest.approx([0.04, 0.1])
    assert optim.clip == 2 and optim.betas == (0.9, 0.999)


def test_a_cpu_computes_in_float32_whatever_the_config_hopes_for(monkeypatch):
    config = load("optimization.total_images_budget=100")
    monkeypatch.setattr("ijepath.settings.Device.of", lambda accelerator: type("D", (), {"kind": "cpu"}))
    assert precision(config) == "fp32"
    monkeypatch.setattr("ijepath.settings.Device.of", lambda accelerator: type("D", (), {"kind": "cuda"}))
    assert precision(config) == "bf16"
    assert precision(load("optimization.total_images_budget=100", "model.use_bfloat16=false")) == "fp32"


def test_an_artifact_says_what_its_encoder_expects_and_where_it_comes_from():
    config = load("profile=ctx1p0_tgt0p5_fov512um_k4", "optimization.total_images_budget=100")
    assert preprocessing(config)["size"] == 256 and preprocessing(config)["mpp"] == 0.5
    said = provenance(config)
    assert said["profile"] == "ctx1p0_tgt0p5_fov512um_k4"
    assert said["config"]["optimization.global_batch"] == 64 and "output" not in said["config"]
