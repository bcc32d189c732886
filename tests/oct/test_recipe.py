"""The recipe: it learns, its teacher follows at every step, batches add up, validation is no 0, collapse is seen."""

import logging
import math

import numpy as np
import pytest
import torch

from oct.augment import Volumes
from oct.config import CollapseConfig
from oct.recipe import OctRecipe
from oct.sections import MaskConfig, ModelConfig
from pathray.evaluation.metrics.collapse import rankme
from pathray.nn.vit import PRESETS
from pathray.train.collapse import FeaturesCollapsed
from pathray.train.recipe import Progress
from tests.builders.oct.volumes import PATCH, micro, small_budget, small_config

G, STEPS = 4, 24
SMALL = {"name": "vit_micro", "patch_size": PATCH, "pred_dim": 48, "pred_depth": 1}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """A model that trains in no time."""
    monkeypatch.setitem(PRESETS, "vit_micro", {"dim": 48, "depth": 2, "heads": 3})


def progress(step: int) -> Progress:
    return Progress(step=step, total_steps=STEPS, global_batch=G)


def train(config, steps: int = STEPS) -> tuple[OctRecipe, list[float]]:
    recipe = OctRecipe(config)
    parameters = [p for _, p in recipe.params["model"]]
    optimizer, losses = torch.optim.AdamW(parameters, lr=3e-3), []
    for step in range(steps):
        batch = recipe.prepare(micro(config, range(step * G, step * G + G)), progress(step))
        loss = recipe.loss("model", batch, progress(step))
        optimizer.zero_grad()
        (loss.sum / loss.weight).backward(inputs=parameters)
        optimizer.step()
        recipe.after_step(progress(step))
        losses.append(float(loss.metrics["loss_jepa"]))
    return recipe, losses


OPTIONS = {
    "the defaults": {},
    "L1": {"model": ModelConfig(**SMALL, loss="l1")},
    "the dense loss": {"model": ModelConfig(**SMALL, loss="dense")},
    "an MLP as predictor": {"model": ModelConfig(**SMALL, predictor="mlp")},
    "two masks of V-JEPA": {"mask": MaskConfig(kind="vjepa")},
    "random tokens, rotary positions": {
        "mask": MaskConfig(kind="random"),
        "model": ModelConfig(**SMALL, positions="rope"),
    },
    "SIGReg": {"model": ModelConfig(**SMALL, regulariser="sigreg")},
    "VICReg over the contexts of two masks": {
        "model": ModelConfig(**SMALL, regulariser="vicreg", regulariser_weight=0.1),
        "mask": MaskConfig(kind="vjepa"),
    },
}


@pytest.mark.parametrize("option", list(OPTIONS))
def test_every_option_trains(option):
    config = small_config(optimization=small_budget(batch_size_per_gpu=G), **OPTIONS[option])
    _, losses = train(config)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-6:]) < 0.96 * np.mean(losses[:4]), losses


def test_loss_and_gradient_of_a_batch_are_the_sums_over_its_parts():
    config = small_config()
    recipe = OctRecipe(config)
    parameters = [p for _, p in recipe.params["model"]]
    whole = recipe.prepare(micro(config, range(G)), progress(0))

    def gradient(low, high):
        for p in parameters:
            p.grad = None
        loss = recipe.loss("model", {k: v[low:high] for k, v in whole.items()}, progress(0))
        loss.sum.backward(inputs=parameters)
        return float(loss.sum.detach()), float(loss.weight), torch.cat([p.grad.flatten() for p in parameters])

    all_, parts = gradient(0, 4), [gradient(0, 1), gradient(1, 4)]
    assert all_[1] == 4 == parts[0][1] + parts[1][1]
    assert all_[0] == pytest.approx(parts[0][0] + parts[1][0], rel=1e-5)
    assert torch.allclose(all_[2], parts[0][2] + parts[1][2], atol=1e-5)


def test_only_student_and_predictor_are_trained_and_by_unique_names():
    recipe = OctRecipe(small_config())
    names = [n for n, _ in recipe.params["model"]]
    assert len(set(names)) == len(names) and {n.split(".")[0] for n in names} == {"student", "predictor"}
    assert recipe.phases(0) == ("model",)


