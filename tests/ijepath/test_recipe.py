"""The recipe: it learns, its teacher follows by the schedule, batches add up, and every planned option trains."""

import logging

import numpy as np
import pytest
import torch

from ijepath.config import (
    AugmentConfig,
    DataConfig,
    MaskConfig,
    ModelConfig,
    OptimizationConfig,
    RunConfig,
    ScalesConfig,
    SiteConfig,
    resolve_global_batch,
)
from ijepath.data import ReaderConfig
from ijepath.footprints import TooFewTokens, sample_footprints, teacher_cells, to_predictor_grid
from ijepath.geometry import draw_boxes
from ijepath.recipe import IJepathRecipe, advice
from ijepath.scales import kind_of_step
from pathray.data.order import rng
from pathray.evaluation.metrics.collapse import rankme
from pathray.nn.vit import PRESETS
from pathray.train.recipe import Progress

G, STEPS = 8, 30


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """A model that trains in no time."""
    monkeypatch.setitem(PRESETS, "vit_tiny", {"dim": 48, "depth": 2, "heads": 3})


def config(**sections) -> RunConfig:
    sections.setdefault("data", DataConfig(context_fov_um=96, target_fov_um=32, targets_per_context=2, patch_size=16))
    sections.setdefault("model", ModelConfig(name="vit_tiny", pred_depth=1, pred_emb_dim=48))
    sections.setdefault("mask", MaskConfig(min_keep=4))
    budget = OptimizationConfig(total_images_budget=G * STEPS, global_batch=G, ema=[0.9, 1.0])
    return resolve_global_batch(RunConfig(optimization=budget, **sections), 1)


def image(position, size):
    """A smooth coloured pattern, another for every position."""
    g = rng(0, "image", position)
    y, x = np.mgrid[:size, :size] / size
    waves = [np.sin(2 * np.pi * (g.integers(1, 4) * x + g.integers(1, 4) * y) + g.random() * 6) for _ in range(3)]
    return (127 + 60 * np.stack(waves, -1) + g.integers(-40, 40, 3)).clip(0, 255).astype(np.uint8)


def targets_of(generator, geometry, reader, counts):
    for _ in range(20):
        boxes, _ = draw_boxes(generator, geometry, reader.rules)
        try:
            return boxes, sample_footprints(generator, boxes, geometry, reader.mask, counts)
        except TooFewTokens:
            continue
    raise AssertionError("no sample in twenty tries")


def batch_of(run: RunConfig, step: int, sites: int = 3) -> dict[str, torch.Tensor]:
    """What AnchorReader gives, cut from patterns instead of slides."""
    reader = ReaderConfig.of(run)
    kind = reader.kinds.index(kind_of_step(reader.kinds, reader.seed, step))
    geometry, counts = reader.kinds[kind].geometry, reader.counts[kind]
    samples = []
    for position in range(step * G, step * G + G):
        generator = rng(run.data.seed, "boxes", position)
        boxes, tokens = targets_of(generator, geometry, reader, counts)
        pixels = np.pad(image(position, geometry.context_px), ((64, 64), (64, 64), (0, 0)), mode="wrap")
        rows = [np.linspace(b[1], b[3] - 1, geometry.crop[0]).astype(int) + 64 for b in boxes]
        columns = [np.linspace(b[0], b[2] - 1, geometry.crop[1]).astype(int) + 64 for b in boxes]
        sample = {
            "context": pixels[64:-64, 64:-64],
            "targets": np.stack([pixels[r][:, c] for r, c in zip(rows, columns, strict=True)]),
            "context_keep": tokens.keep,
            "context_index": to_predictor_grid(tokens.keep, geometry),
            "target_predict": tokens.predict,
            "draws": generator.random((2, 16), np.float32),
            "site": np.int64(position % sites),
            "position": np.int64(position),
        }
        if reader.cells:
            sample["cells"] = teacher_cells(boxes, tokens.predict, geometry)
        samples.append(sample)
    return {k: torch.from_numpy(np.stack([s[k] for s in samples])) for k in samples[0]}


def progress(step: int) -> Progress:
    return Progress(step=step, total_steps=STEPS, global_batch=G)


