"""Time from the command to the first finished step of a pretraining job, and where it goes.

    python benchmarks/startup.py                # makes a slide in a temporary folder; three starts, the best is printed

One worker, the smoke config, MLflow on. Every start has a new output folder, so the slide index, the anchors and the
plan are made too. The job is the real one in its own process; its stages write their times to a file. The phases
follow each other, so they add up to the total.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MARKS, WORKER = "PATHRAY_STARTUP_MARKS", "worker is up"
PHASES = {  # mark -> the phase that ends with it
    "config is read": "python, imports, config",
    "ray runs": "ray.init",
    "plan is ready": "slide index, anchors, plan",
    WORKER: "Ray Train, worker process",
    "assemble": "imports",
    "worker is ready": "model",
    "first batch": "first batch",
    "first step": "first step",
    "job has ended": "(the other steps and the end)",
}


def mark(name: str) -> None:
    """Record the time, once per name."""
    path = os.environ.get(MARKS)
    if path and name not in read(path):
        with open(path, "a") as f:
            f.write(f"{name}\t{time.time()}\n")


def read(path: str) -> dict[str, float]:
    if not os.path.exists(path):
        return {}
    return {name: float(t) for name, t in (line.split("\t") for line in Path(path).read_text().splitlines())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bar", type=float, default=25.0, help="seconds that a start may take")
    parser.add_argument("keys", nargs="*", help="KEY=VALUE for the job")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        manifest = slide(Path(folder))
        rounds = [start(Path(folder) / f"run{i}", manifest, args.keys) for i in range(args.rounds)]
    whole = [spent["first step"] - spent["begin"] for spent in rounds]
    best = rounds[whole.index(min(whole))]
    before = best["begin"]
    for name, phase in PHASES.items():
        print(f"{phase:<32} {best[name] - before:6.2f} s   {best[name] - best['begin']:6.2f} s")
        before = best[name]
    seconds = ", ".join(f"{s:.1f}" for s in whole)
    print(f"command to first step: {seconds} s; {args.bar / min(whole):.2f} times as fast as the bar of {args.bar:g} s")


def slide(folder: Path) -> Path:
    """The manifest of one generated slide."""
    from benchmarks.data.reader import write_slide

    write_slide(folder / "slide.tiff", 2048)
    with (folder / "slides.csv").open("w", newline="") as f:
        csv.writer(f).writerows([("slide_id", "wsi_path", "mask_path"), ("s0", str(folder / "slide.tiff"), "")])
    return folder / "slides.csv"


def start(output: Path, manifest: Path, keys: list[str]) -> dict[str, float]:
    """Run 64 images; return the times at which the stages ended."""
    marks = str(output) + ".marks"
    words = [
        *("--config", "smoke", f"data.slide_manifest_csv={manifest}", f"output={output}"),
        *("optimization.total_images_budget=64", "scaling.cpus_per_worker=1", *keys),
    ]
    paths = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    environment = {**os.environ, MARKS: marks, "PYTHONPATH": paths}
    begin = time.time()
    job = [sys.executable, "-c", "from benchmarks.startup import job; job()", *words]
    done = subprocess.run(job, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {"begin": begin, "job has ended": time.time(), **read(marks)}


# --- in the job's process -------------------------------------------------------------------------------------------


def job() -> None:
    """What `python -m ray_jobs.pretrain_ijepath` does, with marks between its stages."""
    from ijepath.config import CONFIGS_DIR, GROUPS
    from ray_jobs import pretrain_ijepath
    from ray_jobs.shell import cli
    from ray_jobs.train import pretraining

    session, prepare, fit = pretraining.ray_session, pretrain_ijepath.prepare, pretraining.fit

    @contextmanager
    def marked_session(*args: Any, **keys: Any) -> Any:
        mark("config is read")
        with session(*args, **keys) as found:
            mark("ray runs")
            yield found

    def marked_prepare(config: Any) -> Any:
        found = prepare(config)
        mark("plan is ready")
        return found

    def marked_fit(job: Any) -> Any:
        job.assemble = assemble
        if job.scaling.workers == 0:
            mark(WORKER)
        return fit(job)

    vars(pretrain_ijepath).update(prepare=marked_prepare)
    vars(pretraining).update(ray_session=marked_session, fit=marked_fit)
    cli.job(pretrain_ijepath.main, pretrain_ijepath.PretrainConfig, CONFIGS_DIR, GROUPS)


# --- in the worker's process ----------------------------------------------------------------------------------------


def assemble(config: Any, plan: Any, world: int) -> Any:
    """I-JEPATH's parts, whose recipe leaves marks. Pickled by name: to import this module is the worker's first act."""
    mark("assemble")
    from ijepath.assembly import assemble as real

    parts = real(config, plan, world)
    prepare, after = parts.recipe.prepare, parts.recipe.after_step
    mark("worker is ready")

    def marked_prepare(*args: Any) -> Any:
        mark("first batch")
        return prepare(*args)

    def marked_after(*args: Any) -> None:
        after(*args)
        mark("first step")

    parts.recipe.prepare, parts.recipe.after_step = marked_prepare, marked_after
    return parts


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
elif os.path.exists(os.environ.get(MARKS, "")) and "plan is ready" in read(os.environ[MARKS]):
    mark(WORKER)
    import ijepath.assembly  # noqa: F401  what unpickling the real job imports