def test_the_teacher_follows_the_student_at_every_step_by_a_cosine_momentum():
    """The trap: nothing called the update. Checked against the formula in float64 after each of ten steps."""
    config = small_config()
    recipe = OctRecipe(config)
    name = "blocks.0.attn.qkv.weight"
    teacher, student = recipe.encoder.get_parameter(name), recipe.student.get_parameter(name)
    expected = teacher.detach().double().clone()
    for step in range(10):
        with torch.no_grad():
            student.add_(torch.randn_like(student))
        recipe.after_step(Progress(step, 10, G))
        m = 1.0 + (0.996 - 1.0) * (1 + math.cos(math.pi * step / 9)) / 2
        expected = m * expected + (1 - m) * student.detach().double()
        assert torch.allclose(teacher.double(), expected, atol=1e-6), step
        assert recipe.signals()["ema"] == pytest.approx(m)
    assert recipe.momentum(Progress(9, 10, G)) == 1.0


def test_a_regulariser_of_none_leaves_loss_and_weights_as_they_are():
    config = small_config()
    off = small_config(model=ModelConfig(**SMALL, regulariser="none", regulariser_weight=0.3, projection_dim=8))
    one, two = OctRecipe(config), OctRecipe(off)
    assert one.modules.state_dict().keys() == two.modules.state_dict().keys()
    batch = micro(config, range(2))
    first, second = (r.loss("model", r.prepare(batch, progress(0)), progress(0)) for r in (one, two))
    assert torch.equal(first.sum, second.sum)
    assert float(first.metrics["loss_jepa"]) == pytest.approx(float(first.sum.detach()) / 2)
    assert "loss_spread" not in first.metrics


def test_context_and_targets_are_tokens_of_one_augmented_volume(monkeypatch):
    """The trap: two views, augmented independently, destroyed the correspondence of positions."""
    config = small_config()
    recipe, seen = OctRecipe(config), []
    for name in ("encode_context", "encode_target"):
        function = getattr(__import__("oct.recipe", fromlist=[name]), name)
        monkeypatch.setattr(
            f"oct.recipe.{name}", lambda net, x, *more, function=function: seen.append(x) or function(net, x, *more)
        )
    recipe.loss("model", recipe.prepare(micro(config, range(2)), progress(0)), progress(0))
    assert len(seen) == 2 and seen[0] is seen[1]


def test_validation_loss_is_that_of_the_masks_without_augmentation_and_not_0():
    """The trap: an all-zero mask made it 0."""
    config = small_config(mask=MaskConfig(kind="vjepa"))
    recipe = OctRecipe(config)
    recipe.modules.eval()
    batch = micro(config, range(3))
    found = recipe.validation_losses(batch)
    plain = Volumes(config.augment, config.data.spacing_mm)(batch["image"], batch["inside"])
    index = {k: v.long() for k, v in batch.items() if k.startswith(("context", "target"))}
    expected = recipe.loss("model", {**batch, **index, "image": plain}, progress(0))
    assert float(found.sum()) == pytest.approx(float(expected.sum.detach()), rel=1e-6) and bool((found > 0.1).all())
    other = recipe.validation_losses({**batch, "draws": torch.rand_like(batch["draws"])})
    assert torch.equal(found, other) and not found.requires_grad
    with pytest.raises(AssertionError, match="hides nothing"):
        recipe.validation_losses({**batch, "target_0": batch["target_0"][:, :0]})


