"""Does MIL learn? MUSK1 by ten folds and five seeds, and 1% planted witnesses, next to floors without a network.

    python benchmarks/learning_mil.py part=musk                 # five seeds x ten folds; a quarter of an hour of a core
    python benchmarks/learning_mil.py part=witnesses            # three seeds of ABMIL and of mean pooling
    python benchmarks/learning_mil.py part=musk model.name=transmil training.lr=2e-4     # any key of ray_jobs.train_mil

MUSK1 (`mil/musk1.csv`, 92 molecules of 476 conformations, 166 numbers each; Dietterich et al. 1997): published accuracy
of attention MIL by ten folds is .89 to .90 (Ilse et al. 2018, arXiv 1802.04712). The floor is a logistic regression on
mean and maximum over a bag. Each fold trains on nine tenths and is tested once; with validate=true a ninth of the
nine tenths choose the best state, ten bags or so, which costs accuracy. Accuracy and AUC pool the folds of a seed;
intervals are over seeds.

Witnesses: bags of 200 to 400 tiles of 64 normal numbers; in half of the bags 1% of the tiles are moved by 5 in one
direction. 240 bags train, 60 validate, 200 test. Printed are the AUC, and how much of the attention is on witnesses.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import h5py
import numpy as np
import torch
from omegaconf import OmegaConf

from mil.artifact import load
from mil.assembly import assemble
from mil.cohort import Cohort, read_cohort
from mil.config import RunConfig, resolve
from mil.data import BagReader
from mil.plan import build_plan, rows_of
from mil.predict import predict_slides
from mil.sections import CONFIGS_DIR, GROUPS
from mil.store.build import StoreBuild
from mil.store.places import BuildSettings, Source, read_header
from mil.store.reading import Store
from mil.store.write import write_slide
from pathray.config.load import load_config
from pathray.data.splits import Split, stratified_folds
from pathray.device import Device
from pathray.run import train
from pathray.stats.bootstrap import t_interval

OWN = ("data.threads=1", "data.ahead=2", "logging.mlflow=false", "scaling.workers=0", "scaling.accelerator=cpu",
       "training.global_batch=1", "eval.patience=null")  # fmt: skip
MUSK = ("training.max_epochs=40", "training.lr=5e-4", "training.weight_decay=5e-3", "model.arguments.embed_dim=256",
        "model.arguments.attention_dim=128")  # fmt: skip
WITNESSES = ("training.max_epochs=30", "training.lr=3e-4", "model.arguments.embed_dim=128")
DIM, SHIFT, SHARE = 64, 5.0, 0.01
TRAIN, VAL, TEST = 240, 60, 200


@dataclass
class Settings:
    """Settings of the benchmark; every other key is one of ray_jobs.train_mil."""

    part: str = "musk"  # | witnesses
    data_dir: str = "../shared/data"
    seeds: int = 5
    first_seed: int = 0
    folds: int = 10
    validate: bool = False  # MUSK1: choose the best state on a ninth of the training bags; else the last one is used
    output: str | None = None  # JSON of all figures


def main() -> None:
    own = {f.name for f in fields(Settings)}
    mine = [a for a in sys.argv[1:] if a.partition("=")[0] in own]
    keys = [a for a in sys.argv[1:] if a not in mine]
    settings: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.from_dotlist(mine)))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = (musk if settings.part == "musk" else witnesses)(settings, keys, Path(folder))
    if settings.output:
        Path(settings.output).write_text(json.dumps({"settings": asdict(settings), "keys": keys, **found}, indent=1))


def musk(settings: Settings, keys: Sequence[str], folder: Path) -> dict[str, Any]:
    """Accuracy and AUC of every seed, and of the floor on the same folds."""
    cohort, store = musk_cohort(Path(settings.data_dir) / "mil" / "musk1.csv", folder)
    rows: dict[str, list[dict[str, float]]] = {"model": [], "floor": []}
    for seed in range(settings.first_seed, settings.first_seed + settings.seeds):
        splits = stratified_folds(cohort, cohort.labels, seed, settings.folds, validation=False)
        values, floor = np.zeros(len(cohort.names)), np.zeros(len(cohort.names))
        for number, split in enumerate(splits):
            tested = split.rows("test")
            parts = inner(cohort, split, seed) if settings.validate else split
            values[tested] = predict(cohort, store, parts, seed, (*MUSK, *keys), folder)[0]
            floor[tested] = pooled_regression(store, cohort, split)
            print(f"  seed {seed} fold {number}", end="\r", flush=True)
        for name, found in (("model", values), ("floor", floor)):
            rows[name].append(figures(cohort.truth, found))
        told = "   ".join(f"{name} accuracy {r[-1]['accuracy']:.3f} AUC {r[-1]['auc']:.3f}" for name, r in rows.items())
        print(f"seed {seed}: {told}", flush=True)
    for name, found in rows.items():
        for metric in ("accuracy", "auc"):
            each = [row[metric] for row in found]
            print(f"{name:<6} {metric:<9} {t_interval(each) if len(each) > 1 else each[0]}")
    return rows


def witnesses(settings: Settings, keys: Sequence[str], folder: Path) -> dict[str, Any]:
    """AUC of ABMIL and of mean pooling, and the share of attention on the witnesses of positive bags."""
    out: dict[str, Any] = {"abmil": [], "static": []}
    for seed in range(settings.first_seed, settings.first_seed + min(settings.seeds, 3)):
        cohort, store = planted(folder / f"seed_{seed}", seed)
        of = np.array(["train"] * TRAIN + ["val"] * VAL + ["test"] * TEST, "<U5")
        split = Split(of, {})
        for name in out:
            model = (f"model.name={name}", *(WITNESSES if name == "abmil" else WITNESSES[:2]))
            values, attention = predict(cohort, store, split, seed, (*model, *keys), folder, attend=name == "abmil")
            found = figures(cohort.truth[of == "test"], values)
            if attention is not None:
                found["attention on witnesses"] = attention
            out[name].append(found)
            print(f"seed {seed} {name:<7}", "  ".join(f"{k} {v:.3f}" for k, v in found.items()), flush=True)
    return out


def predict(
    cohort: Cohort, store: Store, split: Split, seed: int, keys: Sequence[str], folder: Path, attend: bool = False
) -> tuple[np.ndarray, float | None]:
    """The probability of the second class for the test slides, after a training of this split; with `attend` also the
    mean share of attention on the first 1% of tiles of positive test bags."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        plan = build_plan(cohort, split, store, f"{work}/plan")
        loaded = load_config(RunConfig, (*OWN, f"training.seed={seed}", *keys), configs_dir=CONFIGS_DIR, groups=GROUPS)
        config = resolve(replace(loaded.config, output=work), 1, plan.rows)
        train(assemble(config, plan, 1), plan, f"{work}/run", Device.of("cpu"))
        net = load(f"{work}/run/encoder").net
        reader, tested = BagReader(plan, seed), rows_of(plan, "test")
        found = predict_slides(net, reader, tested, Device.of("cpu"), 1)
        share = attention_on_witnesses(net, reader, tested, cohort) if attend else None
    return found.values[:, 1], share


