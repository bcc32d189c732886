"""The demo from end to end as its command, on small slides: every output is there, and running it again resumes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import demo.__main__ as program
import pathray
from demo.cohort import CohortSettings, generate
from ray_jobs.shell.cli import run_job
from ray_jobs.tune.config import TrainingJob

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "samples=1", "optimization.total_images_budget=32", "data.batch_size_per_gpu=8", "training.log_every=8",
    "scaling.workers=1",
]  # fmt: skip


def run_demo(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "demo", *words], cwd=ROOT, capture_output=True, text=True, timeout=550)


@pytest.mark.heavy
@pytest.mark.integration
def test_the_demo_leaves_everything_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = CohortSettings(slides_per_hospital=1, size_um=800, patches_per_label=0)
    manifest = generate(tmp_path / "cohort", settings, workers=1)
    words = [f"slides={manifest}", f"output={tmp_path / 'out'}", *SMALL]
    first = run_demo(*words)
    assert first.returncode == 0, first.stdout + first.stderr
    out = tmp_path / "out"
    page = (out / "index.html").read_text()
    assert page.count("data:image/") >= 4 and "What training sees" in page and "Learning" in page
    rows = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["images_seen"] == 32 and rows[-1]["loss"] > 0
    assert (out / "run" / "encoder" / "weights.safetensors").is_file()
    assert {p.stem for p in (out / "pictures" / "overlays").iterdir()} == {"north-colon-1", "south-colon-1"}
    assert "images trained on 32" in first.stdout and str(out / "index.html") in first.stdout
    trained = (out / "run" / "encoder" / "weights.safetensors").stat().st_mtime_ns
    caplog.set_level("INFO")
    monkeypatch.setattr(program, "_run", run_here)
    program.main(words)
    assert "this run is finished" in caplog.text
    assert (out / "run" / "encoder" / "weights.safetensors").stat().st_mtime_ns == trained


def run_here(title: str, command: list[str]) -> float:
    """A step of the demo in this process; only of a finished run, whose training starts no Ray."""
    name, *words = command
    job = import_module(f"ray_jobs.{name}")
    configs = getattr(job, "CONFIGS_DIR", Path(pathray.__file__).parent)
    assert run_job(job.main, TrainingJob(name, ()).schema, words, configs, getattr(job, "GROUPS", ())) == 0
    return 1.0