def train(run: RunConfig, steps: int = STEPS, sites: int = 0) -> list[float]:
    recipe = IJepathRecipe(run, sites)
    parameters = [p for _, p in recipe.params["model"]]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    losses = []
    for step in range(steps):
        micro = recipe.prepare(batch_of(run, step), progress(step))
        loss = recipe.loss("model", micro, progress(step))
        optimizer.zero_grad()
        (loss.sum / loss.weight).backward(inputs=parameters)
        optimizer.step()
        recipe.after_step(progress(step))
        losses.append(float(loss.metrics["loss_jepa"]))
    return losses


OPTIONS = {
    "the defaults": {},
    "token targets": {"model": ModelConfig(name="vit_tiny", pred_depth=1, pred_emb_dim=48, loss="tokens")},
    "one predictor pass per target": {
        "model": ModelConfig(name="vit_tiny", pred_depth=1, pred_emb_dim=48, predict="separate")
    },
    "same-resolution batches": {"scales": ScalesConfig(same_resolution_ratio=0.5)},
    "reverse ratio": {"scales": ScalesConfig(reverse_ratio=0.5)},
    "variable target size and aspect": {
        "scales": ScalesConfig(target_shapes=4, target_scale=[0.5, 1.5], target_aspect=[0.5, 2.0])
    },
    "stain and scanner augmentation": {"augment": AugmentConfig(stain=0.2, scanner=0.5)},
    "brightness and frequency normalisation": {
        "augment": AugmentConfig(normalise_brightness=True, normalise_frequency=0.5)
    },
    "a guard band": {"mask": MaskConfig(min_keep=4, guard_tokens=1)},
    "a block context": {"mask": MaskConfig(min_keep=4, context="block", context_scale=0.7)},
    "a random context": {"mask": MaskConfig(min_keep=4, context="random", context_scale=0.5)},
    "targets outside the context": {"mask": MaskConfig(min_keep=4, outside_targets=1, outside_ring_um=16)},
    "VICReg's terms": {
        "model": ModelConfig(
            name="vit_tiny", pred_depth=1, pred_emb_dim=48, regulariser="vicreg", regulariser_weight=0.1
        )
    },
    "SIGReg": {"model": ModelConfig(name="vit_tiny", pred_depth=1, pred_emb_dim=48, regulariser="sigreg")},
    "a site-adversarial head": {"site": SiteConfig(adversarial=True, weight=0.1)},
}


@pytest.mark.parametrize("option", list(OPTIONS))
def test_every_option_trains(option):
    sections = OPTIONS[option]
    losses = train(config(**sections), sites=3 if "site" in sections else 0)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-6:]) < 0.85 * np.mean(losses[:4]), losses


def test_loss_and_gradient_of_a_batch_are_the_sums_over_its_parts():
    run = config()
    recipe = IJepathRecipe(run)
    parameters = [p for _, p in recipe.params["model"]]
    micro = recipe.prepare(batch_of(run, 0), progress(0))

    def gradient(part):
        for p in parameters:
            p.grad = None
        loss = recipe.loss("model", part, progress(0))
        loss.sum.backward(inputs=parameters)
        return float(loss.sum.detach()), float(loss.weight), torch.cat([p.grad.flatten() for p in parameters])

    def cut(low, high):
        per = run.data.targets_per_context
        return {k: v[low * per : high * per] if k == "targets" else v[low:high] for k, v in micro.items()}

    whole, parts = gradient(cut(0, 8)), [gradient(cut(0, 2)), gradient(cut(2, 8))]
    assert whole[1] == 8 == parts[0][1] + parts[1][1]
    assert whole[0] == pytest.approx(parts[0][0] + parts[1][0], rel=1e-5)
    assert torch.allclose(whole[2], parts[0][2] + parts[1][2], atol=1e-5)


def test_only_student_and_predictor_are_trained_and_by_unique_names():
    recipe = IJepathRecipe(config())
    names = [n for n, _ in recipe.params["model"]]
    assert len(set(names)) == len(names) and {n.split(".")[0] for n in names} == {"student", "predictor"}
    assert recipe.phases(0) == ("model",)


def test_momentum_rises_linearly_over_the_steps_and_the_teacher_follows_it():
    recipe = IJepathRecipe(config())
    assert [recipe.momentum(progress(s)) for s in (0, 14.5, 29)] == pytest.approx([0.9, 0.95, 1.0])
    with torch.no_grad():
        for p in recipe.modules["student"].parameters():
            p.add_(1.0)
    name, before = next(iter(recipe.modules["teacher"].named_parameters()))
    before = before.clone()
    recipe.after_step(progress(14.5))
    assert recipe.signals()["ema"] == pytest.approx(recipe.momentum(progress(14.5)))
    after = dict(recipe.modules["teacher"].named_parameters())[name]
    assert torch.allclose(after, before + 0.05, atol=1e-5)


