"""The run config: defaults, layers, identity, and a clear word for every senseless value."""

import dataclasses

import pytest
from omegaconf import OmegaConf

from ijepath.config import CONFIGS_DIR, GROUPS, RunConfig, resolve_global_batch
from ijepath.data import ReaderConfig
from pathray.config.load import fingerprint, list_differences, load_config
from pathray.errors import UserError
from pathray.evaluation.settings import poll_every_steps

PROFILE = "profile=ctx1p0_tgt0p5_fov512um_k4"
BUDGET = "optimization.total_images_budget=1000"


def load(*argv) -> RunConfig:
    return load_config(RunConfig, argv, configs_dir=CONFIGS_DIR, groups=GROUPS).config


def test_the_shipped_defaults_file_equals_the_schema():
    shipped = load("--config", "defaults", BUDGET)
    assert dataclasses.asdict(shipped) == dataclasses.asdict(load(BUDGET))
    keys = OmegaConf.to_container(OmegaConf.load(CONFIGS_DIR / "defaults.yaml"))
    assert list(keys) == [f.name for f in dataclasses.fields(RunConfig)]
    for section in (
        "data",
        "model",
        "mask",
        "scales",
        "augment",
        "site",
        "optimization",
        "checkpoint",
        "tuning",
        "scaling",
    ):
        assert set(keys[section]) == {f.name for f in dataclasses.fields(getattr(shipped, section))}


def test_a_profile_merges_into_data_and_a_key_wins_over_it():
    config = load(PROFILE, BUDGET, "data.targets_per_context=2")
    assert config.data.profile_id == "ctx1p0_tgt0p5_fov512um_k2", "what it is called is what it is"
    assert (config.data.context_px, config.data.target_px, config.data.targets_per_context) == (512, 256, 2)


@pytest.mark.parametrize(
    ("argv", "fov", "name"),
    [
        ((PROFILE,), 512.0, "ctx1p0_tgt0p5_fov512um_k4"),
        ((PROFILE, "data.seed=7", "data.min_tissue_fraction=0.5"), 512.0, "ctx1p0_tgt0p5_fov512um_k4"),
        (("--config", "smoke"), 128.0, ""),
        (("--config", "smoke", PROFILE), 512.0, "ctx1p0_tgt0p5_fov512um_k4"),
        ((PROFILE, "--config", "smoke"), 128.0, "ctx1p0_tgt0p5_fov128um_k4"),
        ((PROFILE, "data.context_fov_um=256"), 256.0, "ctx1p0_tgt0p5_fov256um_k4_t128um"),
        ((PROFILE, "data.target_fov_um=64"), 512.0, "ctx1p0_tgt0p5_fov512um_k4_t64um"),
        ((PROFILE, "--config", "smoke", "data.profile_id=mine"), 128.0, "mine"),
    ],
)
def test_the_profile_that_is_recorded_is_the_one_in_force_and_what_was_typed_last_wins(argv, fov, name):
    data = load(*argv, BUDGET).data
    assert (data.context_fov_um, data.profile_id) == (fov, name)


def test_a_profile_of_the_users_own_loses_its_name_where_its_geometry_is_changed(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("profile_id: own\ncontext_fov_um: 256\ntarget_fov_um: 64\n")
    assert load(f"profile={own}", BUDGET).data.profile_id == "own"
    assert load(f"profile={own}", BUDGET, "data.context_fov_um=256.0").data.profile_id == "own", "nothing is changed"
    assert load(f"profile={own}", BUDGET, "data.context_mpp=2").data.profile_id == "ctx2p0_tgt0p5_fov256um_k4"


def test_a_shipped_profile_does_not_reset_the_seed_of_a_run_config(tmp_path):
    run = tmp_path / "run.yaml"
    run.write_text("data: {seed: 7}\n")
    assert load("--config", str(run), PROFILE, BUDGET).data.seed == 7


@pytest.mark.parametrize("name", ["smoke", "tcga_prad_smoke", "pathorob_camelyon"])
def test_every_shipped_run_loads_and_opens_with_its_command(name):
    config = load("--config", name)
    assert config.logging.write_tag == name
    text = (CONFIGS_DIR / f"{name}.yaml").read_text()
    assert text.startswith("#") and "python -m ray_jobs.pretrain_ijepath" in text


OTHERS = ("defaults", "demo", "demo_robustness", "sweep_lr")  # every key; with keys of the job; a sweep's


@pytest.mark.parametrize("name", [p.stem for p in sorted(CONFIGS_DIR.glob("*.yaml")) if p.stem not in OTHERS])
def test_every_shipped_run_leaves_a_context_beside_its_targets(name):
    reader = ReaderConfig.of(resolve_global_batch(load("--config", name), 2))
    assert all(16 <= c.keep < k.geometry.grid**2 for c, k in zip(reader.counts, reader.kinds, strict=True))


def test_the_seeds_plugin_key_reaches_the_dataset():
    config = load("--config", "pathorob_camelyon", "tuning.plugins[0].datasets.camelyon.manifest_csv=m.csv")
    assert config.tuning.plugins[0].datasets["camelyon"].manifest_csv == "m.csv"
    assert config.tuning.plugins[0].datasets["camelyon"].neighbours == 11


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ("optimization.total_images_budget=many", "optimization.total_images_budget"),
        ("optimization.total_images_budget=-5", "optimization.total_images_budget"),
        ("optimization.total_images_budget=true", "optimization.total_images_budget"),
        ("optimization.total_images_budget={epoch: 3}", "optimization.total_images_budget"),
        ("logging.step_log_every_images=10%", "logging.step_log_every_images"),
        ("logging.step_log_every_images=-1", "logging.step_log_every_images"),
        ("optimization.ema=[1.0,0.9]", "optimization.ema"),
        ("optimization.warmup=1.5", "optimization.warmup"),
        ("data.insufficient_target_policy=skip", "data.insufficient_target_policy"),
        ("data.sampling_stratum_weights=equal", "data.sampling_stratum_weights"),
        ("data.low_anchor_pass_warning_threshold=9", "data.low_anchor_pass_warning_threshold"),
        ("data.min_target_tissue_fraction=0.05", "data.target_tissue_floor"),
        ("data.patch_size=0", "patch_size"),
        ("data.context_mpp=fine", "data.context_mpp"),
        ("model.name=vit_enormous", "model.name"),
        ("model.pred_heads=5", "model.pred_heads"),
        ("mask.outside_targets=5", "mask.outside_targets"),
        ("mask.context_scale=0.5", "mask.context_scale"),
        ("scales.same_resolution_ratio=0.7 & scales.reverse_ratio=0.7", "scales.reverse_ratio"),
        ("scales.target_scale=[2.0,1.0]", "scales.target_scale"),
        ("training.save_every=0", "training.save_every"),
        ("tuning.enable=true", "tuning.plugins"),
        ("tuning.early_stopping.selection.mode=best", "tuning.early_stopping.selection.mode"),
        ("data.sed=1", "data.sed"),
    ],
)
def test_a_senseless_value_is_refused_by_its_key(argument, key):
    with pytest.raises(UserError) as error:
        load(BUDGET, *argument.split(" & "))
    assert key in str(error.value)


