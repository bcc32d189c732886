"""What ADIOS learns in twenty minutes on two cores, through the jobs: masks, a linear probe, nuclei over checkpoints.

    python benchmarks/learning_adios.py                     # three seeds of `--config demo`, an hour on two free cores
    python benchmarks/learning_adios.py seeds=1 total_iterations=100      # any key of ray_jobs.pretrain_adios

The jobs themselves make the data set: patches of 448 pixels at 0.25 mpp (112 µm), zipped and indexed. They come from
the slides `wsi/*.svs`, from `patches/tcga_sites` and from the training part of `patches/crc5`, whose spacing is assumed
to be 0.5 mpp. Every seed is a run in `output`, which resumes after an interruption.

The probe uses the student's class token, and the mean of its patch tokens, at 64 pixels as in training. It is trained
on crc5's training part and tested on its test part (5 classes, 450 and 150 images). Baselines are the same network as
initialised, and colour means and deviations alone. No test image is seen before. Prints accuracies per seed and the
paired difference pretrained − random with its 95% t interval over seeds. Then come the last statistics of the masks,
and the nuclei benchmark over each seed's checkpoints on `nuclei/dsb2018_brightfield`. Look at
`run_<seed>/visualizations/masks`.

`run_<seed>/probes.jsonl` and its picture follow the probes over the checkpoints, by five-fold cross-validation over all
600 patches with 95% t intervals over folds, as benchmarks/learning_ijepath.py does. Most of these patches are in the
training set, without their labels. `learning_adios.py curves=FOLDER` judges the checkpoints of a run again.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
from omegaconf import OmegaConf
from probes import PROBES, Figures, cross_validated, in_words, probe, probe_panel, renamed
from tissue import Patches, colour_features, crc5

from adios.config import CONFIGS_DIR, RunConfig
from adios.student import build_student
from pathray.config.load import load_config
from pathray.draw.charts import draw_curves
from pathray.run.layout import CHECKPOINTS
from pathray.stats.bootstrap import paired_difference
from pathray.store.artifact import EncoderArtifact
from pathray.store.checkpoint import check_tensors
from pathray.store.checkpoint import load as load_checkpoint
from pathray.store.committed import list_committed

REPOSITORY = Path(__file__).parents[1]
SIZE, MPP, IMAGE_MPP = 448, 0.25, 0.5
SHOWN = ("loss/student", "loss/mask", "mask_spread", "mask_entropy", "mask_overlap", "feature_std", "feature_rankme")
POOLINGS = ("cls", "mean")
SHARES = (0.15, 0.2, 0.25, 1 / 3, 0.5)
PREFIX = "model.student.vit."  # of the encoder's tensors in a checkpoint


PANELS = tuple(
    probe_panel(f"{title}, {pooling}", f"{pooling}_{kind}")
    for pooling in POOLINGS
    for kind, title in zip(PROBES, ("Linear probe", "Nearest neighbours"), strict=True)
)


@dataclass
class Settings:
    """Settings of the benchmark; every other key is one of ray_jobs.pretrain_adios."""

    data_dir: str = "../shared/data"
    output: str = "outputs/learning_adios"
    seeds: int = 3
    threads: int = 2  # of the worker, and of the probes
    neighbours: int = 20
    folds: int = 5
    curves: str | None = None  # only probe the checkpoints of the runs in this folder, an `output` of before
    nuclei_scale: float = 0.5  # of the nuclei's images, whose pixels are finer than those that are trained on


def main() -> None:
    own = {f.name for f in fields(Settings)}
    mine = [a for a in sys.argv[1:] if a.partition("=")[0] in own]
    keys = [a for a in sys.argv[1:] if a not in mine]
    settings: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.from_dotlist(mine)))
    torch.set_num_threads(settings.threads)
    root, output = Path(settings.data_dir).resolve(), Path(settings.curves or settings.output).resolve()
    if settings.curves:
        for run in sorted(output.glob("run_*")):
            config = load_config(RunConfig, ("--config", str(run / "config_resolved.yaml")), configs_dir=CONFIGS_DIR)
            probe_checkpoints(run, config.config, crc5(root), settings)
        return
    index = cut(root, output / "data")
    patches = crc5(root)
    floor = probe(colour_features(patches.images), patches, settings.neighbours)
    print(f"colour floor            linear {floor['linear']:.3f}  kNN {floor['knn']:.3f}", flush=True)
    told = "  ".join(f"{share:.2f}: {bound:.3f}" for share, bound in area_bounds(root).items())
    print(f"best Dice of a crisp mask that takes a share of every image: {told}", flush=True)
    results = [one_seed(seed, keys, index, root, output, patches, settings) for seed in range(settings.seeds)]
    differences = report(results)
    figures = {"settings": asdict(settings), "keys": keys, "floor": floor, "seeds": results}
    (output / "figures.json").write_text(json.dumps({**figures, "differences": differences}, indent=1))


def area_bounds(root: Path) -> dict[float, float]:
    """The mean Dice over the nuclei's images that no crisp mask of a given share of the pixels can exceed: with a share
    p of nuclei it is 2 min(p, m) / (p + m). The penalty on areas holds N masks near m = 1/N."""
    with (root / "nuclei" / "dsb2018_brightfield" / "index.tsv").open(newline="") as f:
        p = np.array([float(row["fg_fraction"]) for row in csv.DictReader(f, delimiter="\t")])
    return {m: float((2 * np.minimum(p, m) / (p + m)).mean()) for m in SHARES}


def cut(root: Path, folder: Path) -> Path:
    """Cut and index the zipped patches in `folder`; finished archives are skipped. Returns the index."""
    folder.mkdir(parents=True, exist_ok=True)
    slides, index, zips = folder / "slides.csv", folder / "patches.parquet", folder / "zips"
    rows = [
        f"{path.stem},{path},,{'' if 'CMU' in path.stem else IMAGE_MPP}"
        for path in sorted((root / "wsi").glob("*.svs"))
    ]
    slides.write_text("\n".join(["slide_id,wsi_path,mask_path,mpp", *rows]) + "\n")
    command("index_slides", f"manifest={slides}", f"output={folder / 'slides.parquet'}")
    tiles = (f"size={SIZE}", f"mpp={MPP}", f"output={zips}")
    command(
        "cut_patches",
        f"slides={folder / 'slides.parquet'}",
        *tiles,
        "overlap_px=224",
        f"report={folder / 'of_slides.csv'}",
    )
    for name, overlap in (("crc5/training", 0), ("tcga_sites", 256)):
        own = (f"images={root / 'patches' / name}", f"image_mpp={IMAGE_MPP}", f"overlap_px={overlap}")
        command("cut_patches", *own, *tiles, f"report={folder / name.partition('/')[0]}.csv")
    command("index_patches", f"source={zips}", f"output={index}")
    return index


def one_seed(
    seed: int, keys: Sequence[str], index: Path, root: Path, output: Path, patches: Patches, settings: Settings
) -> dict[str, Any]:
    """Pretrain through Ray, probe the first and the last student, judge the mask model of every checkpoint."""
    run = output / f"run_{seed}"
    argv = ("--config", "demo", *keys, f"seed={seed}")
    scaling = ("scaling.accelerator=cpu", f"scaling.threads_per_worker={settings.threads}")
    command("pretrain_adios", *argv, *scaling, f"data_path={index}", f"output={run}")
    config = load_config(RunConfig, argv, configs_dir=CONFIGS_DIR).config
    out: dict[str, Any] = {"seed": seed}
    encoders = {"random": build_student(config).vit, "pretrained": EncoderArtifact.load(str(run / "encoder"))[0]}
    for name, vit in encoders.items():
        found = features(vit, config, patches)
        out[name] = {pooling: probe(found[pooling], patches, settings.neighbours) for pooling in POOLINGS}
    probe_checkpoints(run, config, patches, settings)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss/student" in line]
    out["minutes"] = float(np.mean([line["step_ms"] for line in lines])) * lines[-1]["step"] / 60_000
    out["first"], out["last"] = ({k: line[k] for k in SHOWN if k in line} for line in (lines[0], lines[-1]))
    out["masks"] = {k: v for k, v in lines[-1].items() if k.startswith("mask_mean")}
    nuclei = root / "nuclei" / "dsb2018_brightfield"
    command(
        "nuclei_benchmark", f"run={run}", f"data={nuclei}", f"output={run / 'nuclei'}", f"scale={settings.nuclei_scale}"
    )
    judged = json.loads((run / "nuclei" / "results.json").read_text())
    wanted = ("images_seen", "dice", "iou", "pq", "oracle_dice", "oracle_pq", "dice_above_otsu", "channel", "rule")
    out["nuclei"] = [{k: row[k] for k in wanted} for row in judged["checkpoints"]]
    out["otsu"] = judged["otsu"]
    tell(out)
    return out


def probe_checkpoints(run: Path, config: RunConfig, patches: Patches, settings: Settings) -> None:
    """Write probes.jsonl and its picture into `run`: a row for random weights and one per checkpoint, with the
    five-fold accuracy of each pooling and probe."""
    floor = cross_validated(colour_features(patches.images), patches, settings.folds, settings.neighbours)
    vit = build_student(config).vit
    rows, first = list[Figures](), dict[str, Any]()
    for seen, path in [(0, None), *checkpoints(run)]:
        if path is not None:
            tensors = load_checkpoint(path)[0]
            own = {name.removeprefix(PREFIX): t for name, t in tensors.items() if name.startswith(PREFIX)}
            check_tensors(own, vit.state_dict(), source=path)
            vit.load_state_dict(own)
        row: Figures = {"images_seen": seen}
        for pooling, x in features(vit, config, patches).items():
            found = cross_validated(x, patches, settings.folds, settings.neighbours)
            row |= {f"{pooling}_{name}": value for name, value in found.items()}
            if path is None:
                baselines = renamed(found, "random") | renamed(floor, "colours")
                first |= {f"{pooling}_{name}": value for name, value in baselines.items()}
            print(f"  {seen:>7,} images  {pooling:<5} {in_words(found)}", flush=True)
        rows.append(first | row)
    (run / "probes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "probes.png").write_bytes(draw_curves(rows, PANELS, "ADIOS, probes over images seen", along="images_seen"))


def checkpoints(run: Path) -> list[tuple[int, str]]:
    """Images seen and path of each checkpoint in `run`, in that order."""
    found = list_committed(str(run / CHECKPOINTS))
    return sorted({int(one.meta["images_seen"]): one.path for one in found}.items())


def tell(out: dict[str, Any]) -> None:
    print(f"seed {out['seed']}: trained for {out['minutes']:.1f} minutes")
    for name in ("first", "last"):
        print(f"  {name:<11}", "  ".join(f"{k} {v:.3g}" for k, v in out[name].items()))
    print("  masks      ", "  ".join(f"{k} {v:.3f}" for k, v in out["masks"].items()))
    for name in ("random", "pretrained"):
        told = (f"{p}: linear {out[name][p]['linear']:.3f} kNN {out[name][p]['knn']:.3f}" for p in POOLINGS)
        print(f"  {name:<11}", "   ".join(told))
    for row in out["nuclei"]:
        print(
            f"  nuclei at {row['images_seen']:>6,} images: Dice {row['dice']:.3f} (oracle {row['oracle_dice']:.3f})",
            end="",
        )
        print(f"  PQ {row['pq']:.3f}  mask {row['channel'] + 1} by {row['rule']}")
    print(f"  Otsu in red: Dice {out['otsu']['dice']:.3f}  PQ {out['otsu']['pq']:.3f}", flush=True)


def features(vit: Any, config: RunConfig, patches: Patches) -> dict[str, np.ndarray]:
    """Class token and mean patch token `[N, D]` of every evaluation image at the size of training."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (config.data.mean, config.data.std))
    cls, tokens = [], []
    vit.eval()
    with torch.inference_mode():
        for i in range(0, len(patches.images), 32):
            x = torch.from_numpy(patches.images[i : i + 32]).movedim(-1, 1).float() / 255
            x = torch.nn.functional.interpolate(x, size=(config.data.image_size,) * 2, mode="area")
            found = vit((x - mean) / std)
            cls.append(found[:, 0].numpy())
            tokens.append(found[:, vit.num_prefix :].mean(dim=1).numpy())
    return {"cls": np.concatenate(cls), "mean": np.concatenate(tokens)}


def report(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Print and return the paired differences over seeds."""
    out: dict[str, Any] = {}
    for pooling in POOLINGS:
        for kind in ("linear", "knn"):
            after, before = ([r[name][pooling][kind] for r in results] for name in ("pretrained", "random"))
            print(f"{pooling:<5}{kind:<7} random {np.mean(before):.3f}  pretrained {np.mean(after):.3f}", end="  ")
            if len(results) > 1:
                interval = paired_difference(after, before)
                out[f"{pooling}/{kind}"] = asdict(interval)
                print(f"difference {interval}", end="")
            print()
    return out


def command(name: str, *argv: str) -> None:
    """Run a job as a user types it; the benchmark ends when it fails."""
    print("$ python -m ray_jobs." + " ".join([name, *argv]), flush=True)
    subprocess.run([sys.executable, "-m", f"ray_jobs.{name}", *argv], cwd=REPOSITORY, check=True)


if __name__ == "__main__":
    main()
