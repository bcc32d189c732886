"""What summary.md says after each job. The jobs' work is done in this process, without Ray."""

import pytest
from PIL import Image

from ijepath.indexing.manifest import read_manifest
from ijepath.profile import Profile
from pathray.data.faults import Fault
from pathray.run import quarantine
from pathray.run.outcome import Outcome
from pathray.store.metrics_log import MetricsLog
from pathray.store.storage import Storage
from ray_jobs import build_anchors, cut_patches, index_slides
from ray_jobs.shell.run_summary import write_run_summary
from tests.builders.cohort import write_manifest, write_slide
from tests.pathray.run.test_quarantine import SLIDES

SMALL = Profile(context_mpp=1.0, target_mpp=0.5, context_fov_um=64.0, target_fov_um=16.0, profile_id="small")


class Here:
    """In place of the map over Ray's tasks."""

    def __init__(self, lost, chunk=1, timeout_s=0.0):
        self.lost, self.chunk = lost, chunk

    def __call__(self, function, items):
        return map(function, items)


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    """Two good slides, one without spacing, one that is not there."""
    for module in (index_slides, build_anchors, cut_patches):
        monkeypatch.setattr(module, "RayMap", Here)
    for name in ("a", "b"):
        write_slide(tmp_path / f"{name}.tiff")
    write_slide(tmp_path / "c.tiff", mpp=None)
    rows = [{"slide_id": name, "wsi_path": f"{name}.tiff"} for name in "abcd"]
    write_manifest(tmp_path / "slides.csv", rows)
    return tmp_path


def index(folder, previous=()):
    config = index_slides.IndexSlidesConfig(str(folder / "slides.csv"), str(folder / "out/slides.parquet"))
    return index_slides.build(config, read_manifest(config.manifest), previous)


def test_the_summary_of_an_index_says_what_failed_and_why(cohort):
    rows = index(cohort).rows
    text = (cohort / "out/summary.md").read_text()
    assert "## Slide index slides.parquet" in text and "| slides | 4 |" in text and "| ok | 2 |" in text
    assert "### Failed (2)" in text and "- 1 × no such file" in text and "  - `d`" in text
    assert "does not say its pixel size" in text and "### Skipped" not in text
    assert "[report with a row per slide](slides_report.csv)" in text
    index(cohort, previous=rows)
    again = (cohort / "out/summary.md").read_text()
    assert "### Skipped (2)\n\n- 2 × already indexed, unchanged" in again and again.count("## Slide index") == 1


def test_the_summary_of_anchors_stands_next_to_that_of_the_index(cohort):
    found = index(cohort)
    config = build_anchors.BuildAnchorsConfig(str(cohort / "out/slides.parquet"), str(cohort / "out/a.json"))
    config.profile, config.min_success_fraction = SMALL, 0.5
    anchors = build_anchors.build(config, found)["total_anchors"]
    text = (cohort / "out/summary.md").read_text()
    assert "## Slide index slides.parquet" in text and "## Anchors a.json" in text
    assert f"| anchors | {anchors:,} |" in text and "| context | 64 µm at 1 µm per pixel |" in text
    assert "### Skipped (2)" in text and "slide_status_not_ok" in text


def test_the_summary_of_patches_says_what_was_cut_skipped_and_left_out(cohort):
    Image.new("RGB", (40, 40)).save(cohort / "small.png")
    config = cut_patches.CutPatchesConfig(images=str(cohort), output=str(cohort / "zips"), size=224)
    config.images = str(cohort)
    for name in ("a", "b", "c"):
        (cohort / f"{name}.tiff").unlink()
    Image.new("RGB", (500, 300)).save(cohort / "large.png")
    for shown in ("| ok | 1 |", "| skipped | 1 |"):
        cut_patches.build(config, cut_patches.tile_spec(config), cut_patches.jobs_of(config))
        text = (cohort / "zips/summary.md").read_text()
        assert shown in text and "| patches | 2 |" in text and "| size | 224 |" in text
    assert "already cut, unchanged" in text


def test_the_summary_of_a_training_names_unreadable_units_and_links_what_it_left(tmp_path):
    faults = [Fault(p, 0, p, p % 3, "decode", f"{p}.tiff", "", p == 3) for p in range(7)]
    store = Storage.of(tmp_path)
    store.write_bytes(quarantine.part_name(0, 7, 0), quarantine.to_parquet(faults, SLIDES))
    quarantine.merge(store)
    metrics = MetricsLog(store.join("metrics.jsonl"))
    metrics.append({"images_seen": 64, "loss": 9.0, "val/spearman": 0.25, "step_ms": 3.0})
    metrics.append({"images_seen": 12345, "loss": 0.5})
    store.write_bytes("config_resolved.yaml", b"optimization: {lr: 0.0002, global_batch: 64}\nseed: 3\nx: 1\n")
    outcome = Outcome("stopped", 12345, {}, None, None, 6)
    write_run_summary(str(tmp_path), outcome, {"run": tmp_path, "encoder": tmp_path / "encoder", "checkpoint": None})
    text = (tmp_path / "summary.md").read_text()
    assert "| ended | interrupted; the same command resumes it |" in text and "| images seen | 12,345 |" in text
    assert "| val/spearman | 0.25 |" in text and "| loss | 0.5 |" in text and "step" not in text
    assert "### Failed (6)" in text and "6 × decode" in text and "| optimization.lr | 0.0002 |" in text
    assert "[encoder](encoder)" in text and "[unreadable units](quarantine.parquet)" in text and "[run]" not in text
