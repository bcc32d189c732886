"""Image → gene expression on real breast sections: the trained model against ridge on colours and on frozen encoders.

    python benchmarks/regression_her2st.py ../shared/data --output outputs/her2st

1,193 spots of six HER2+ sections, two patients (B4 of one, C2 … C6 of the other), 50 genes as log1p CP10k. Both cross-
validations use `ray_jobs.train_folds`, as a user would: leave one section out and leave one patient out. There is no
validation: a fold trains on everything that it does not test, for ten passes, and the last state counts.
(`--validate`: each section validates the fold before it. The section B4, of another patient, then chooses a state of
the first pass.) The trained ResNet-18 starts from random weights. It is compared with ridge on twelve colour features,
on the ResNet-18 as it began, and on a vit_micro as initialised (`random`) and pretrained (`ijepath`). The latter has
seen `--pretrain` images of I-JEPATH on other slides and patches, none of them of this set. Prints and writes the
tables of both, also per gene, and figures. The 50 genes are those of the set's own table, chosen over all its
sections, as for the baselines. Half an hour on two free cores. Keys of train_folds may follow.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
from learning_ijepath import pretrain, run_config, save_encoder
from tissue import build

from ijepath.recipe import IJepathRecipe

COLUMNS = ("path", "group_id", "section", "x", "y", "image", "unit")
UNIT = "log1p CP10k"
MODEL = (
    "model.backbone=resnet18", "data.image_size=64", "train.epochs=10", "train.lr=1e-3", "train.weight_decay=1e-2",
    "train.warmup=0.1", "train.batch_size=32", "train.grad_accum_steps=1", "logging.log_every=512",
    "scaling.cpus_per_worker=1", "data.threads=1", "logging.mlflow=false", "parallel=2",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds regression/her2st, wsi and patches")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pretrain", type=int, default=3200, help="images of I-JEPATH")
    parser.add_argument(
        "--validate", action="store_true", help="leave-one-section-out chooses its states by validation"
    )
    parser.add_argument("keys", nargs="*", help="further keys of train_folds")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    options.output.mkdir(parents=True, exist_ok=True)
    probes = encoders(options.data, options.output, options.pretrain)
    for held, column in (("section", "section"), ("patient", "patient")):
        table, genes = write_table(options.data / "regression" / "her2st", options.output / f"{held}s.csv", column)
        output = options.output / f"leave_one_{held}_out"
        splits = options.output / f"splits_{held}"
        common = [f"genes={json.dumps(genes)}", f"target_dim={len(genes)}"]
        validates = options.validate and held == "section"
        kind = ["kind=leave_one_group_out", f"validation={str(validates).lower()}"]
        job("make_splits", f"table={table}", f"output={splits}", *kind, *common)
        keys = [f"data.{word}" for word in common]
        keys += [f"eval.probes.{name}={path}" for name, path in probes.items()]
        title = f"title=Leave one {held} out: HER2+ breast"
        start = time.perf_counter()
        job(
            "train_folds", f"splits={splits}", f"data.table={table}", f"output={output}", title, *MODEL, *keys,
            *options.keys,
        )  # fmt: skip
        print(f"leave one {held} out: {time.perf_counter() - start:.0f} s", flush=True)


def write_table(her2st: Path, path: Path, group: str) -> tuple[Path, list[str]]:
    """The set's spots and targets as a regression table whose groups are `group`, and its genes."""
    with (her2st / "spots.tsv").open(newline="") as f:
        spots = list(csv.DictReader(f, delimiter="\t"))
    with (her2st / "targets_log1p_cp10k_top50.tsv").open(newline="") as f:
        targets = {row["spot_id"]: row for row in csv.DictReader(f, delimiter="\t")}
    genes = [name for name in targets[spots[0]["spot_id"]] if name != "spot_id"]
    with path.open("w", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow([*COLUMNS, *genes])
        for spot in spots:
            image = her2st / "raw" / f"{spot['section']}.jpg"
            place = [spot["section"], spot["pixel_x"], spot["pixel_y"], image.resolve() if image.exists() else "", UNIT]
            values = [targets[spot["spot_id"]][gene] for gene in genes]
            writer.writerow([(her2st / spot["patch"]).resolve(), spot[group], *place, *values])
    return path, genes


def encoders(data: Path, output: Path, images: int) -> dict[str, str]:
    """Artifacts of a vit_micro as initialised and as pretrained; existing ones are kept."""
    found = {name: output / "encoders" / name for name in ("random", "ijepath")}
    if not all((folder / "artifact.json").exists() for folder in found.values()):
        config = run_config(images, every=400, seed=0)
        recipe, start = IJepathRecipe(config), time.perf_counter()
        save_encoder(recipe, found["random"])
        with tempfile.TemporaryDirectory() as folder:
            plan = build(data, Path(folder), config)
            losses = [metrics["loss"] for metrics in pretrain(recipe, config, plan)]
        save_encoder(recipe, found["ijepath"])
        spent = time.perf_counter() - start
        print(f"pretrained on {images} images in {spent:.0f} s, loss {losses[0]:.4f} to {losses[-1]:.4f}", flush=True)
    return {name: str(folder) for name, folder in found.items()}


def job(name: str, *words: str) -> None:
    subprocess.run([sys.executable, "-m", f"ray_jobs.{name}", *words], check=True)


if __name__ == "__main__":
    main()
