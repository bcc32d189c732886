"""The run config: the seed's defaults, what is refused and how, batch, budget and warm-up, what is identity."""

import re
import subprocess
import sys

import pytest

from oct.config import CONFIGS_DIR, OptimizationConfig, RunConfig, ValidationConfig, resolve
from oct.sections import AugmentConfig, DataConfig, MaskConfig, ModelConfig
from pathray.config.load import fingerprint, load_config
from pathray.errors import UserError

SEED = {
    "data.image_size": [64, 384, 384], "data.spacing_mm": [0.05, 0.02, 0.02], "data.seed": 42,
    "model.name": "vit_base", "model.patch_size": [4, 16, 16], "model.loss": "normalized_mse",
    "mask.kind": "block", "mask.ratio": 0.6, "augment.noise": 0.05,
    "optimization.total_epochs": 120, "optimization.batch_size_per_gpu": 2, "optimization.lr": 1.5e-3,
    "optimization.weight_decay": 0.05, "optimization.betas": [0.9, 0.95], "optimization.ema": [0.996, 1.0],
    "collapse.stop": True,
}  # fmt: skip


def load(*argv: str) -> RunConfig:
    return load_config(RunConfig, argv, configs_dir=CONFIGS_DIR).config


def test_the_seeds_settings_are_the_defaults():
    config = RunConfig()
    for key, value in SEED.items():
        section, name = key.split(".")
        assert getattr(getattr(config, section), name) == value, key
    assert config.tokens == (16, 24, 24) and not hasattr(config.augment, "flip_depth")


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("data.image_size=[64,384]",), "data.image_size"),
        (("data.image_size=[66,384,384]",), "data.image_size"),
        (("data.spacing_mm=[0.05,0,0.02]",), "data.spacing_mm"),
        (("model.name=vit_gigantic",), "model.name"),
        (("model.positions=none",), "model.positions"),
        (("model.pred_heads=5",), "model.pred_heads"),
        (("model.loss=huber",), "model.loss"),
        (("model.loss=dense", "model.predictor=mlp"), "model.loss"),
        (("model.drop_path=1.5",), "model.drop_path"),
        (("mask.kind=tube",), "mask.kind"),
        (("mask.ratio=1.0",), "mask.ratio"),
        (("mask.block_extent=[0.5,1.5]",), "mask.block_extent"),
        (("mask.aspect=[2,1]",), "mask.aspect"),
        (("augment.crop=[0.5,1.2]",), "augment.crop"),
        (("augment.degrees=90",), "augment.degrees"),
        (("augment.noise=-1",), "augment.noise"),
        (("optimization.ema=[1.0,0.9]",), "optimization.ema"),
        (("optimization.betas=[0.9]",), "optimization.betas"),
        (("optimization.warmup=10%",), "optimization.warmup"),
        (("optimization.precision=int8",), "optimization.precision"),
        (("optimization.total_epochs=0",), "optimization.total_epochs"),
        (("collapse.lines=0",), "collapse.lines"),
        (("collapse.min_std=-1",), "collapse.min_std"),
        (("validation.every={hours: 1}",), "validation.every"),
        (("logging.log_every=0",), "logging.log_every"),
        (("data.split=''",), "data.split"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(words, key):
    with pytest.raises(UserError, match=re.escape(f"key: {key};")):
        load(*words)


def test_batches_accumulate_up_to_the_global_batch():
    """The seed's numbers: 2 volumes per core, 8 parts, 8 processes."""
    config = resolve(RunConfig(optimization=OptimizationConfig(global_batch=128)), workers=8, rows=1000)
    settings = config.optimization
    assert (settings.global_batch, settings.micro_batch) == (128, 2)
    assert settings.global_batch // (8 * settings.micro_batch) == 8
    assert settings.total_images == 120_064 == 938 * 128  # 120,000 rounded up to whole steps


@pytest.mark.parametrize(
    ("changes", "workers", "key"),
    [
        ({"global_batch": 100}, 8, "optimization.global_batch"),
        ({"global_batch": 104}, 8, "optimization.batch_size_per_gpu"),
        ({"global_batch": 128, "micro_batch": 3}, 8, "optimization.micro_batch"),
    ],
)
def test_a_global_batch_that_does_not_divide_is_refused(changes, workers, key):
    settings = OptimizationConfig(**changes)
    with pytest.raises(UserError, match=re.escape(f"key: {key};")):
        resolve(RunConfig(optimization=settings), workers, rows=1000)


def test_the_global_batch_of_the_resumed_run_is_kept_with_other_workers():
    assert resolve(RunConfig(), workers=4, rows=1000, before=8).optimization.global_batch == 8
    assert resolve(RunConfig(), workers=4, rows=1000).optimization.global_batch == 8  # 2 x 4


@pytest.mark.parametrize(
    ("warmup", "images"), [({"epochs": 10}, 1000), ({"iterations": 7}, 56), (500, 504), (0, 0), ({"epochs": 0.5}, 56)]
)
def test_the_warm_up_is_as_long_as_configured(warmup, images):
    """100 volumes, a global batch of 8: rounded up to whole steps."""
    settings = OptimizationConfig(global_batch=8, warmup=warmup)
    assert resolve(RunConfig(optimization=settings), workers=1, rows=100).optimization.warmup == images


def test_a_warm_up_that_exceeds_the_run_is_refused():
    settings = OptimizationConfig(global_batch=8, total_epochs=5, warmup={"epochs": 10})
    with pytest.raises(UserError, match=re.escape("optimization.warmup")):
        resolve(RunConfig(optimization=settings), workers=1, rows=100)


def test_without_a_length_the_warm_up_is_10_epochs_and_at_most_a_tenth_of_the_run():
    def length(epochs):
        settings = OptimizationConfig(global_batch=8, total_epochs=epochs)
        return resolve(RunConfig(optimization=settings), workers=1, rows=80).optimization.warmup

    assert (length(120), length(100), length(10)) == (800, 800, 80)


def test_epochs_of_cadences_are_passes_over_the_volumes():
    config = resolve(RunConfig(validation=ValidationConfig(every={"epochs": 2})), workers=1, rows=101)
    assert (config.validation.every, config.logging.save_every) == (202, 1010)


def test_a_regulariser_needs_the_whole_global_batch_at_once():
    config = RunConfig(model=ModelConfig(regulariser="vicreg"), optimization=OptimizationConfig(global_batch=8))
    with pytest.raises(UserError, match="whole global batch"):
        resolve(config, workers=2, rows=100)
    assert resolve(config, workers=4, rows=100).optimization.micro_batch == 2


def test_places_cadences_and_workers_may_change_and_what_is_learned_may_not():
    values = fingerprint(RunConfig())["values"]
    placed = ("data.index", "data.manifest", "data.gcs_root", "data.cache_dir", "data.cache_gb", "data.threads")
    placed += ("optimization.micro_batch", "optimization.batch_size_per_gpu", "collapse.stop", "validation.every")
    assert [key for key in (*placed, "output", "scaling.workers") if key in values] == []
    kept = ("data.image_size", "data.devices", "data.split", "mask.kind", "augment.noise", "optimization.warmup")
    assert [key for key in (*kept, "model.loss", "optimization.ema", "data.seed") if key not in values] == []
    assert "model.regulariser" not in values  # at its default: as runs from before it was there


def test_the_cache_is_where_the_key_says_else_where_the_environment_does(monkeypatch):
    monkeypatch.delenv("DATA_CACHE_DIR", raising=False)
    assert DataConfig().cache_folder is None
    monkeypatch.setenv("DATA_CACHE_DIR", "/cache")
    assert DataConfig().cache_folder == "/cache" and DataConfig(cache_dir="/other").cache_folder == "/other"


@pytest.mark.parametrize("name", ["smoke", "single_domain", "multi_domain", "fov"])
def test_shipped_configs_load_and_resolve(name):
    config = load("--config", name)
    resolved = resolve(config, config.scaling.ranks, rows=600)
    text = (CONFIGS_DIR / f"{name}.yaml").read_text()
    assert text.startswith("# ") and "python -m ray_jobs.pretrain_oct --config" in text
    if name.endswith("domain"):
        epochs, devices = {"single_domain": (120, 1), "multi_domain": (150, 4)}[name]
        assert (config.optimization.total_epochs, len(config.data.devices)) == (epochs, devices)
        assert resolved.optimization.global_batch == 128 and resolved.optimization.micro_batch == 2
        assert resolved.optimization.warmup == 6016 == 47 * 128  # 10 epochs in whole steps
    if name == "fov":
        assert config.data.grid.spacing_mm == (0.1, 0.005, 0.0167)


def test_the_config_imports_neither_torch_nor_pydicom():
    code = "import oct.config, oct.masks, sys; print([m for m in ('torch', 'pydicom', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sections_have_their_own_checks():
    for wrong in (lambda: MaskConfig(short_blocks=0), lambda: AugmentConfig(scale=0.9)):
        with pytest.raises(UserError):
            wrong()
