"""The config's defaults are those of the method; a batch is what three numbers make it; a run has a name."""

from __future__ import annotations

import pytest

from pathray.config.load import fingerprint, load_config
from pathray.errors import UserError
from regression.config import CONFIGS_DIR, RunConfig, resolve, run_name
from regression.features import uses_cache

PATHS = ["data.table=t.csv", "data.split=s.csv"]


def loaded(*words: str) -> RunConfig:
    return load_config(RunConfig, [*PATHS, *words], configs_dir=CONFIGS_DIR).config


def test_defaults():
    config = loaded()
    assert (config.seed, config.train.batch_size, config.train.grad_accum_steps) == (42, 4, 4)
    assert (config.data.image_size, config.data.target_dim, config.data.normalize_target) == (224, 50, True)
    assert (config.train.lr, config.train.weight_decay, config.logging.run_name) == (3e-4, 1e-4, None)
    assert (config.eval.primary, config.eval.secondary, config.loss.kind) == ("spearman", "pearson", "mse")


def test_an_update_sees_micro_times_accumulation_times_workers():
    config = resolve(loaded("train.epochs=3"), workers=2, rows=100)
    assert (config.train.global_batch, config.train.images) == (32, 320)  # whole steps
    assert resolve(loaded("train.images=64"), 1, rows=100).train.images == 64


def test_a_resumed_run_keeps_its_batch_on_other_workers():
    config = resolve(loaded(), workers=4, rows=100, before=16)
    assert (config.train.global_batch, config.train.grad_accum_steps) == (16, 1)
    one, two = (resolve(loaded(), w, 100, before=32) for w in (1, 2))
    assert fingerprint(one)["hash"] == fingerprint(two)["hash"]
    with pytest.raises(UserError, match="must divide"):
        resolve(loaded(), workers=3, rows=100, before=16)


def test_the_run_is_named_after_what_sets_it_apart():
    config = resolve(loaded(), workers=1, rows=100)
    assert run_name(config, 1, "20260122_170000") == "resnet18__bs4x4x1__lr0.0003__seed42__20260122_170000"
    assert run_name(loaded("logging.run_name=mine"), 1, "x") == "mine"


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["model.backbone=resnet34"], "model.backbone"),
        (["model.backbone=artifact"], "model.artifact"),
        (["model.artifact=folder"], "model.artifact"),
        (["loss.kind=mix", "data.target_dim=1"], "loss.kind"),
        (["model.backbone=vit_tiny", "data.image_size=100"], "data.image_size"),
        (["data.std=[1,0,1]"], "data.std"),
        (["data.genes=[a,b]"], "data.genes"),
        (["logging.run_name=a/b"], "logging.run_name"),
        (["train.scheduler=linear"], "train.scheduler"),
        (["eval.every=10%"], "eval.every"),
    ],
)
def test_senseless_values_are_refused_with_their_key(words, key):
    with pytest.raises(UserError) as error:
        loaded(*words)
    assert error.value.where["key"] == key


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS_DIR.glob("*.yaml")))
def test_a_shipped_config_loads_opens_with_its_command_and_names_what_it_needs(name):
    lines = (CONFIGS_DIR / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ") and any(f"--config {name}" in line for line in lines if line.startswith("#"))
    config = loaded("--config", name, *(["model.artifact=encoder"] if name == "frozen" else []))
    assert uses_cache(config) == (name == "frozen")
    if name == "frozen":
        with pytest.raises(UserError, match=r"model\.artifact"):
            loaded("--config", name)
