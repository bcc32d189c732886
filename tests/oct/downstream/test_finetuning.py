"""Fine-tuning without Ray: inputs, rates per layer, pooling of eyes, and a run that resumes to the bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from oct.augment import Volumes
from oct.downstream.artifact import load_model
from oct.downstream.assembly import assemble
from oct.downstream.cohort import read_cohort
from oct.downstream.config import DownstreamConfig, LabelledData, ModelConfig, OptimizationConfig, resolve
from oct.downstream.data import LabelledReader
from oct.downstream.evaluate import pool_units, predict_units
from oct.downstream.folds import splits_of
from oct.downstream.network import layer_rates
from oct.downstream.plan import build_plan, scale_of, volumes_of
from oct.downstream.recipe import FinetuneRecipe
from pathray.config.sections import ScalingConfig
from pathray.device import Device
from pathray.run import train
from pathray.train.recipe import Progress
from tests.builders.oct.labelled import LABELS, NUMBERS, write_oct_encoder
from tests.builders.runs.weights import newest_weights


def prepared(labelled, folder: Path, name=LABELS, task="classification", **changes):
    cohort = read_cohort(f"{labelled}/volumes.parquet", f"{labelled}/{name}", "label", task)
    split = splits_of(cohort, split_file=None, k=3, seed=0, validation=True)[0]
    plan = build_plan(cohort, split, str(folder / "plan"))
    config = DownstreamConfig(
        kind="finetune",
        data=LabelledData(index="i", labels="l", task=task, threads=1),
        model=ModelConfig(encoder=f"{labelled}/encoder"),
        optimization=OptimizationConfig(total_images=16, global_batch=4, lr=1e-3),
        scaling=ScalingConfig(accelerator="cpu"),
    )
    return cohort, split, plan, resolve(replace(config, **changes), 1, plan.rows)


def test_only_training_persons_are_units_and_targets_are_scaled_by_them(labelled, tmp_path):
    cohort, split, plan, config = prepared(labelled, tmp_path, NUMBERS, "regression")
    train_persons = {plan.sources["person"][i].as_py() for i in plan.column("source").tolist()}
    assert train_persons == set(cohort.groups[split.rows("train")])
    own = cohort.truth[split.rows("train")]
    assert scale_of(plan) == pytest.approx((own.mean(), own.std()))
    reader = LabelledReader.of(config, plan, FinetuneRecipe(config, 0).given)
    np.testing.assert_allclose(reader.truth, (cohort.truth[cohort.unit] - own.mean()) / own.std(), rtol=1e-5)


def test_training_inputs_are_pretrainings_augmented_and_scaled_by_the_artifact(labelled, tmp_path):
    encoder = write_oct_encoder(tmp_path / "other", mean=[0.3], std=[1.7])
    _, _, plan, config = prepared(labelled, tmp_path, model=ModelConfig(encoder=encoder))
    recipe = FinetuneRecipe(config, 2)
    reader = LabelledReader.of(config, plan, recipe.given)
    batch = {
        k: torch.from_numpy(v) for k, v in reader.collate([reader.read({"source": i}, i, 0) for i in (0, 1)]).items()
    }
    found = recipe.prepare(batch, Progress(0, 4, 4))["image"]
    usual = Volumes(config.augment, recipe.given.grid.spacing_mm)(batch["image"], batch["inside"], batch["draws"])
    torch.testing.assert_close(found, (usual - 0.3) / 1.7)  # the volumes fill the grid
    assert batch["truth"].tolist() == [1, 1] and recipe.classes == 2


def test_factors_fall_from_the_head_to_the_patches(labelled, tmp_path):
    rates = dict(layer_rates(4, 0.5))
    assert rates["net.encoder.blocks.3."] == 0.5 and rates["net.encoder.blocks.0."] == 0.5**4
    assert rates["net.encoder.patch_embed."] == 0.5**5 and layer_rates(4, 1.0) == ()
    recipe = FinetuneRecipe(prepared(labelled, tmp_path)[3], 2)
    names = [name for name, _ in recipe.params["model"]]
    unscaled = {n for n in names if not any(n.startswith(prefix) for prefix in rates)}
    assert unscaled == {n for n in names if ".head." in n or ".encoder.norm." in n}
    used = {prefix for prefix in rates if any(n.startswith(prefix) for n in names)}
    assert set(rates) - used == {"net.encoder.pos_embed", "net.encoder.prefix_tokens"}  # this encoder has none


def test_eyes_are_pooled_and_unreadable_volumes_left_out():
    values = np.array([[0.0], [2.0], [5.0], [np.nan], [7.0], [np.nan]])
    units, pooled = pool_units(values, np.array([0, 0, 0, 1, 1, 2]), ["L", "L", "R", "L", "R", "L"])
    assert units.tolist() == [0, 1] and pooled[:, 0].tolist() == [(1.0 + 5.0) / 2, 7.0]


class StopAfter:
    def __init__(self, run: Path, step: int) -> None:
        self.run, self.step = run, step

    def observe(self, tick):
        if tick.step == self.step:
            (self.run / "STOP").touch()
        return {}


def test_a_stopped_and_resumed_run_ends_bit_equal_and_exports_its_best_state(labelled, tmp_path):
    _, _, plan, config = prepared(
        labelled, tmp_path, model=ModelConfig(encoder=f"{labelled}/encoder", head="attentive")
    )
    device, ends = Device.of("cpu"), []
    for folder, stops in (("whole", (0,)), ("parts", (2, 0))):
        (tmp_path / folder).mkdir()
        for stop in stops:
            parts = assemble(config, plan, 1)
            parts.watch = StopAfter(tmp_path / folder, stop) if stop else None
            outcome = train(parts, plan, str(tmp_path / folder), device)
            ends.append(outcome.end)
    assert ends == ["budget", "stopped", "budget"]
    tag = config.logging.write_tag
    assert newest_weights(tmp_path / "whole", tag) == newest_weights(tmp_path / "parts", tag)
    trained = load_model(str(tmp_path / "whole" / "encoder"))
    assert trained.classes == ("thick", "thin") and trained.net.kind == "attentive"
    reader = LabelledReader.of(config, plan, trained.given).without_crops()
    units, values = predict_units(trained.predict, reader, plan, "test", device, batch=3, threads=1)
    one = reader.read({"source": int(volumes_of(plan, "test")[0])}, 0, 0)
    assert values.shape == (4, 2) and np.allclose(values.sum(1), 1)
    z = trained.predict(torch.from_numpy(one["image"])[None], torch.from_numpy(one["inside"])[None])
    assert z.shape == (1, 2)


def test_every_tensor_of_encoder_and_head_is_trained(labelled, tmp_path):
    _, _, plan, config = prepared(labelled, tmp_path)
    recipe = FinetuneRecipe(config, 2)
    reader = LabelledReader.of(config, plan, recipe.given)
    batch = {
        k: torch.from_numpy(v) for k, v in reader.collate([reader.read({"source": i}, i, 0) for i in (0, 2)]).items()
    }
    loss = recipe.loss("model", recipe.prepare(batch, Progress(0, 4, 4)), Progress(0, 4, 4))
    loss.sum.backward()
    assert [name for name, p in recipe.params["model"] if p.grad is None] == [] and float(loss.weight) == 2