def test_a_budget_is_required_and_may_be_images_epochs_or_iterations():
    with pytest.raises(UserError, match=r"optimization\.total_images_budget"):
        load()
    assert load("optimization.total_images_budget=1e4").optimization.total_images_budget == 10_000
    assert load("optimization.total_images_budget={epochs: 2}").optimization.total_images_budget == {"epochs": 2}


def test_global_batch_comes_from_the_first_start_and_stays():
    config = load(BUDGET, "data.batch_size_per_gpu=8")
    first = resolve_global_batch(config, workers=3)
    assert (first.optimization.global_batch, first.optimization.micro_batch) == (24, 8)
    resumed = resolve_global_batch(config, workers=2, before=24)
    assert (resumed.optimization.global_batch, resumed.optimization.micro_batch) == (24, 12)
    assert not list_differences(fingerprint(first), fingerprint(resumed))
    explicit = resolve_global_batch(load(BUDGET, "optimization.global_batch=64"), workers=2)
    assert explicit.optimization.global_batch == 64


def test_workers_times_micro_batch_must_divide_the_global_batch():
    with pytest.raises(UserError, match="divide") as error:
        resolve_global_batch(load(BUDGET, "optimization.global_batch=64", "optimization.micro_batch=24"), 2)
    assert "[1, 2, 4, 8, 16, 32]" in str(error.value)
    with pytest.raises(UserError, match=r"divide.*optimization\.global_batch.*a multiple of 3"):
        resolve_global_batch(load(BUDGET, "optimization.global_batch=64"), 3)


def test_where_and_how_a_run_is_done_is_placement_and_what_it_learns_is_identity():
    base = load(BUDGET)
    moved = load(
        BUDGET, "output=/else", "data.threads=7", "data.slide_manifest_csv=x.csv", "data.batch_size_per_gpu=4",
        "logging.write_tag=b", "training.save_every=5", "optimization.micro_batch=2", "model.checkpointing=true",
        "checkpoint.keep_last_n=5", "tuning.tune_every=5", "data.decode_on=cluster", "data.max_corrupt_fraction=0.5",
        "optimization.max_bad_steps=99", "checkpoint.latest_minutes=1",
    )  # fmt: skip
    assert fingerprint(base) == fingerprint(moved)
    for change in ("data.seed=1", "optimization.lr=1e-3", "model.name=vit_tiny", "data.targets_per_context=3"):
        (key, _, _) = list_differences(fingerprint(base), fingerprint(load(BUDGET, change)))[0]
        assert key == change.split("=")[0]


def test_polling_follows_the_tuning_cadence():
    config = load(BUDGET, "tuning.tune_every=64000")
    assert poll_every_steps(config.tuning, 32) == 100
    assert poll_every_steps(load(BUDGET, "tuning.execution.poll_every_steps=7").tuning, 32) == 7


def test_a_regulariser_that_would_see_a_part_of_the_global_batch_is_refused_before_anything_is_prepared():
    words = ("optimization.total_images_budget=64", "model.regulariser=sigreg", "data.batch_size_per_gpu=8")
    config = load_config(
        RunConfig, [*words, "optimization.micro_batch=4"], configs_dir=CONFIGS_DIR, groups=GROUPS
    ).config
    with pytest.raises(UserError, match="model.regulariser=sigreg needs the whole global batch at once") as e:
        resolve_global_batch(config, 2)
    assert e.value.where["key"] == "optimization.micro_batch" and "8 images at a time, global_batch 16" in str(e.value)
    whole = load_config(RunConfig, words, configs_dir=CONFIGS_DIR, groups=GROUPS).config
    assert resolve_global_batch(whole, 2).optimization.micro_batch == 8
