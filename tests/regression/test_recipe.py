"""Training through the loop: exact on resume and under accumulation, and it learns; pixels; artifacts."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

from pathray.data.share import Lookup, rank_rows
from pathray.data.stream import DecodeSettings, stream_batches
from pathray.device import Device
from pathray.errors import UserError
from pathray.nn.resnet import IMAGENET_MEAN, ResNet
from pathray.train.loop import run
from pathray.train.state import TrainState
from regression import artifact
from regression.assembly import assemble, identity_of, selection
from regression.config import AugmentConfig, RunConfig, resolve
from regression.evaluate import metrics, predict
from regression.model import initial_digest
from regression.plan import normaliser, rows_of, targets
from regression.recipe import augment, turn
from regression.rehearsal import rehearse
from tests.builders.encoders import MEAN, write_encoder
from tests.builders.expression import made, run_config

CPU = Device.of("cpu")


def batches_of(parts, plan):
    s = parts.settings

    def batches(start):
        lookup = Lookup(plan, parts.order)
        rows = rank_rows(lookup, start, s.total_images, s.global_batch, 0, 1, s.micro_batch)
        for batch in stream_batches(rows, parts.reader, lookup, DecodeSettings(threads=1)):
            yield {k: v for k, v in batch.items() if k != "faults"}

    return batches


def trained(config: RunConfig, plan, *, stop_after: int | None = None, state=None):
    """(tensors, state's meta, parts) after training, or after the given number of steps."""
    parts = assemble(resolve(config, 1, plan.rows), plan, 1)
    begun = TrainState(parts.recipe, parts.settings, CPU)
    if state is not None:
        begun.load(*state)
    for tick in run(parts.recipe, batches_of(parts, plan), parts.settings, device=CPU, state=begun):
        if tick.step == stop_after:
            break
    return {k: v.clone() for k, v in begun.tensors().items()}, begun.meta(), parts


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return made(tmp_path_factory.mktemp("expression"))[2]


def test_a_resumed_run_ends_with_the_bits_of_an_undisturbed_one(plan):
    config = run_config("resnet18", batch_size=2, grad_accum_steps=2, images=12)
    whole, _, _ = trained(config, plan)
    again, _, _ = trained(config, plan)
    half = trained(config, plan, stop_after=1)
    resumed, meta, _ = trained(config, plan, state=half[:2])
    assert meta["images_seen"] == 12
    assert all(torch.equal(whole[k], resumed[k]) and torch.equal(whole[k], again[k]) for k in whole)


def test_the_same_config_and_split_give_the_same_metrics_twice(plan):
    config = run_config("resnet18", batch_size=4, grad_accum_steps=1, images=16)

    def validated():
        """After training, with whatever the generators of Python, NumPy and torch were before."""
        random.seed(os.urandom(8))
        np.random.seed(random.randrange(2**32))
        torch.manual_seed(random.randrange(2**32))
        parts = trained(config, plan)[2]
        rows = np.concatenate([rows_of(plan, "val"), rows_of(plan, "test")])
        return metrics(predict(parts.recipe, plan, rows, CPU, 4), targets(plan)[rows], config.eval)

    assert validated() == validated()


def test_a_dry_run_trains_two_batches_and_validates_in_this_process(plan):
    config = resolve(run_config("vit_tiny", batch_size=2, grad_accum_steps=2), 1, plan.rows)
    found = rehearse(config, plan)
    assert len(found.losses) == 2 and found.images_per_s > 0
    assert {"spearman", "pearson", "mse"} <= set(found.validation)
    config.model.frozen, config.augment.geometry, config.augment.stain = True, False, 0.0
    assert len(rehearse(config, plan).losses) == 2, "features that a run would make first are not needed"


def test_accumulated_parts_of_a_batch_give_the_step_of_the_whole(plan):
    """A ViT, since batch norm looks at a micro-batch."""
    one, _, _ = trained(run_config(batch_size=12, grad_accum_steps=1, images=12), plan)
    four, _, _ = trained(run_config(batch_size=3, grad_accum_steps=4, images=12), plan)
    gradients = [k for k in one if k.endswith("exp_avg") or "exp_avg" in k]
    assert gradients and all(torch.allclose(one[k], four[k], atol=1e-6) for k in gradients)


def test_training_and_evaluation_see_pixels_less_the_mean_over_the_deviation_that_the_backbone_expects(plan):
    recipe = assemble(resolve(run_config("resnet18", images=8), 1, plan.rows), plan, 1).recipe
    recipe.config.augment.geometry, recipe.config.augment.stain = False, 0.0
    pixels = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    expected = ((pixels.numpy() / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).transpose(0, 3, 1, 2)
    trained_on = recipe.prepare({"image": pixels, "draws": torch.rand(2, 9)}, None)["image"]
    assert trained_on.numpy() == pytest.approx(expected, abs=1e-5)
    assert recipe.inputs(pixels).numpy() == pytest.approx(expected, abs=1e-5)


def test_it_learns_what_colour_says(plan):
    config = run_config("vit_tiny", batch_size=12, grad_accum_steps=1, epochs=40)
    config.augment.stain = 0.0
    _, _, parts = trained(config, plan)
    rows = np.concatenate([rows_of(plan, "val"), rows_of(plan, "test")])
    pixels = [parts.reader.read({"source": r}, 0, 0)["image"] for r in rows]
    with torch.no_grad():
        z = parts.recipe.net.eval()(parts.recipe.inputs(torch.from_numpy(np.stack(pixels))))
    predicted = normaliser(plan).invert(z.numpy())
    error, spread = (predicted - targets(plan)[rows]).std(), targets(plan)[rows].std(axis=0).mean()
    assert error < 0.6 * spread


def test_a_frozen_backbone_stays_as_it_was_to_its_statistics(plan):
    config = run_config("resnet18", batch_size=4, grad_accum_steps=1, images=8)
    config.model.frozen = True
    before = assemble(resolve(config, 1, plan.rows), plan, 1).recipe.modules.state_dict()
    after, _, parts = trained(config, plan)
    same = {k: torch.equal(v, after[f"model.{k}"]) for k, v in before.items()}
    assert {k for k, v in same.items() if not v} == {"net.head.linear.weight", "net.head.linear.bias"}
    assert [name for name, _ in parts.recipe.params["model"]] == ["net.head.linear.weight", "net.head.linear.bias"]


def test_what_the_weights_began_from_is_identity(plan, tmp_path):
    config = run_config("resnet18")
    torch.save(ResNet("resnet18", 5).state_dict(), tmp_path / "w.pth")
    config.model.weights = str(tmp_path / "w.pth")
    own = identity_of(resolve(config, 1, 10), "plan")
    assert own["values"]["initial"] == initial_digest(config) != "random"
    torch.save(ResNet("resnet18", 5).state_dict(), tmp_path / "w.pth")
    assert identity_of(resolve(config, 1, 10), "plan")["hash"] != own["hash"]
    assert assemble(resolve(config, 1, plan.rows), plan, 1).recipe.preprocessing.mean == IMAGENET_MEAN


def test_an_encoder_artifact_is_fine_tuned_with_its_own_preprocessing(plan, tmp_path):
    config = run_config(batch_size=4, grad_accum_steps=1, images=8)
    config.model.backbone, config.model.artifact = "artifact", write_encoder(tmp_path / "encoder")
    tensors, _, parts = trained(config, plan)
    fresh = assemble(resolve(config, 1, plan.rows), plan, 1).recipe
    assert list(fresh.preprocessing.mean) == MEAN and fresh.preprocessing.mpp == 1.0
    moved = [k for k, v in fresh.modules.state_dict().items() if not torch.equal(v, tensors[f"model.{k}"])]
    assert any(name.startswith("net.backbone.blocks") for name in moved)
    config.data.mean = [0.5, 0.5, 0.5]
    with pytest.raises(UserError, match="other inputs"):
        assemble(resolve(config, 1, plan.rows), plan, 1)
    config.data.mean, config.data.image_size = None, 40
    with pytest.raises(UserError, match="invalid image size"):
        assemble(resolve(config, 1, plan.rows), plan, 1)


@pytest.mark.parametrize("backbone", ["resnet18", "vit_tiny"])
def test_the_exported_model_predicts_what_the_trained_one_did(plan, tmp_path, backbone):
    config = run_config(backbone, batch_size=4, grad_accum_steps=1, images=8)
    _, _, parts = trained(config, plan)
    parts.export(parts.recipe, str(tmp_path / "model"), {"images_seen": 8})
    loaded = artifact.load(str(tmp_path / "model"))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.net(x), parts.recipe.net.eval()(x)) and loaded.normaliser.genes == ("y0", "y1", "y2")
    assert np.array_equal(loaded.normaliser.std, normaliser(plan).std)
    assert loaded.description["provenance"]["images_seen"] == 8
    weights = tmp_path / "model" / artifact.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(UserError, match="altered"):
        artifact.load(str(tmp_path / "model"))


def test_each_image_is_turned_by_its_own_draws():
    images = torch.arange(9.0).view(1, 1, 3, 3).repeat(8, 1, 1, 1)
    draws = torch.tensor([[a, b, c] for a in (0.1, 0.9) for b in (0.1, 0.9) for c in (0.1, 0.9)])
    out = turn(images, draws)
    assert len({tuple(o.flatten().tolist()) for o in out}) == 8 and torch.equal(out[7], images[7])
    assert torch.equal(out[6], images[6].transpose(-1, -2)) and torch.equal(out[3], images[3].flip(-1))
    alone = turn(images[2:3], draws[2:3])
    assert torch.equal(alone[0], out[2])
    x, u = torch.rand(2, 3, 4, 4), torch.rand(2, 9)
    assert torch.equal(augment(x, u, AugmentConfig(False, 0.0)), x)


def test_validation_is_once_an_epoch(plan):
    config = resolve(run_config(batch_size=4, grad_accum_steps=1), 1, 10)
    chosen = selection(config, 10)
    assert (chosen.metric, chosen.mode, chosen.every) == ("spearman", "max", 12)
