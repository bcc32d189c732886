"""The run config: the published keys and defaults, what is refused and how, the global batch, and what is identity."""

from dataclasses import replace

import pytest

from adios.config import CONFIGS_DIR, OptimizationConfig, RunConfig, resolve
from adios.settings import check_networks, loop_settings, phase_optim
from pathray.config.load import fingerprint, load_config
from pathray.errors import UserError
from pathray.optim.schedules import Schedule
from pathray.train.settings import PhaseOptim
from tests.builders.runs.adios_run import config

PUBLISHED = {
    "arch": "vit_base", "patch_size": 16, "mask_model_type": "vit_unet", "num_masks": 3, "crops_per_mask": 1,
    "mask_update_freq": 1, "batch_size_per_gpu": 64, "total_iterations": 300_000, "lr": 5e-5, "optimizer_type": "adamw",
    "use_lars": False, "alpha_sparsity": 0.1, "sparsity_penalty_type": "inverse_sin", "initial_temp": 0.2,
    "final_temp": 0.05, "viz_freq": 500, "save_freq": 2000,
}  # fmt: skip


def test_the_published_flags_are_keys_with_their_defaults():
    found = RunConfig()
    assert {key: getattr(found, key) for key in PUBLISHED} == PUBLISHED
    assert (found.data.patch_px, found.data.image_size, found.data.mean[1], found.data.std[2]) == (
        448,
        224,
        0.5640,
        0.1389,
    )
    words = [f"{key}={str(value).lower()}" for key, value in PUBLISHED.items()]
    words += ["data_path=/patches", "output_dir=/out", "embed_dim=384", "depth=6", "num_heads=6"]
    loaded = load_config(RunConfig, words, configs_dir=CONFIGS_DIR).config
    assert (loaded.output, loaded.embed_dim, loaded.depth, loaded.num_heads) == ("/out", 384, 6, 6)


BAD = [
    ({"arch": "vit_gigantic"}, "arch", "vit_base"),
    ({"mask_model_type": "unet"}, "mask_model_type", "vit_unet"),
    ({"optimizer_type": "adam"}, "optimizer_type", "adamw | sgd"),
    ({"sparsity_penalty_type": "sin"}, "sparsity_penalty_type", "sinh_squared"),
    ({"num_masks": 1}, "num_masks", "2"),
    ({"sparsity_target": 1.5}, "sparsity_target", "between 0 and 1"),
    ({"patch_size": 15}, "data.image_size", "multiple of patch_size = 15"),
    ({"final_temp": 0.0}, "final_temp", "> 0"),
    ({"output": "a", "output_dir": "b"}, "output_dir", "one of the two"),
]


@pytest.mark.parametrize(("changes", "key", "expected"), BAD, ids=[next(iter(c)) for c, _, _ in BAD])
def test_a_senseless_value_is_refused_by_key(changes, key, expected):
    with pytest.raises(UserError) as error:
        RunConfig(**changes)
    assert error.value.where["key"] == key and expected in str(error.value)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"mask_model_type": "adios", "data": replace(RunConfig().data, image_size=240)}, "data.image_size"),
        ({"embed_dim": 100}, "heads"),
        ({"mask_model": replace(RunConfig().mask_model, depth=6)}, "mask_model.depth"),
        (
            {"optimization": replace(RunConfig().optimization, warmup_iterations=400_000)},
            "optimization.warmup_iterations",
        ),
    ],
)
def test_networks_and_schedules_that_cannot_be_built_are_refused_without_building_them(changes, key):
    with pytest.raises(UserError) as error:
        check_networks(RunConfig(**changes))
    assert error.value.where["key"] == key


def test_the_global_batch_is_stated_per_gpu_at_the_first_start_and_kept_afterwards():
    fresh = resolve(RunConfig(batch_size_per_gpu=8, total_iterations=10), workers=4)
    assert (fresh.global_batch, fresh.total_images, fresh.total_iterations) == (32, 320, 10)
    resumed = resolve(RunConfig(batch_size_per_gpu=8, total_iterations=10), workers=2, before=32)
    assert resumed.global_batch == 32 and loop_settings(resumed, 2).micro_batch == 16
    assert fingerprint(resumed)["hash"] == fingerprint(fresh)["hash"]
    with pytest.raises(UserError, match="global_batch.*32, workers 3"):
        resolve(RunConfig(), workers=3, before=32)
    with pytest.raises(UserError, match="global_batch"):
        resolve(RunConfig(batch_size_per_gpu=1), workers=1)


def test_a_budget_in_images_is_rounded_up_to_whole_steps():
    found = resolve(RunConfig(batch_size_per_gpu=8, total_images=100), workers=1)
    assert (found.total_images, found.total_iterations) == (104, 13)


def test_what_changes_the_weights_is_identity_and_what_does_not_is_placement():
    base = fingerprint(config())["hash"]
    for name, value in {"final_temp": 0.1, "num_masks": 2, "single_view": True, "seed": 1, "use_lars": True}.items():
        assert fingerprint(config(**{name: value}))["hash"] != base, name
    for name, value in {"viz_freq": 7, "save_freq": 9, "data_path": "x", "output": "y"}.items():
        assert fingerprint(config(**{name: value}))["hash"] == base, name


@pytest.mark.parametrize("clip", [None, 0.5])
def test_every_key_of_the_optimizer_reaches_it(clip):
    changed = OptimizationConfig(
        warmup_iterations=5, final_lr=0.02, weight_decay=0.3, betas=[0.8, 0.95], momentum=0.7,
        lars_trust=0.003, lars_clip="larc", clip_grad=clip,
    )  # fmt: skip
    made = config(optimizer_type="sgd", use_lars=True, lr=0.4, total_iterations=100, optimization=changed)
    expected = PhaseOptim(
        kind="sgd",
        lr=Schedule("warmup_cosine", 0.0, last=0.02, peak=0.4, warmup=5.0),
        weight_decay=Schedule("constant", 0.3),
        betas=(0.8, 0.95),
        momentum=0.7,
        clip=clip,
        lars=True,
        lars_trust=0.003,
        lars_clip="larc",
    )
    quarter = replace(expected, lr=replace(expected.lr, last=0.005, peak=0.1))
    assert phase_optim(made, 1.0) == expected and phase_optim(made, 0.25) == quarter
    assert loop_settings(made, 1).optim == {"student": expected, "mask": quarter}


def test_without_keys_the_optimizer_is_adamw_without_lars():
    found = phase_optim(RunConfig(), 1.0)
    assert (found.kind, found.lars, found.clip, found.betas) == ("adamw", False, 1.0, (0.9, 0.999))
    assert found.weight_decay == Schedule("constant", 0.05)
    assert found.lr == Schedule("warmup_cosine", 0.0, last=0.0, peak=5e-5, warmup=10_000.0)


def test_cadences_are_iterations_of_the_global_batch():
    found = loop_settings(config(save_freq=5), 1)
    assert (found.snapshot_every, found.log_every, found.micro_batch, found.total_steps) == (20, 4, 4, 6)


@pytest.mark.parametrize("name", ["smoke", "demo", "base"])
def test_shipped_configs_are_runs(name):
    words = ["--config", name, "data_path=/patches", "output=/out"]
    found = resolve(load_config(RunConfig, words, configs_dir=CONFIGS_DIR).config, 1)
    check_networks(found)
    assert found.total_images == found.total_iterations * found.batch_size_per_gpu
