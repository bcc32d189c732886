"""A cohort of real tissue with planted witnesses, from images to a judged classifier by the jobs alone.

    python benchmarks/mil_tissue.py output=outputs/mil_tissue                       # 240 slides; ten minutes of a core
    python benchmarks/mil_tissue.py output=… encoder=outputs/run/encoder share=0.05

Tiles are crops of the patches of `patches/tcga_sites` (kidney, lung, breast, prostate … of 32 source sites) and, as
witnesses, of the adenocarcinomas of `patches/crc5`. A patient has three of the former and, where he is sick, two of the
latter to himself: no two patients share a pixel. Hospital A is one half of the source sites, B the other. A patient has
one to three slides of 40 to 75 tiles; in half of the patients a `share` of the tiles are witnesses, at random places of
the slide. Features come from an artifact of ours; by default a ViT as initialised, which nobody has trained. They are
standardised over all tiles, without labels: small encoders leave a mean that is as large as what differs, and ABMIL
then fits the training slides without finding the witnesses (AUROC .54 instead of .84 in a first try).

The jobs build_store, train_mil (five folds of patients) and train_mil again, on hospital A to be tested in B, run as a
user types them. Prints AUROC with its interval over patients for both, and the share of attention on witnesses.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from omegaconf import OmegaConf
from tissue import pixels, table

import pathray
from mil.artifact import load
from mil.store.reading import Store
from pathray.nn.vit import ViT, vit_config
from pathray.store.artifact import EncoderArtifact

SIDE, STRIDE, MPP, LEVEL0 = 112, 52, 0.5, 224
PATCHES = 3  # of a patient, with background
ROOT = Path(__file__).parents[1]
OWN = (
    "training.lr=1e-3", "training.max_epochs=60", "eval.patience=null", "training.global_batch=8",
    "training.batch_size_per_gpu=8", "model.arguments.embed_dim=64", "model.arguments.attention_dim=32",
    "logging.mlflow=false", "training.weight_decay=0.1", "model.arguments.dropout=0.5",
)  # fmt: skip


@dataclass
class Settings:
    """Settings of the benchmark; every other key is one of ray_jobs.train_mil."""

    output: str = "outputs/mil_tissue"
    data_dir: str = "../shared/data"
    encoder: str | None = None
    patients: int = 120
    share: float = 0.1
    seed: int = 0


def main() -> None:
    own = {f.name for f in fields(Settings)}
    mine = [a for a in sys.argv[1:] if a.partition("=")[0] in own]
    keys = [a for a in sys.argv[1:] if a not in mine]
    settings: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.from_dotlist(mine)))
    folder = Path(settings.output).absolute()
    if not (folder / "slides.csv").exists():
        write_cohort(settings, folder)
    run("build_store", f"data.features={folder}/features", f"data.store={folder}/store")
    common = (f"data.csv={folder}/slides.csv", f"data.store={folder}/store", "model=abmil", *OWN, *keys)
    run("train_mil", *common, f"output={folder}/patients")
    other = ("splits.scheme=custom_holdout", "splits.filter='hospital == \"B\"'", "splits.fractions=[0.8,0.2,0.0]")
    run("train_mil", *common, *other, f"output={folder}/hospital_B")
    for name in ("patients", "hospital_B"):
        found = json.loads((folder / name / "metrics.json").read_text())["slides_as_units"]["overall"]["auroc"]
        print(f"{name:<10} AUROC {found['value']:.3f} [{found['low']}, {found['high']}]")
    print(f"attention on witnesses: {attention(folder):.3f} of it, on {settings.share:.2f} of the tiles")


def run(job: str, *words: str) -> None:
    command = [sys.executable, "-m", f"ray_jobs.{job}", *words]
    print("$ python -m", " ".join(command[2:]), flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


def write_cohort(settings: Settings, folder: Path) -> None:
    encoder = pathray.load_encoder(settings.encoder or untrained(folder / "encoder"))
    draw, root = np.random.default_rng(settings.seed), Path(settings.data_dir)
    own = {name: draw.permutation(np.array(rows, object)).tolist() for name, rows in patches_of(root).items()}
    (folder / "features").mkdir(parents=True, exist_ok=True)
    rows, planted, bags = [], {}, {}
    for p in range(settings.patients):
        hospital, sick = "AB"[p // 2 % 2], p % 2
        background = encoder.embed(crops(root, [own[hospital].pop() for _ in range(PATCHES)]), resize=True)
        witnesses = (
            encoder.embed(crops(root, [own["witnesses"].pop() for _ in range(2)]), resize=True) if sick else None
        )
        for s in range(int(draw.integers(1, 4))):
            name, n = f"P{p:03d}_{s}", int(draw.integers(40, len(background) + 1))
            bag = background[draw.permutation(len(background))[:n]]
            places = np.sort(draw.choice(n, max(1, round(settings.share * n)), replace=False)) if sick else []
            if witnesses is not None:
                bag[places] = witnesses[draw.permutation(len(witnesses))[: len(places)]]
            bags[name] = bag
            planted[name] = [int(i) for i in places]
            rows.append((name, f"P{p:03d}", hospital, ("benign", "cancer")[sick]))
    tiles = np.concatenate(list(bags.values()))
    for name, bag in bags.items():
        write_slide(folder / "features" / f"{name}.h5", (bag - tiles.mean(0)) / (tiles.std(0) + 1e-6))
    (folder / "witnesses.json").write_text(json.dumps(planted))
    with (folder / "slides.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("slide_id", "patient_id", "hospital", "label"), *rows])


def write_slide(path: Path, features: np.ndarray) -> None:
    width = int(np.ceil(np.sqrt(len(features))))
    cells = np.stack(np.divmod(np.arange(len(features)), width)[::-1], axis=1)
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = features, cells * LEVEL0
        file["coords"].attrs["patch_size_level0"] = LEVEL0


def patches_of(root: Path) -> dict[str, list[str]]:
    """The patches of each hospital and those with witnesses, by path."""
    sites = table(root / "patches" / "tcga_sites" / "index.tsv")
    names = sorted({row["tcga_source_site"] for row in sites})
    out = {h: [r["path"] for r in sites if r["tcga_source_site"] in names[i::2]] for i, h in enumerate("AB")}
    return out | {
        "witnesses": [r["path"] for r in table(root / "patches" / "crc5" / "index.tsv") if r["class"] == "AC"]
    }


def crops(root: Path, paths: Sequence[str]) -> np.ndarray:
    """Tiles uint8 `[N, 112, 112, 3]`: of each patch all whose corners are on a grid."""
    tiles = []
    for path in paths:
        image = pixels(root / "patches" / path)
        for y in range(0, image.shape[0] - SIDE + 1, STRIDE):
            tiles += [image[y : y + SIDE, x : x + SIDE] for x in range(0, image.shape[1] - SIDE + 1, STRIDE)]
    return np.stack(tiles)


def untrained(folder: Path) -> str:
    torch.manual_seed(0)
    vit = ViT(vit_config("vit_micro", img_size=(SIDE, SIDE)))
    preprocessing = {"mean": [0.7, 0.55, 0.7], "std": [0.2, 0.25, 0.2], "size": SIDE, "mpp": MPP}
    EncoderArtifact.save(str(folder), vit, preprocessing=preprocessing, science="ijepath", provenance={})
    return str(folder)


def attention(folder: Path) -> float:
    """The mean share of attention on the witnesses of sick patients' slides, each by the model that tested it."""
    import pyarrow.parquet as pq

    store, planted = Store(str(folder / "store")), json.loads((folder / "witnesses.json").read_text())
    nets, shares = {}, []
    for row in pq.read_table(folder / "patients" / "oof_predictions.parquet").to_pylist():
        if places := planted[row["slide_id"]]:
            net = nets.setdefault(row["fold"], load(str(folder / "patients" / f"fold_{row['fold']}" / "encoder")).net)
            bag = torch.from_numpy(np.array(store.features(store.index[row["slide_id"]]), np.float32))[None]
            with torch.no_grad():
                weights = net.predict(bag, return_attention=True).attention[0, 0]
            shares.append(float(weights[places].sum()))
    return float(np.mean(shares))


if __name__ == "__main__":
    main()