def attention_on_witnesses(net: Any, reader: BagReader, rows: np.ndarray, cohort: Cohort) -> float:
    shares = []
    for row in rows[cohort.truth[rows] == 1].tolist():
        bag = reader.whole().read({"source": row}, 0, 0)
        with torch.no_grad():
            out = net(torch.from_numpy(bag["features"])[None].float(), return_attention=True)
        count = max(1, round(SHARE * len(bag["features"])))
        shares.append(float(out.extras["attention_probs"][0, :, :count].sum(dim=1).max()))
    return float(np.mean(shares))


def pooled_regression(store: Store, cohort: Cohort, split: Split) -> np.ndarray:
    """Logistic regression on mean and maximum over each bag: the probability of the second class in test."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pooled = np.stack([np.concatenate([store.features(i).mean(0), store.features(i).max(0)]) for i in cohort.slides])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000))
    train_rows = split.rows("train")
    model.fit(pooled[train_rows], cohort.truth[train_rows])
    return np.asarray(model.predict_proba(pooled[split.rows("test")])[:, 1])


def inner(cohort: Cohort, split: Split, seed: int) -> Split:
    """The same test part; about a ninth of the others validate."""
    of = split.of.copy()
    rows = split.rows("train")
    draw = np.random.default_rng(seed)
    for k in range(len(cohort.classes)):
        own = draw.permutation(rows[cohort.truth[rows] == k])
        of[own[: max(1, len(own) // 9)]] = "val"
    return Split(of, {})


def figures(truth: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    return {
        "accuracy": float(((probability > 0.5) == truth).mean()),
        "auc": float(roc_auc_score(truth, probability)),
    }


def musk_cohort(path: Path, folder: Path) -> tuple[Cohort, Store]:
    """MUSK1 as a store: a bag per molecule, numbers standardised over all conformations."""
    with path.open(newline="") as file:
        table = np.array([[float(cell) for cell in row] for row in csv.reader(file)])
    x = (table[:, 2:] - table[:, 2:].mean(0)) / (table[:, 2:].std(0) + 1e-9)
    labels = {f"m{int(bag):03d}": int(table[table[:, 1] == bag][0, 0]) for bag in np.unique(table[:, 1])}
    bags = {name: x[table[:, 1] == int(name[1:])].astype(np.float32) for name in labels}
    return cohort_of(folder, bags, {name: ("other", "musk")[label] for name, label in labels.items()})


def planted(folder: Path, seed: int) -> tuple[Cohort, Store]:
    """Bags of normal tiles; every other one has 1% witnesses, its first tiles."""
    draw = np.random.default_rng(seed)
    bags, labels = {}, {}
    for i in range(TRAIN + VAL + TEST):
        n = int(draw.integers(200, 401))
        x = draw.normal(size=(n, DIM)).astype(np.float32)
        if i % 2:
            x[: max(1, round(SHARE * n)), 0] += SHIFT
        bags[f"b{i:03d}"], labels[f"b{i:03d}"] = x, ("without", "witnesses")[i % 2]
    return cohort_of(folder, bags, labels)


def cohort_of(folder: Path, bags: dict[str, np.ndarray], labels: dict[str, str]) -> tuple[Cohort, Store]:
    """A store of these bags and its cohort. Classes in the order of the first and the second kind of label."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, x in bags.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["features"] = x
    rows = "".join(f"{name},{name},{label}\n" for name, label in labels.items())
    (folder / "slides.csv").write_text(f"slide_id,patient_id,label\n{rows}")
    headers = [read_header(Source(name, str(folder / f"{name}.h5"))) for name in bags]
    with StoreBuild(str(folder / "store"), BuildSettings(dtype="float32", max_instances=None), headers) as build:
        build.finish(map(write_slide, build.places))
    store = Store(str(folder / "store"))
    order = {"other": 0, "musk": 1} if "musk" in labels.values() else {"without": 0, "witnesses": 1}
    return read_cohort(str(folder / "slides.csv"), store, label="label", label_map=order), store


if __name__ == "__main__":
    main()
