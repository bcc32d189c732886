"""What every job reads, small, in one folder; and what one types for each of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adios import artifact as mask_models
from adios.mask_models import MaskModelConfig, build_mask_model
from adios.patches.index import archives_of
from adios.patches.index_writer import index_patches
from pathray.data.split_files import write_split
from pathray.data.splits import folds, holdout
from pathray.store.metrics_log import MetricsLog
from regression import artifact
from regression.normalise import Normaliser
from regression.recipe import RegressionRecipe
from regression.tables.table import read_table
from tests.builders.encoders import write_encoder
from tests.builders.expression import run_config, write_images
from tests.builders.finished_mil import write_finished_run
from tests.builders.mil import write_cohort as write_slides_with_labels
from tests.builders.oct.labelled import write_labelled, write_oct_encoder
from tests.builders.oct.scans import both_eyes, index_scans
from tests.builders.oct.zipped import triton, write_zip
from tests.builders.patches import write_patches, write_tuning
from tests.builders.published import write_program
from tests.builders.runs.run import KEYS, index_and_catalog, write_cohort
from tests.builders.slide_models import write_slide_model
from tests.builders.zips import write_folder

REGRESSION = (
    "data.target_dim=3", "data.image_size=32", "data.threads=1", "model.backbone=vit_tiny", "train.batch_size=4",
    "train.grad_accum_steps=1", "train.images=48", "scaling.accelerator=cpu",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A job's words, the key of them that names its input, and what there is of it."""

    words: tuple[str, ...]
    input: str
    units: str  # of what a dry run says how many there are


def write_inputs(folder: Path) -> None:
    """Slides with index and catalog, patches, zips with index, OCT scans, an encoder, a regression with its run …"""
    manifest = write_cohort(folder / "cohort", slides=2)
    index_and_catalog(folder, manifest)
    write_encoder(folder / "encoder")
    write_program(folder / "program.pt")
    write_tuning(folder / "tuning.yaml", write_patches(folder / "patches", slides=2, patches=1))
    write_folder(folder / "zips")
    index_scans(folder / "oct", both_eyes("1"))
    write_labelled(folder / "labelled", persons=4)
    write_oct_encoder(folder / "oct_encoder")
    write_zip(folder / "oct_zips" / "a.zip", [(triton(1), b"one"), (triton(2), b"two")])
    root, archives = archives_of(str(folder / "zips"))
    write_finished_run(folder / "mil")
    index_patches(root, archives, str(folder / "patches.parquet"), max_corrupt_fraction=0.0)
    _write_regression(folder)
    write_slides_with_labels(folder / "mil", patients=6)
    rows = "".join(f"s{i},{'ab'[i % 2]},0.{4 + i % 2},0.{6 - i % 2}\n" for i in range(4))
    for name in ("predictions", "other"):
        (folder / "mil" / f"{name}.csv").write_text(f"slide_id,label,prob_a,prob_b\n{rows}")
    write_slide_model(folder / "slide_model")
    run = folder / "run"
    MetricsLog(str(run / "metrics.jsonl")).append({"images_seen": 8, "loss": 1.0})
    (run / "metrics.json").write_text('{"run_name": "run", "end": "budget", "best": {}}')
    model = build_mask_model(MaskModelConfig(image_size=32, num_masks=2, dim=32, depth=4, heads=2), 0)
    mask_models.save(str(folder / "adios" / "mask_model"), model, [0.6] * 3, [0.2] * 3, {"images_seen": 8, "step": 1})


def _write_regression(folder: Path) -> None:
    table = read_table(write_images(folder / "images"))
    write_split(str(folder / "split.csv"), table, holdout(table, 0, train=0.5, val=0.25, test=0.25))
    for i, split in enumerate(folds(table, 0, 3)):
        write_split(str(folder / "folds" / f"fold_{i}.csv"), table, split)
    recipe = RegressionRecipe(run_config(), Normaliser.none(("y0", "y1", "y2")))
    artifact.save(str(folder / "model"), recipe.net, recipe.preprocessing, recipe.normaliser, {})


