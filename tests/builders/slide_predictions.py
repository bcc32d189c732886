"""Predictions of the same slides by models of different strength, in memory and as tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from mil.comparison import Experiment
from mil.judging.predictions import Predictions

BINARY = ("normal", "tumor")


def predict_classes(strength: float, seed: int = 0, *, n: int = 80, classes: tuple[str, ...] = BINARY) -> Predictions:
    """Of n slides, two of each patient, with the same truth and the same difficulty for every model; `seed` adds the
    noise of a training."""
    shared, own = np.random.default_rng(7), np.random.default_rng(seed + 100)
    truth = shared.integers(len(classes), size=n // 2).repeat(2)
    logits = shared.normal(size=(n, len(classes))) + 0.5 * own.normal(size=(n, len(classes)))
    odds = np.exp(logits + strength * (truth[:, None] == np.arange(len(classes))))
    names = np.array([f"s{i:03d}" for i in range(n)])
    patients = np.array([f"p{i // 2:02d}" for i in range(n)])
    values = odds / odds.sum(axis=1, keepdims=True)
    return Predictions(names, patients, truth.astype(np.float64), values, classes, f"{strength:g}_{seed}.csv")


def predict_risks(strength: float, seed: int = 0, *, n: int = 60, folds: int = 3) -> Predictions:
    """Log-risks of n slides, two of each patient, from models of `folds` folds."""
    shared, own = np.random.default_rng(8), np.random.default_rng(seed)
    time = shared.exponential(10, size=n // 2).repeat(2)
    event = (shared.random(n // 2) < 0.7).astype(np.float64).repeat(2)
    risk = -strength * np.log(time) + own.normal(size=n)
    names = np.array([f"s{i:03d}" for i in range(n)])
    patients = np.array([f"p{i // 2:02d}" for i in range(n)])
    fold = np.array([str(i // 2 % folds) for i in range(n)])
    return Predictions(names, patients, time, risk[:, None], (), f"risk_{seed}.csv", event, fold)


def experiment(name: str, strength: float, seeds: int = 1, first: int = 0, **options: object) -> Experiment:
    """An experiment whose seeds begin at `first`."""
    return Experiment(name, tuple(predict_classes(strength, first + s, **options) for s in range(seeds)))  # type: ignore[arg-type]


def only_rows(one: Predictions, rows: object) -> Predictions:
    """The given rows."""
    parts = {key: getattr(one, key) for key in ("names", "patients", "truth", "values", "events", "folds")}
    return replace(one, **{key: None if part is None else part[rows] for key, part in parts.items()})


def write_table(path: Path, one: Predictions, patients: bool = True) -> str:
    """Probabilities of classes as a CSV; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = ["slide_id", *(["patient_id"] if patients else []), "label", *(f"prob_{name}" for name in one.classes)]
    lines = [",".join(head)]
    for i, name in enumerate(one.names):
        known = [str(one.patients[i])] if patients else []
        lines.append(",".join([str(name), *known, one.labels[i], *(repr(float(p)) for p in one.values[i])]))
    path.write_text("\n".join(lines) + "\n")
    return str(path)
