"""A small labelled cohort: bags with planted witnesses, their store and their table of slides."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mil.assembly import assemble
from mil.cohort import read_cohort
from mil.config import LabelledSlides, LoggingConfig, ModelConfig, RunConfig, SplitsConfig, TrainingConfig, resolve
from mil.plan import build_plan
from mil.splits import splits_of
from mil.store.build import StoreBuild
from mil.store.places import BuildSettings, Source, read_header
from mil.store.reading import Store
from mil.store.write import write_slide
from pathray.config.sections import ScalingConfig
from pathray.data.plan import Plan
from pathray.device import Device
from pathray.run import train
from pathray.train.loop import Tick
from tests.builders.bags import grid_coords, write_bag


def make_store(folder: Path, bags: Path, settings: BuildSettings | None = None) -> Store:
    """The store of all bags in `bags`."""
    settings = settings or BuildSettings(dtype="float32", max_instances=None)
    headers = [read_header(Source(path.stem, str(path))) for path in sorted(bags.glob("*.h5"))]
    with StoreBuild(str(folder), settings, headers) as build:
        build.finish(map(write_slide, build.places))
    return Store(str(folder))


def write_cohort(
    root: Path, *, patients: int = 12, slides: int = 2, tiles: int = 30, dim: int = 8, share: float = 0.2, seed: int = 0
) -> Path:
    """`root`/slides.csv, h5/ and store/: every other patient is a "tumor", with a share of tiles moved by 3 in one
    direction. Tumors have grades 1 and 2, others 0; they live for a year, others for ten; one in four is censored.
    Returns `root`."""
    draw = np.random.default_rng(seed)
    rows = ["slide_id,patient_id,label,score,grade,months,died"]
    for p in range(patients):
        label = ("normal", "tumor")[p % 2]
        for s in range(slides):
            n = int(draw.integers(tiles // 2, tiles * 2))
            features = draw.normal(size=(n, dim)).astype(np.float32)
            if label == "tumor":
                features[: max(1, round(share * n)), 0] += 3
            name = f"p{p:02d}_s{s}"
            write_bag(
                root / "h5" / f"{name}.h5",
                features,
                grid_coords(n, seed=p * 7 + s),
                of_coords={"patch_size_level0": 512},
            )
            grade, months = p % 2 * (1 + p // 2 % 2), (120, 12)[p % 2] + p
            rows.append(f"{name},P{p:02d},{label},{p % 2 + 0.1 * s:.1f},{grade},{months},{int(p % 4 != 2)}")
    (root / "slides.csv").write_text("\n".join(rows) + "\n")
    make_store(root / "store", root / "h5")
    return root


def run_config(root: Path | str, workers: int = 1, **changes: Any) -> RunConfig:
    """A training of the cohort in `root`: six passes in global batches of two slides, validated after each."""
    data = {"csv": f"{root}/slides.csv", "store": f"{root}/store", "threads": 1, "ahead": 1}
    training = {"max_epochs": 6, "global_batch": 2, "batch_size_per_gpu": 2 // workers, "lr": 1e-2}
    config = RunConfig(
        data=LabelledSlides(**(data | changes.pop("data", {}))),
        model=ModelConfig("abmil", {"embed_dim": 16, "attention_dim": 8} | changes.pop("arguments", {})),
        splits=SplitsConfig(folds=3),
        training=TrainingConfig(**(training | changes.pop("training", {}))),
        logging=LoggingConfig(mlflow=False),
        scaling=ScalingConfig(workers=0, accelerator="cpu"),
    )
    return replace(config, **changes)


def fold_plan(root: Path, folder: Path, fold: str = "fold_0", *, permute_test: bool = False) -> Plan:
    """The plan of a fold; with `permute_test` the labels of the test slides are exchanged before it is made."""
    store = Store(str(root / "store"))
    cohort = read_cohort(str(root / "slides.csv"), store, label="label")
    split = splits_of(cohort, SplitsConfig(folds=3))[fold]
    if permute_test:
        truth, tested = cohort.truth.copy(), split.of == "test"
        truth[tested] = 1 - truth[tested]
        cohort = replace(cohort, truth=truth)
    return build_plan(cohort, split, store, str(folder))


def trained(device: Device, plan_path: str, root: str, run: str, stop_after: int = 0, **changes: Any) -> dict[str, Any]:
    """How a run in the folder `run` ended, from whatever is there."""
    torch.set_num_threads(1)
    Path(run).mkdir(exist_ok=True)
    plan = Plan.open(plan_path)
    config = resolve(run_config(root, device.world_size, **changes), device.world_size, plan.rows)
    parts = assemble(config, plan, device.world_size)
    if stop_after:
        parts.watch = StopAfter(run, stop_after)
    return asdict(train(parts, plan, run, device))


class StopAfter:
    """Asks for a stop after a step."""

    def __init__(self, run: str, step: int) -> None:
        self.run, self.step = run, step

    def observe(self, tick: Tick) -> dict[str, float]:
        if tick.step == self.step:
            (Path(self.run) / "STOP").touch()
        return {}


def stopped_and_resumed(device: Device, plan_path: str, root: str, folder: str) -> list[str]:
    """An undisturbed run in `whole`, another in `parts`, stopped after its seventh step and resumed: their ends."""
    ends = [trained(device, plan_path, root, f"{folder}/whole")["end"]]
    ends.append(trained(device, plan_path, root, f"{folder}/parts", stop_after=7)["end"])
    ends.append(trained(device, plan_path, root, f"{folder}/parts")["end"])
    return ends