def test_metrics_name_the_tokens_and_signals_see_a_collapse(caplog):
    run = config()
    recipe = IJepathRecipe(run)
    loss = recipe.loss("model", recipe.prepare(batch_of(run, 0), progress(0)), progress(0))
    assert loss.metrics["context_keep_tokens"] == ReaderConfig.of(run).counts[0].keep
    assert loss.metrics["target_predict_tokens"] == 4
    signals = recipe.signals()
    assert signals["teacher_student_drift"] == 0.0
    assert signals["target_rankme"] > 1 and signals["target_feature_std"] > 0
    for newest in recipe.features.newest.values():
        newest.add(torch.ones(2000, 48))
    with caplog.at_level(logging.WARNING):
        collapsed = recipe.signals()
    assert collapsed["target_feature_std"] < 1e-3
    assert "optimization.lr" in caplog.text and "target_rankme" in caplog.text


def test_signals_of_learning_are_those_of_the_pooled_tokens(monkeypatch):
    recipe = IJepathRecipe(config())
    rng64 = np.random.default_rng(1)
    h = rng64.normal(size=(G, 2, 16, 48))
    z = rng64.normal(size=(G, 2, 4, 48)) * 0.1 + h.mean(axis=2, keepdims=True)
    context = rng64.normal(size=(G, 9, 48)) * 2
    given = {"encode_targets": h, "predict": z, "encode_context": context}
    for name, value in given.items():
        tensor = torch.from_numpy(value).float()
        monkeypatch.setattr(f"ijepath.recipe.{name}", lambda *args, tensor=tensor, **options: tensor)
    metrics = recipe.loss("model", recipe.prepare(batch_of(config(), 0), progress(0)), progress(0)).metrics
    targets, predictions = (x.mean(axis=2).reshape(-1, 48) for x in (h, z))
    error, spread = ((targets - predictions) ** 2).sum(axis=0), ((targets - targets.mean(axis=0)) ** 2).sum(axis=0)
    expected = {
        "explained": (1 - error / spread).mean(),
        "target_std": targets.std(axis=0).mean(),
        "prediction_std": predictions.std(axis=0).mean(),
        "student_std": context.mean(axis=1).std(axis=0).mean(),
    }
    assert {name: float(metrics[name]) for name in expected} == pytest.approx(expected, rel=1e-4)
    signals = recipe.signals()
    for kind, x in (("target", targets), ("prediction", predictions), ("student", context.mean(axis=1))):
        assert signals[f"{kind}_rankme"] == pytest.approx(float(rankme(torch.from_numpy(x))), rel=1e-4)


def test_healthy_features_give_no_advice():
    assert advice({"target_feature_std": 0.4, "target_rankme": 30.0, "explained": 0.3}, 192, ModelConfig()) == []
    few = {"target_feature_std": 0.4, "target_rankme": 2.0}
    assert advice(few, 8, ModelConfig()) == []  # eight features cannot say


def test_advice_does_not_name_what_the_run_does_already():
    signals = {"target_feature_std": 1e-4, "target_rankme": 1.0, "explained": -0.2}
    lines = advice(signals, 192, ModelConfig())
    assert len(lines) == 3 and "mean target: -0.20 of" in lines[0]
    assert all("set model.loss=tokens or model.regulariser=sigreg in a new run" in line for line in lines)
    better = advice(signals, 192, ModelConfig(loss="tokens", regulariser="vicreg"))
    assert len(better) == 3 and not any("set model" in line for line in better)


def test_predictions_no_better_than_the_mean_are_named_once_the_run_has_settled(caplog):
    run = config()
    recipe = IJepathRecipe(run)
    recipe.loss("model", recipe.prepare(batch_of(run, 0), progress(0)), progress(0))
    for step, named in ((0, False), (STEPS // 2, True)):
        recipe.after_step(progress(step))
        with caplog.at_level(logging.WARNING):
            recipe.signals()
        assert ("predictions explain little beyond the mean" in caplog.text) == named