@pytest.mark.parametrize("model", [{"loss": "dense"}, {"predictor": "mlp"}, {"positions": "rope", "loss": "l1"}])
def test_half_precision_gives_nearly_the_loss_of_full_precision(model):
    config = small_config(model=ModelConfig(**SMALL, **model), mask=MaskConfig(kind="vjepa"))
    recipe = OctRecipe(config)
    batch = recipe.prepare(micro(config, range(2)), progress(0))
    full = recipe.loss("model", batch, progress(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = recipe.loss("model", batch, progress(0))
    assert half.sum.dtype == torch.float32 and float(half.sum.detach()) == pytest.approx(
        float(full.sum.detach()), rel=0.02
    )
    half.sum.backward()
    assert all(torch.isfinite(p.grad).all() for _, p in recipe.params["model"])


def test_the_image_of_a_micro_batch_is_in_float32_whatever_the_precision():
    config = small_config()
    recipe = OctRecipe(config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = recipe.prepare(micro(config, range(2)), progress(0))["image"]
    assert low.dtype == torch.float32
    assert torch.equal(low, recipe.prepare(micro(config, range(2)), progress(0))["image"])


def test_shapes_are_the_same_in_every_batch():
    config = small_config(mask=MaskConfig(kind="vjepa"))
    recipe, shapes = OctRecipe(config), set()
    for first in range(0, 20, 2):
        batch = recipe.prepare(micro(config, range(first, first + 2)), progress(0))
        shapes.add(tuple((name, tuple(v.shape), v.dtype) for name, v in sorted(batch.items())))
    assert len(shapes) == 1


def test_signals_of_learning_are_those_of_sampled_tokens(monkeypatch):
    config = small_config(model=ModelConfig(**SMALL, loss="l1"))
    recipe, rng64 = OctRecipe(config), np.random.default_rng(1)
    h = rng64.normal(size=(2, 64, 48))
    context = rng64.normal(size=(2, 26, 48)) * 2
    z = rng64.normal(size=(2, 38, 48)) * 0.1
    batch = recipe.prepare(micro(config, range(2)), progress(0))
    target = batch["target_0"].numpy()
    z += np.stack([h[b, target[b]] for b in range(2)])
    given = {"encode_target": h, "encode_context": context}
    for name, value in given.items():
        tensor = torch.from_numpy(value).float()
        monkeypatch.setattr(f"oct.recipe.{name}", lambda *args, tensor=tensor: tensor)
    monkeypatch.setattr(recipe.modules["predictor"], "forward", lambda *args: torch.from_numpy(z).float())
    metrics = recipe.loss("model", batch, progress(0)).metrics
    targets = np.concatenate([h[b, target[b]][::3] for b in range(2)])  # every third of 38: 13 of a volume
    predictions, students = np.concatenate([x[::3] for x in z]), np.concatenate([x[::2] for x in context])
    error, spread = ((targets - predictions) ** 2).sum(axis=0), ((targets - targets.mean(axis=0)) ** 2).sum(axis=0)
    expected = {
        "explained": (1 - error / spread).mean(),
        "target_std": targets.std(axis=0).mean(),
        "prediction_std": predictions.std(axis=0).mean(),
        "student_std": students.std(axis=0).mean(),
    }
    assert {name: float(metrics[name]) for name in expected} == pytest.approx(expected, rel=1e-4)
    signals = recipe.signals()
    for kind, x in (("target", targets), ("prediction", predictions), ("student", students)):
        assert signals[f"{kind}_rankme"] == pytest.approx(float(rankme(torch.from_numpy(x))), rel=1e-4)


def collapse(recipe) -> None:
    for newest in recipe.features.newest.values():
        newest.add(torch.ones(2000, 48))


def test_collapsed_features_end_the_run_after_so_many_log_lines(caplog):
    recipe = OctRecipe(small_config(collapse=CollapseConfig(lines=3)))
    recipe.features.add({kind: torch.randn(64, 48) for kind in recipe.features.newest})
    recipe.after_step(progress(0))
    healthy = recipe.signals()
    assert healthy["target_rankme"] > 20 and healthy["target_feature_std"] > 0.5
    collapse(recipe)
    recipe.after_step(progress(1))
    with caplog.at_level(logging.WARNING):
        assert recipe.signals()["target_feature_std"] < 1e-6
        recipe.signals()
    assert "optimization.lr" in caplog.text
    with pytest.raises(FeaturesCollapsed, match="3 log lines in a row") as error:
        recipe.signals()
    assert error.value.images_seen_good == G and "target_feature_std" in str(error.value)


def test_a_good_line_between_bad_ones_begins_the_count_anew():
    recipe = OctRecipe(small_config(collapse=CollapseConfig(lines=2)))
    for _ in range(3):
        collapse(recipe)
        recipe.signals()
        recipe.features.add({kind: torch.randn(1024, 48) for kind in recipe.features.newest})
        recipe.signals()


def test_a_run_that_is_not_to_be_stopped_is_only_warned(caplog):
    recipe = OctRecipe(small_config(collapse=CollapseConfig(lines=1, stop=False)))
    collapse(recipe)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            recipe.signals()
    assert "look collapsed" in caplog.text


def test_few_features_say_nothing_of_a_rank():
    recipe = OctRecipe(small_config(collapse=CollapseConfig(lines=1, min_rank=8)))
    recipe.features.add({kind: torch.randn(10, 48) for kind in recipe.features.newest})
    assert recipe.signals()["target_rankme"] < 16
