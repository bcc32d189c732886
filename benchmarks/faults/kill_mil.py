"""Kill a cross-validation of MIL on a generated cohort, with one worker and with two, and compare all that it leaves.

    python benchmarks/faults/kill_mil.py [kills=4] [seed=0] [workers=1,2] [folder=PATH]

40 patients with two bags of 50 to 300 tiles; every other patient has planted witnesses. Three folds, two at a time. A
kill is SIGKILL for all processes of the command at once, when a drawn number of rows of metrics has been written by all
folds together; the same command starts again. Weights of every fold, the predictions and the judgement must be those of
an undisturbed run, bit for bit. Exit code 1 where something differs. Linux
only; about ten minutes on two cores.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.faults.kill_runs import LEFT_S, Job
from tests.builders.mil import write_cohort

FOLDS, EPOCHS, WAIT_S = 3, 8, 600.0
KEYS = (
    "data.threads=1", "model=abmil", "model.arguments.embed_dim=64", "model.arguments.attention_dim=32",
    f"splits.folds={FOLDS}", f"training.max_epochs={EPOCHS}", "training.lr=1e-3", "training.global_batch=2",
    "eval.resamples=200", "eval.patience=null", "logging.mlflow=false", "logging.log_every=2", "parallel=2",
    "checkpoint.latest_every=6", "checkpoint.latest_minutes=0", "scaling.accelerator=cpu",
    "scaling.cpus_per_worker=0.2", "runtime.worker_logs=false",
)  # fmt: skip
COMPARED = ("oof_predictions.parquet", "metrics.json", "cv_results.json")


def main(argv: list[str]) -> int:
    options = {"kills": "4", "seed": "0", "workers": "1,2", "folder": ""}
    given = {name: value for name, _, value in (word.partition("=") for word in argv)}
    if unknown := set(given) - set(options):
        raise SystemExit(f"{__doc__}\nunknown: {', '.join(sorted(unknown))}")
    options |= given
    folder = Path(options["folder"] or tempfile.mkdtemp(prefix="pathray-kills-mil-")).resolve()
    ray_folder = tempfile.mkdtemp(prefix="kills-", dir="/tmp")  # short enough for Ray's sockets
    write_cohort(folder / "cohort", patients=40, tiles=150, dim=64, share=0.1)
    right = True
    try:
        for workers in map(int, options["workers"].split(",")):
            right &= attempt(folder, workers, int(options["kills"]), int(options["seed"]), ray_folder)
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)
    if right and not options["folder"]:
        shutil.rmtree(folder)
    else:
        print(f"the runs are in {folder}")
    return 0 if right else 1


def attempt(folder: Path, workers: int, kills: int, seed: int, ray_folder: str) -> bool:
    """An undisturbed run and one with kills; whether they left the same."""
    whole, killed = folder / f"whole_{workers}", folder / f"killed_{workers}"
    began = time.monotonic()
    finish(Job(command(folder, whole, workers), whole.with_suffix(".txt"), ray_folder))
    print(f"W = {workers}: undisturbed in {time.monotonic() - began:.0f} s, {rows(whole)} rows of metrics", flush=True)
    draw = random.Random(seed)
    at = sorted(draw.randrange(1, rows(whole) - 1) for _ in range(kills))
    for number, wanted in enumerate(at, 1):
        job = Job(command(folder, killed, workers), killed.with_suffix(".txt"), ray_folder)
        deadline = time.monotonic() + WAIT_S
        while rows(killed) < wanted and job.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        job.kill_all()
        job.left(LEFT_S)
        print(f"kill {number}: at {rows(killed)} rows", flush=True)
    finish(Job(command(folder, killed, workers), killed.with_suffix(".txt"), ray_folder))
    expected, found = left_by(whole), left_by(killed)
    wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    print(f"W = {workers}, {kills} kills: {', '.join(wrong) + ' differ' if wrong else f'{len(found)} results equal'}")
    return not wrong


def command(folder: Path, output: Path, workers: int) -> list[str]:
    data = (f"data.csv={folder}/cohort/slides.csv", f"data.store={folder}/cohort/store")
    own = (f"scaling.workers={workers}", f"training.batch_size_per_gpu={2 // workers}", f"output={output}")
    return [sys.executable, "-m", "ray_jobs.train_mil", *data, *KEYS, *own]


def finish(job: Job) -> None:
    try:
        if job.process.wait():
            raise SystemExit(f"the command failed: {job.words()[-2000:]}")
    finally:
        job.kill_all()


def rows(output: Path) -> int:
    """Complete rows of metrics in all folds."""
    return sum(path.read_bytes().count(b"\n") for path in output.glob("fold_*/metrics.jsonl"))


def left_by(output: Path) -> dict[str, str]:
    """Digests by name: every fold's weights, its metrics without times, and the files of the whole."""
    out = {name: digest((output / name).read_bytes().replace(str(output).encode(), b"")) for name in COMPARED}
    for path in sorted(output.glob("fold_*/encoder/weights.safetensors")):
        out[str(path.relative_to(output))] = digest(path.read_bytes())
    for path in sorted(output.glob("fold_*/metrics.jsonl")):
        found = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{k: v for k, v in row.items() if k in ("images_seen", "lr", "loss") or "val/" in k} for row in found]
        out[str(path.relative_to(output))] = digest(json.dumps(kept, sort_keys=True).encode())
    return out


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
