"""From config to loop: cadences, schedules, precision, and what an artifact says of its encoder."""

import dataclasses

import pyarrow as pa
import pytest

from ijepath.config import CONFIGS_DIR, GROUPS, AugmentConfig, RunConfig, resolve_global_batch
from ijepath.indexing.index import SlideIndex, write_index
from ijepath.settings import loop_settings, preprocessing, provenance, site_numbers
from pathray.config.load import fingerprint, load_config
from pathray.errors import UserError
from pathray.train.settings import LoopSettings


def load(*argv: str) -> RunConfig:
    config = load_config(RunConfig, argv, configs_dir=CONFIGS_DIR, groups=GROUPS).config
    return resolve_global_batch(config, 2)


def loop_settings_of(config: RunConfig) -> LoopSettings:
    return loop_settings(config, 2)


class FakePlan:
    """A plan's slide table and meta."""

    def __init__(self, **columns: list[str | None]) -> None:
        self.sources, self.meta = pa.table(columns), {"sampling_stratum_key": "organ"}


def sites(*argv: str, **columns: list[str | None]) -> object:
    config = load("optimization.total_images_budget=100", "site.adversarial=true", *argv)
    return site_numbers(config, FakePlan(**columns))


def test_sites_are_numbered_by_name_and_unknown_ones_left_out():
    found = sites(site=["b", "a", None, "b"])
    assert (found.numbers, found.names, found.count) == ([1, 0, -1, 1], ["a", "b"], 2)
    found = sites("site.key=organ", stratum_id=["lung", "breast"])
    assert found.numbers == [1, 0]
    assert site_numbers(load("optimization.total_images_budget=100"), FakePlan()) is None


def test_sites_come_from_the_slide_index_where_the_plan_does_not_know_them(tmp_path):
    path = str(tmp_path / "slides.parquet")
    rows = tuple({"slide_id": i, "status": "ok", "site": s} for i, s in (("x", "a"), ("y", "b")))
    write_index(path, SlideIndex(rows, ("site",)))
    found = sites(f"data.slide_metadata_parquet={path}", slide_id=["y", "x"])
    assert found.numbers == [1, 0]
    with pytest.raises(UserError, match=r"site\.key"):
        sites(f"data.slide_metadata_parquet={path}", "site.key=hospital", slide_id=["y", "x"])


def test_one_site_is_nothing_to_separate():
    with pytest.raises(UserError, match="two sites"):
        sites(site=["a", "a"])


def test_cadences_are_whole_steps_and_the_finest_log_cadence_wins():
    base = ("optimization.total_images_budget=1000", "data.batch_size_per_gpu=16", "training.log_every=500")
    loop = loop_settings_of(load(*base, "training.save_every=400"))
    assert (loop.global_batch, loop.micro_batch, loop.total_images) == (32, 16, 1024)
    assert (loop.log_every, loop.snapshot_every, loop.save_every) == (512, 416, 0)
    assert loop_settings_of(load(*base, "logging.step_log_every_images=0.1")).log_every == 128
    assert loop_settings_of(load(*base, "logging.step_log_every_images=96")).log_every == 96
    debug = ("logging.performance_debug.enable=true", "logging.performance_debug.log_every_images=64")
    assert loop_settings_of(load(*base, *debug)).log_every == 64
    assert loop_settings_of(load(*base, "checkpoint.latest_every=100")).save_every == 128


def test_deterministic_kernels_can_be_asked_for_and_may_change_on_resume():
    base = ("optimization.total_images_budget=1000", "data.batch_size_per_gpu=16")
    plain, asked = load(*base), load(*base, "optimization.deterministic=true")
    assert (loop_settings_of(plain).deterministic, loop_settings_of(asked).deterministic) == (False, True)
    assert fingerprint(plain)["hash"] == fingerprint(asked)["hash"]


def test_the_tuning_cadence_replaces_the_snapshots_when_tuning_is_on():
    loop = loop_settings_of(load("--config", "pathorob_camelyon", "tuning.tune_every=320"))
    assert loop.snapshot_every == 320 and loop.poll_every_steps == 1
    assert loop_settings_of(load("--config", "pathorob_camelyon", "tuning.enable=false")).snapshot_every == 1_000_000


def test_schedules_start_peak_and_end_where_the_config_says():
    optim = loop_settings_of(load("optimization.total_images_budget=6400", "optimization.clip_grad=2")).optim["model"]
    total = 100
    assert [optim.lr(s, total) for s in (0, 10, 99)] == pytest.approx([2e-5, 2e-4, 1e-6])
    assert [optim.weight_decay(s, total) for s in (0, 99)] == pytest.approx([0.04, 0.1])
    assert optim.clip == 2 and optim.betas == (0.9, 0.999)


def test_a_cpu_computes_in_float32_whatever_the_config_hopes_for(monkeypatch):
    config = load("optimization.total_images_budget=100")
    plain = load("optimization.total_images_budget=100", "model.use_bfloat16=false")
    found = {}
    for kind in ("cpu", "cuda"):
        device = type("D", (), {"kind": kind})
        monkeypatch.setattr("pathray.train.from_config.Device.of", lambda accelerator, device=device: device)
        found[kind] = [loop_settings(each, 2).precision for each in (config, plain)]
    assert found == {"cpu": ["fp32", "fp32"], "cuda": ["bf16", "fp32"]}


def test_an_artifact_says_what_its_encoder_expects_and_where_it_comes_from():
    config = load("profile=ctx1p0_tgt0p5_fov512um_k4", "optimization.total_images_budget=100")
    assert preprocessing(config)["size"] == 256 and preprocessing(config)["mpp"] == 0.5
    augmented = dataclasses.replace(config, augment=AugmentConfig(normalise_brightness=True, normalise_frequency=0.5))
    assert preprocessing(augmented)["normalise_frequency"] == 0.5 and "normalise_brightness" in preprocessing(augmented)
    said = provenance(config)
    assert said["profile"] == "ctx1p0_tgt0p5_fov512um_k4"
    assert said["config"]["optimization.global_batch"] == 64 and "output" not in said["config"]


def test_with_windows_of_few_slides_the_recent_units_are_many_windows():
    base = ("optimization.total_images_budget=1000", "data.batch_size_per_gpu=16")
    assert loop_settings_of(load(*base)).judge_recent == 4096
    assert loop_settings_of(load(*base, "data.slide_window=8192")).judge_recent == 16 * 8192
