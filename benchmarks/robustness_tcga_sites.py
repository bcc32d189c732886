"""Robustness evaluation on real patches of many hospitals: a random encoder against a pretrained one.

    python benchmarks/robustness_tcga_sites.py ../shared/data/patches/tcga_sites --pretrain 1600
    python benchmarks/robustness_tcga_sites.py ../shared/data/patches/tcga_sites --encoder RUN/encoder --output pictures
    python benchmarks/learning_ijepath.py encoders=encoders     # three seeds, and then all six encoders:
    python benchmarks/robustness_tcga_sites.py ../shared/data/patches/tcga_sites --encoder encoders/*

396 H&E patches of 8 organs, 44 slides, 32 tissue source sites. The class is the organ. The centre is once the
preparation (FFPE or frozen) and once the site. The artifacts of `--encoder` are compared; without them, a random
vit_micro, and itself after `--pretrain` images of I-JEPATH, trained as in benchmarks/learning_ijepath.py. (That
training sees these patches, but no label.) Patches are halved to about 1.0 mpp, the spacing of its contexts. Prints
every metric with its interval, and notes on what 44 slides are too few for; writes the embedding pictures. A minute and
a half of two free cores per encoder.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
from learning_ijepath import pretrain, run_config, save_encoder
from tissue import build, pixels

from ijepath.recipe import IJepathRecipe
from pathray.device import Device
from pathray.evaluation.datasets import Dataset, open_dataset
from pathray.evaluation.embedding_chart import draw_embedding
from pathray.evaluation.plugins import EVALUATORS, Evaluation, evaluate, features_of
from pathray.evaluation.projection import embed, load_embedding, save_embedding
from pathray.features.images import ImageSettings

CENTERS = {"preparation": "prep", "site": "tcga_source_site"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patches", type=Path, help="the folder tcga_sites, its index.tsv inside it")
    parser.add_argument("--encoder", nargs="+", help="artifacts of encoders")
    parser.add_argument("--pretrain", type=int, default=0, help="images to pretrain on here; needs the slides beside")
    parser.add_argument("--output", type=Path, default=Path("robustness_tcga_sites"), help="folder of the pictures")
    parser.add_argument("--side", type=int, default=156, help="pixels of a patch as the encoders see it")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        datasets = [manifest(options.patches, Path(folder), name, options.side) for name in CENTERS]
        for name, artifact in encoders(options, Path(folder)).items():
            judge(name, artifact, datasets, Path(folder), options.output)


def manifest(patches: Path, folder: Path, center: str, side: int) -> Dataset:
    """The dataset whose centres are `center`, its images of `side` pixels in `folder`."""
    from PIL import Image

    with (patches / "index.tsv").open(newline="") as f:
        rows = list(csv.DictReader(f, delimiter="\t"))
    lines = ["image_path,label,medical_center,slide_id,sample_id"]
    for i, row in enumerate(rows):
        image = folder / f"{i}.png"
        if not image.exists():
            whole = Image.fromarray(pixels(patches.parent / row["path"]))
            whole.resize((side, side), Image.Resampling.BOX).save(image)
        lines.append(f"{image.name},{row['organ']},{row[CENTERS[center]]},{row['slide']},{row['patient']}")
    path = folder / f"{center}.csv"
    path.write_text("\n".join(lines) + "\n")
    return open_dataset(center, str(path))


def encoders(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Artifacts by name."""
    if options.encoder:
        folders = {path: Path(path) for path in options.encoder}
        return {(own.parent if own.name == "encoder" else own).name: path for path, own in folders.items()}
    config = run_config(max(options.pretrain, 64), every=200, seed=0)
    recipe = IJepathRecipe(config)
    found = {"random": save_encoder(recipe, folder / "random")}
    if options.pretrain:
        start, plan = time.perf_counter(), build(options.patches.parents[1], folder, config)
        losses = [metrics["loss"] for metrics in pretrain(recipe, config, plan)]
        spent = time.perf_counter() - start
        print(f"pretrained on {options.pretrain} images in {spent:.0f} s, loss {losses[0]:.4f} to {losses[-1]:.4f}")
        found["pretrained"] = save_encoder(recipe, options.output / "encoder")
    return found


def judge(name: str, artifact: str, datasets: list[Dataset], folder: Path, output: Path) -> None:
    start = time.perf_counter()
    features = features_of(datasets[0], artifact, Device.of("cpu"), ImageSettings(batch_size=16))
    spread = float(features.std(axis=0).mean())
    print(f"\n{name}: {features.shape[0]} x {features.shape[1]} features, std {spread:.3g}, ", end="")
    print(f"{time.perf_counter() - start:.0f} s", flush=True)
    for dataset in datasets:
        assert dataset.images == datasets[0].images
        for plugin in EVALUATORS:
            start = time.perf_counter()
            show(plugin, dataset, evaluate(plugin, dataset, features), time.perf_counter() - start)
        embedding = embed(features)
        save_embedding(str(folder / name), dataset, embedding, 0)
        kept = load_embedding(str(folder / name), dataset.name, 0)
        picture = output / f"{name}_{dataset.name}.png"
        picture.write_bytes(draw_embedding(kept, f"{name}, centre: {dataset.name}"))
        print(f"  {picture}")


def show(plugin: str, dataset: Dataset, found: Evaluation, seconds: float) -> None:
    print(f"  {plugin}, centre: {dataset.name} ({np.unique(dataset.rows['ri'].centers).size}), {seconds:.1f} s")
    for key, value in found.metrics.items():
        if key.endswith(("_low", "_high")):
            continue
        low, high = (found.metrics.get(f"{key}_{end}") for end in ("low", "high"))
        interval = "" if low is None else f"  [{low:+.3f}, {high:+.3f}]"
        print(f"    {key.rpartition('/')[2]:<18}{value:+.3f}{interval}")
    for note in found.notes:
        print(f"    note: {note}")


if __name__ == "__main__":
    main()