def jobs(f: Path) -> dict[str, Job]:
    """Every job of ray_jobs on what `write_inputs` and the builders of spots and nuclei have left in `f`."""
    slides, table, out = f / "cohort" / "slides.csv", f"table={f}/images/table.csv", f"output={f}/out"
    index, encoder, split = f"{f}/slide_metadata.parquet", f"{f}/encoder", f"split={f}/split.csv"
    regression = (*REGRESSION, f"data.{table}")
    trial = ", ".join(f'"{word}"' for word in (*regression, f"data.{split}"))
    sweep = ("job=train_regression", f"args=[{trial}]", "space={train.lr: {grid: [1e-3, 1e-4]}}", "search=grid")
    spots = (f"counts={f}/counts.csv", f"images={f}/{{section}}.png", "image_mpp=1.0", "mpp=1.0", "genes=[a]")
    labelled = (f"data.labels={f}/labelled/labels.csv", f"data.index={f}/labelled/volumes.parquet", "data.folds=2")
    mil = f'"data.csv={f}/mil/slides.csv", "data.store={f}/mil/store", "splits.folds=3"'
    given = {
        "aggregate_results": ((f"runs={f}/run",), "1 finished runs"),
        "analyze_mil": ((f"run={f}/mil/run", out), "2 slides"),
        "audit_oct": ((f"index={f}/oct/oct.parquet", f"output={f}/out.html"), "2 files"),
        "benchmark_models": ((f"args=[{mil}]", "models=[abmil,static]", out), "2 trials"),
        "build_anchors": ((f"slide_index={index}", out), "2 slides"),
        "build_store": ((f"data.features={f}/mil/h5", f"data.store={f}/out"), "12 bags"),
        "check_oct": ((f"data.manifest={f}/oct/manifest.tsv", f"output_dir={f}/out"), "2 files, 12 checks"),
        "cut_patches": ((f"slides={index}", out), "2 slides"),
        "doctor": ((f"slides={slides}", f"storage={f}/out", "ray=false"), "1 folders, 2 slides"),
        "evaluate": ((f"snapshot={encoder}", out, f"--config={f}/tuning.yaml"), "1 evaluators, 8 images"),
        "evaluate_mil": ((f"predictions={f}/mil/predictions.csv", out), "4 slides"),
        "compare_experiments": (
            (f"a={f}/mil/predictions.csv", f"b={f}/mil/other.csv", out),
            "2 experiments, 2 tables, 4 slides",
        ),
        "evaluate_regression": ((table, f"model={f}/model", split, out), "rows of test"),
        "expand_oct": ((f"archives={f}/oct_zips", out), "2 members"),
        "export_mil": ((f"model={f}/slide_model", out), "3 formats"),
        "extract_features": ((f"slides={slides}", f"encoders=[{encoder}]", out), "2 slides"),
        "finetune_oct": ((*labelled, f"model.encoder={f}/oct_encoder", out), "8 labelled volumes, 4 persons"),
        "index_oct": ((f"manifest={f}/oct/manifest.tsv", out), "2 files"),
        "index_patches": ((f"source={f}/zips", out), "3 archives"),
        "index_slides": ((f"manifest={slides}", out), "2 slides"),
        "import_encoder": (
            (f"weights={f}/program.pt", "size_px=32", "mean=[.5,.5,.5]", "std=[.5,.5,.5]", "mpp=0.5", out),
            "1 encoders (torchscript: 3 numbers per image",
        ),
        "make_splits": ((table, out, "target_dim=3"), "24 rows, 1 splits"),
        "nuclei_benchmark": ((f"data={f}/nuclei", f"run={f}/adios", out), "1 checkpoints, 6 images"),
        "plot_training": ((f"run={f}/run", out), "1 rows of metrics"),
        "prepare_oct": ((f"index={f}/oct/oct.parquet", out), "2 volumes"),
        "pretrain_adios": ((f"data_path={f}/zips", "--config=smoke", out), "3 archives"),
        "pretrain_ijepath": ((f"data.slide_manifest_csv={slides}", *KEYS, out), "2 slides"),
        "pretrain_oct": ((f"data.manifest={f}/oct/manifest.tsv", "--config=smoke", out), "2 files"),
        "preview_ijepath": ((f"anchor_catalog={f}/anchor_catalog_manifest.json", f"output_dir={f}/out"), "2 slides"),
        "preview_oct": ((f"data.manifest={f}/oct/manifest.tsv", f"output_dir={f}/out"), "2 files, 2 samples"),
        "spatial_patches": ((f"spots={f}/spots.csv", *spots, out), "12 spots, 2 sections"),
        "stop": ((f"run={f}/run",), "1 runs to stop"),
        "sweep": ((sweep[1], sweep[0], *sweep[2:], out), "2 trials"),
        "train_folds": ((f"splits={f}/folds", *regression, out), "3 runs"),
        "train_mil": (
            (f"data.csv={f}/mil/slides.csv", f"data.store={f}/mil/store", "splits.folds=3", out),
            "12 labelled slides, 6 patients",
        ),
        "train_regression": ((regression[-1], *regression[:-1], f"data.{split}", out), "12 training rows"),
        "visualize_coverage": ((f"data.store={f}/mil/store", out), "12 slides"),
    }
    return {name: Job(words, words[0].partition("=")[0], units) for name, (words, units) in given.items()}
