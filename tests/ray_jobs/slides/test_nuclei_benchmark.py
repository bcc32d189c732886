"""The job judges every checkpoint of a run once, and says what it cannot judge. Needs no Ray."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adios import artifact
from adios.mask_models import MaskModelConfig, build_mask_model
from adios.nuclei.segmentation import METRICS
from pathray.store import checkpoint
from ray_jobs import nuclei_benchmark
from ray_jobs.shell.cli import run_job
from regression.config import CONFIGS_DIR

SMALL = {"image_size": 32, "num_masks": 2, "dim": 32, "depth": 4, "heads": 2}
MEAN, STD = [0.68, 0.56, 0.72], [0.16, 0.17, 0.14]


def images(folder: Path, count: int = 6) -> Path:
    g = np.random.default_rng(0)
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True)
    for i in range(count):
        labels = np.zeros((32, 40), np.uint16)
        labels[4 + i : 14 + i, 5:15], labels[10:20, 22:34] = 1, 2
        pixels = np.where(labels[:, :, None] > 0, 80, 210) + g.integers(-15, 15, (32, 40, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(labels).save(folder / "masks" / f"{i}.png")
    return folder


def leave_checkpoint(run: Path, seen: int, name: str = "adios-latest") -> None:
    tensors = {
        f"{artifact.PREFIX}{k}": v for k, v in build_mask_model(MaskModelConfig(**SMALL), seen).state_dict().items()
    }
    values = {
        "mask_model_type": "vit_unet", "num_masks": 2, "data.image_size": 32, "mask_model.channels": 32,
        "mask_model.dim": 32, "mask_model.depth": 4, "mask_model.heads": 2, "mask_model.drop_path": 0.1,
        "data.mean": MEAN, "data.std": STD,
    }  # fmt: skip
    meta = {"images_seen": seen, "step": seen // 8, "science": "adios", "seed": 0, "global_batch": 8}
    checkpoint.save(str(run / "checkpoints"), name, tensors, {**meta, "identity": {"values": values, "hash": "x"}})


def judge(run: Path, data: Path, output: Path, *more: str) -> int:
    words = [f"run={run}", f"data={data}", f"output={output}", "accelerator=cpu", "resamples=50", *more]
    return run_job(nuclei_benchmark.main, nuclei_benchmark.NucleiConfig, words, CONFIGS_DIR)


def test_every_checkpoint_is_judged_once_in_the_order_of_training(tmp_path, monkeypatch):
    data, run, out = images(tmp_path / "data"), tmp_path / "run", tmp_path / "out"
    for seen, name in ((64, "adios-img64"), (16, "adios-img16"), (64, "adios-latest")):
        leave_checkpoint(run, seen, name)
    assert judge(run, data, out) == 0
    first = json.loads((out / "results.json").read_text())
    assert [row["images_seen"] for row in first["checkpoints"]] == [16, 64]
    assert len(first["choosing"]) == 2 and not set(first["choosing"]) & set(first["judging"])
    assert first["otsu"]["dice"] > 0.95 and all(row["oracle_dice"] >= row["dice"] for row in first["checkpoints"])
    assert {p.name for p in out.iterdir()} == {"results.json", "plot.png", "examples.png"}
    seen, judged = [], nuclei_benchmark.evaluate_model
    monkeypatch.setattr(nuclei_benchmark, "evaluate_model", lambda *given: seen.append(given[1]) or judged(*given))
    leave_checkpoint(run, 96, "adios-img96")
    assert judge(run, data, out) == 0
    again = json.loads((out / "results.json").read_text())
    assert len(seen) == 1 and again["checkpoints"][:2] == first["checkpoints"], "what was judged is left"
    assert judge(run, data, out, "seed=1") == 0 and len(seen) == 4, "another split is another benchmark"


def drop(*keys: str):
    """Removes one key from parsed results."""

    def change(found):
        inner = found
        for key in keys[:-1]:
            inner = inner[0] if key == "first" else inner[key]
        del inner[keys[-1]]
        return json.dumps(found)

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda found: json.dumps(found)[:-40],
        lambda found: "[1, 2]",
        lambda found: '{"settings": {"lr": 0.1}, "checkpoints": []}',
        drop("settings"),
        drop("checkpoints"),
        drop("checkpoints", "first", "path"),
        drop("checkpoints", "first", "pq"),
    ],
)
def test_results_of_something_else_are_named_and_never_written_over(tmp_path, capsys, change):
    model = build_mask_model(MaskModelConfig(**SMALL), 0)
    artifact.save(str(tmp_path / "mask_model"), model, MEAN, STD, {"images_seen": 64, "step": 8})
    row = {"path": "a", "images_seen": 8, "step": 1, "channel": 0, "rule": "half"}
    row |= {f"{prefix}{m}": 0.5 for prefix in ("", "oracle_") for m in METRICS}
    names = ("train_fraction", "seed", "scale", "resamples", "data")
    ours = {"settings": dict.fromkeys(names, 0), "checkpoints": [row]}
    results = tmp_path / "out" / "results.json"
    results.parent.mkdir()
    data = images(tmp_path / "data", 2)
    results.write_text(json.dumps(ours))
    assert judge(tmp_path, data, tmp_path / "out", "--dry-run") == 0, "as a benchmark writes them"
    text = change(ours)
    results.write_text(text)
    for more in ((), ("--dry-run",)):
        assert judge(tmp_path, data, tmp_path / "out", *more) == 2
        error = capsys.readouterr().err
        assert str(results) in error and "another output" in error and "Traceback" not in error
    assert results.read_text() == text


def test_an_exported_mask_model_is_judged_alone(tmp_path):
    model = build_mask_model(MaskModelConfig(**SMALL), 0)
    artifact.save(str(tmp_path / "run" / "mask_model"), model, MEAN, STD, {"images_seen": 64, "step": 8})
    data = images(tmp_path / "data", 3)
    for run in (tmp_path / "run", tmp_path / "run" / "mask_model"):
        assert judge(run, data, tmp_path / "out") == 0
        (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["checkpoints"]
        assert row["step"] == 8 and 0 <= row["channel"] < 2


@pytest.mark.parametrize("word", ["train_fraction=1.0", "scale=0", "accelerator=mps"])
def test_wrong_keys_end_with_2(tmp_path, capsys, word):
    leave_checkpoint(tmp_path / "run", 8)
    assert judge(tmp_path / "run", images(tmp_path / "data", 3), tmp_path / "out", word) == 2
    assert word.split("=")[0] in capsys.readouterr().err


def test_a_run_without_a_mask_model_is_named_and_a_dry_run_writes_nothing(tmp_path, capsys):
    data = images(tmp_path / "data", 3)
    assert judge(tmp_path / "none", data, tmp_path / "out") == 2
    assert "no mask model" in capsys.readouterr().err
    leave_checkpoint(tmp_path / "run", 8)
    assert judge(tmp_path / "run", data, tmp_path / "out", "--dry-run") == 0 and not (tmp_path / "out").exists()
