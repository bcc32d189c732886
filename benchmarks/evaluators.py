"""What evaluations cost the training they run with: the time that it pauses, and the share of the cores that they take.

    python benchmarks/evaluators.py [--images 1024] [--every 256] [--work FOLDER]

Runs the demo's config (two workers, vit_tiny) on the demo's cohort three times, each in its own process with a fresh
output: without evaluations; with evaluations; with an evaluator that is slower than the cadence (every 64 images).
In the third the queue must stay bounded, and the newest snapshot must be judged. Prints the time inside snapshot calls
as a share of the training's time (bar 1%), training throughput with and without evaluations (a ratio of one run; on
two cores the evaluator takes its share of them), lag, queue depth and dropped evaluations. Two free cores: 8 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--every", type=int, default=256)
    parser.add_argument("--bar", type=float, default=0.01, help="share of the training's time that may be blocked")
    parser.add_argument("--work", type=Path, help="folder that keeps cohort and runs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        manifest = cohort(work / "cohort")
        kinds = {"without": 0, f"every {args.every}": args.every, "every 64": 64}
        runs = {
            name: trained(work / f"run{i}", manifest, args.images, every)
            for i, (name, every) in enumerate(kinds.items())
        }
    for name, run in runs.items():
        print(f"{name:<12} {run['rate']:6.2f} images/s, {run['rate'] / runs['without']['rate']:4.2f} of without")
        if run["rows"]:
            tell(run, args.bar)


def tell(run: dict, bar: float) -> None:
    judged = [row for row in run["rows"] if row["status"] == "ok"]
    dropped = sum(row["status"] == "dropped" for row in run["rows"])
    seconds = sorted(row["tune/evaluator_s"] for row in judged)
    most = {key: max(row[f"tune/{key}"] for row in judged) for key in ("queue_depth", "lag_images", "lag_s")}
    print(f"  blocked      {run['blocked_s']:.2f} s, {100 * run['share']:.2f}% of the training (bar {100 * bar:g}%)")
    print(f"  evaluations  {len(judged)} judged ({seconds[len(seconds) // 2]:.1f} s each), {dropped} dropped")
    print(f"  at most      {most['queue_depth']} waiting, {most['lag_images']} images and {most['lag_s']:.0f} s behind")
    newest = max(row["images_seen"] for row in run["rows"])
    print(f"  the newest   {'was judged' if newest in {row['images_seen'] for row in judged} else 'WAS NOT JUDGED'}")


def cohort(folder: Path) -> Path:
    from demo.cohort import generate

    return generate(folder)


def trained(output: Path, manifest: Path, images: int, every: int) -> dict:
    """A training's median rate over its log rows, its blocked time, and the rows of its evaluations."""
    words = ["--config", "demo", f"data.slide_manifest_csv={manifest}", f"output={output}"]
    words += [f"optimization.total_images_budget={images}", "logging.mlflow=false", "training.save_every=1000000"]
    if every:
        where = f"datasets.hospitals.manifest_csv={manifest.with_name('patches.csv')}"
        words += ["--config", "demo_robustness", *(f"tuning.plugins[{i}].{where}" for i in range(2))]
        words += [f"tuning.tune_every={every}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ray_jobs.pretrain_ijepath", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "images_per_s" in row]
    first, last = logged[0], logged[-1]
    evaluations = output / "robustness.jsonl"
    return {
        "rate": (last["images_seen"] - first["images_seen"]) / (last["time"] - first["time"]),
        "blocked_s": last.get("tune/blocked_s", 0.0),
        "share": last.get("tune/blocked_share", 0.0),
        "rows": [json.loads(line) for line in evaluations.read_text().splitlines()] if evaluations.exists() else [],
    }


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
