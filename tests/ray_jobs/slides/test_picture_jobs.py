"""The jobs that draw: which files they leave, and how they refuse what they cannot draw. Neither starts Ray."""

from __future__ import annotations

import os
from importlib import import_module
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adios.visualise import write_masks
from ijepath.config import CONFIGS_DIR, GROUPS
from ijepath.pictures import previews
from ijepath.pictures.sample import PreviewSample
from pathray.store.committed import committed_dir
from pathray.store.metrics_log import MetricsLog
from pathray.store.storage import Storage
from ray_jobs import plot_training, preview_ijepath
from ray_jobs.shell.cli import run_job
from tests.builders.anchor_catalog import Built, painted_catalog


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return painted_catalog(tmp_path_factory.mktemp("pictures"))


def preview(*words: str) -> int:
    return run_job(preview_ijepath.main, preview_ijepath.PreviewConfig, words, CONFIGS_DIR, GROUPS)


def test_previews_and_overlays_have_the_promised_files(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames of a film are in tests/ijepath/pictures/test_previews.py; here it has one."""
    frames = previews.reveal
    monkeypatch.setattr(previews, "reveal", lambda sample: islice(frames(sample), 1))
    keys = ["num_samples=2", "num_zoomed_previews=1", "final_png_scale=0.5", "num_overlays=1"]
    assert preview(f"anchor_catalog={built.catalog.path}", f"output_dir={tmp_path}", *keys) == 0
    names = sorted(p.name.split("_")[0] + p.suffix for p in tmp_path.iterdir() if p.is_file())
    assert names == ["ijepa.gif"] * 2 + ["ijepa.png"] * 2 + ["preview.png"] * 2 + ["zoom4.png"]
    final = next(tmp_path.glob("*_all_steps.png"))
    assert Image.open(final).size == (800, 450)
    assert [p.name for p in (tmp_path / "overlays").iterdir()] == ["north-colon-1.png"]


def test_the_catalogs_own_geometry_is_the_default_and_another_one_is_refused(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = preview(f"anchor_catalog={built.catalog.path}", f"output_dir={tmp_path}", "--dry-run")
    assert loaded == 0 and not any(tmp_path.iterdir())
    code = preview(f"anchor_catalog={built.catalog.path}", f"output_dir={tmp_path}", "data.context_fov_um=256")
    assert code == 2 and "data.context_fov_um" in capsys.readouterr().err


def test_samples_of_slides_that_are_too_coarse_are_left_out_and_named(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def blank(index: int, sample: PreviewSample, **scales: object) -> list[tuple[str, bytes]]:
        return [(f"preview_{previews.stem(index, sample)}.png", b"")]

    monkeypatch.setattr(previews, "preview_files", blank)
    words = [f"anchor_catalog={built.catalog.path}", "num_overlays=0"]
    assert preview(*words, f"output_dir={tmp_path}/all", "num_samples=4") == 0
    drawn = {path.name for path in (tmp_path / "all").glob("preview_*.png")}
    coarse = next(name for name in ("north-colon-1", "south-colon-1") if any(name in path for path in drawn))
    monkeypatch.setattr(preview_ijepath, "too_coarse_slides", lambda config, sources: [coarse])
    assert preview(*words, f"output_dir={tmp_path}/some", "num_samples=4") == 0
    left = {path.name for path in (tmp_path / "some").glob("preview_*.png")}
    assert left == {name for name in drawn if coarse not in name} != set() and coarse in caplog.text
    monkeypatch.setattr(preview_ijepath, "too_coarse_slides", lambda *_: ["north-colon-1", "south-colon-1"])
    assert preview(*words, f"output_dir={tmp_path}/none", "num_samples=1") == 2


@pytest.mark.parametrize("word", ["num_samples=-1", "final_png_scale=0", "num_overlays=-2", "num_sample=3"])
def test_wrong_keys_end_with_2(built: Built, tmp_path: Path, word: str) -> None:
    assert preview(f"anchor_catalog={built.catalog.path}", f"output_dir={tmp_path}", word) == 2


def plot(*words: str) -> int:
    return run_job(plot_training.main, plot_training.PlotConfig, words, CONFIGS_DIR)


def test_curves_stand_in_the_run_folder_unless_told_otherwise(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path / "metrics.jsonl"))
    for step in range(4):
        log.append({"images_seen": 32 * step, "loss": 1.0 / (1 + step), "lr": 1e-4, "images_per_s": float("nan")})
    assert plot(f"run={tmp_path}", "scale=0.5") == 0
    assert Image.open(tmp_path / "curves.png").size[0] == 400, "two panels have data: loss and learning rate"
    assert plot(f"run={tmp_path}", f"output={tmp_path / 'other' / 'c.png'}") == 0
    assert (tmp_path / "other" / "c.png").is_file()


def test_a_run_without_metrics_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plot(f"run={tmp_path}") == 2
    assert "metrics.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("science", plot_training.SCIENCES)
def test_every_panel_of_a_sciences_curves_has_its_own_metrics(science: str) -> None:
    panels = import_module(f"{science}.curves").CURVES
    names = [metric for panel in panels for metric, _ in panel.series]
    assert len(names) == len(set(names)) and {"loss", "lr", "grad_norm", "images_per_s"} <= set(names)
    assert len({panel.title for panel in panels}) == len(panels)


def test_curves_are_those_of_the_science_that_the_newest_checkpoint_names(tmp_path: Path) -> None:
    from adios.curves import CURVES

    store = Storage.of(str(tmp_path))
    titles = [panel.title for panel in plot_training.panels_of(store)]
    assert {"Validation", "Tokens", "Mask model"} < set(titles), "nobody knows yet: what any science draws"
    meta = {"images_seen": 8, "identity": {"hash": "x", "values": {"science": "adios"}}}
    with committed_dir(store.join("checkpoints"), "mine-latest", meta) as directory:
        directory.write_bytes("tensors", b"")
    assert plot_training.panels_of(store) == CURVES


def test_a_file_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}")
    assert plot(f"run={tmp_path}/metrics.jsonl") == 2
    assert "key: run;" in capsys.readouterr().err


def test_text_logs_are_drawn_in_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    for i, (name, first) in enumerate((("z_0_log.out", 0), ("a_0_log.out", 30))):
        lines = [
            f"[ {s}/99] student_loss: {9 - s / 50} (9.0)  mask_loss: {s} (1.0)" for s in range(first, 60 + first, 10)
        ]
        (tmp_path / name).write_text("\n".join(lines))
        os.utime(tmp_path / name, (1000 + i, 1000 + i))
    assert plot(f"logs={tmp_path}/*_0_log.out", "scale=0.5") == 0
    assert Image.open(tmp_path / "curves.png").size[0] == 400, "two figures, two panels"


@pytest.mark.parametrize("words", [(), ("run=a", "logs=b"), ("logs=none/*.out",)])
def test_a_drawing_needs_a_run_or_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert plot(*words, f"output={tmp_path}/c.png") == 2
    assert "error:" in capsys.readouterr().err and not (tmp_path / "c.png").exists()


def test_only_files_are_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = tmp_path / "logs"
    (logs / "old.out").mkdir(parents=True)
    assert plot(f"logs={logs}", f"output={tmp_path}/c.png") == 2
    assert plot(f"logs={logs}/*.out", f"output={tmp_path}/c.png") == 2
    error = capsys.readouterr().err
    assert error.count("found: '1 folders'") == 2 and "Traceback" not in error
    (logs / "new.out").write_text("Iteration 1: student_loss: 8.5\nIteration 2: student_loss: 8.0\n")
    assert plot(f"logs={logs}/*.out", f"output={tmp_path}/c.png") == 0 and (tmp_path / "c.png").is_file()
    assert plot(f"logs=file://{logs}/*.out", f"output={tmp_path}/d.png") == 0


def test_logs_at_a_url_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plot("logs=s3://me:secret@bucket/*.out", f"output={tmp_path}/c.png") == 2
    error = capsys.readouterr().err
    assert "not read from URLs" in error and "s3://bucket/*.out" in error and "secret" not in error


def masked_run(run: Path, *steps: int) -> Path:
    MetricsLog(str(run / "metrics.jsonl")).append({"images_seen": 8, "loss": 1.0, "mask_mean/0": 0.3})
    images, masks = np.zeros((1, 16, 16, 3), np.uint8), np.full((1, 2, 16, 16), 0.5)
    for step in steps:
        write_masks(str(run / "visualizations" / "masks"), step, images, masks)
    return run


def test_a_run_with_pictures_of_masks_gets_a_film_beside_its_curves(tmp_path: Path) -> None:
    run = masked_run(tmp_path / "run", 0, 500)
    before = sorted(run.rglob("*"))
    assert plot(f"run={run}", "scale=0.5", f"output={tmp_path}/other/a.png") == 0
    assert Image.open(tmp_path / "other" / "a_masks.gif").n_frames == 2
    assert sorted(run.rglob("*")) == before, "a run is read, and may be read only"
    assert plot(f"run={run}", "scale=0.5") == 0
    assert sorted(set(run.rglob("*")) - set(before)) == [run / "curves.png", run / "curves_masks.gif"]
    assert Image.open(run / "curves.png").size[0] == 400, "loss and activation"


def test_a_folder_of_masks_without_pictures_of_them_gets_curves_and_no_film(tmp_path: Path) -> None:
    run = masked_run(tmp_path / "run")
    (run / "visualizations" / "masks").mkdir(parents=True)
    (run / "visualizations" / "masks" / "notes.txt").write_text("somebody's own")
    assert plot(f"run={run}", "scale=0.5") == 0
    assert (run / "curves.png").is_file() and not list(run.rglob("*.gif"))
