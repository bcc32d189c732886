"""Storage that is away for a minute at each stage of a run: what that costs, and whether the results stay equal.

    python benchmarks/faults/outage.py [seconds=60] [together=4] [stage=NAME]

The toy science of the tests trains through the driver of the jobs (`scaling.workers=0`) into an object store, and its
snapshots are evaluated at the same time. From the first call of a stage on, every call to the store fails for
`seconds`. Each stage is a process of its own, `together` at a time. Prints a table: how long storage was away and how
many calls it refused, how much longer the run took than one without an outage, rows of metrics and evaluations lost or
doubled, and whether weights, snapshots, artifact and report are those of an undisturbed run to the bit. Exit code 1
when anything differs. Takes ten minutes and little of a core: it mostly waits.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.builders.runs import bucket_run as toy  # noqa: E402

NONE = "none"
STEPS, MICRO_BATCHES, LONGER = 120, 6, 1.5  # LONGER: length of the training, in outages
COLUMNS = (
    *("the outage begins with", "seconds away", "calls refused", "seconds lost"),
    *("rows lost / doubled", "evaluations lost / doubled", "bit-equal"),
)


def run_stage(stage: str, seconds: float) -> dict[str, Any]:
    """Train once undisturbed and once with the outage; what became of it."""
    from pathray.device import Device
    from pathray.run import train
    from tests.builders.runs.toy_science import ToyConfig, write_plan

    folder = Path(tempfile.mkdtemp(prefix="pathray-outage-"))
    toy.register(folder, os.environ.__setitem__)
    logging.basicConfig(filename=folder / "log.txt", level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    plan, words = write_plan(folder / "plan"), {"total_images": STEPS * toy.BATCH, "save_every": 10 * toy.BATCH}
    words |= {"unreadable_every": 7}
    whole = ToyConfig(run=str(folder), **words)
    train(toy.assemble_evaluated(whole, plan, 1), plan, str(folder / "whole"), Device.of("cpu"))
    expected = toy.left(str(folder / "whole"))
    slow_s = LONGER * seconds / STEPS / MICRO_BATCHES
    (folder / "seen").mkdir()
    config = ToyConfig(run=str(folder / "seen"), slow_s=slow_s, **words)
    began = time.monotonic()
    with toy.outage(stage, seconds) if stage != NONE else nullcontext() as away:
        train_and_evaluate(config, plan)
    took = time.monotonic() - began
    found = toy.left(toy.URL)
    evaluated = evaluations(found)
    lost, doubled = toy.lost_and_doubled(found["rows"], expected["rows"])
    return {
        "stage": stage,
        "began": away is None or away.began is not None,
        "refused": len(away.refused) if away else 0,
        "took_s": took,
        "rows": (lost, doubled),
        "evaluations": evaluated,
        "equal": all(found[name] == expected[name] for name in expected if name != "rows"),
        "folder": str(folder),
    }


def train_and_evaluate(config: Any, plan: Any) -> None:
    """Through the driver, with evaluators in a thread next to it."""
    from pathray.config.sections import ScalingConfig
    from ray_jobs.train.job import Tracking, TrainJob
    from ray_jobs.train.trainer import fit
    from ray_jobs.tune import evaluation_runner

    scaling = ScalingConfig(workers=0, accelerator="cpu")
    job = TrainJob(toy.assemble_evaluated, config, plan.path, toy.URL, scaling, tracking=Tracking(mlflow=False))
    job.accelerator = "cpu"
    evaluation_runner.REMOTE_LOOK_S = 1.0
    beside = evaluation_runner.Evaluators(
        toy.URL, toy.tuning(), evaluation_runner.Request({"CPU": 1.0}, "cpu"), identity=None, tag="toy"
    )
    beside.claimed, trained = beside.results.claim(beside.key), threading.Event()
    thread = threading.Thread(target=toy.evaluate_snapshots, args=(beside, trained))
    thread.start()
    try:
        outcome = fit(job)
        assert outcome.end == "budget", outcome
    finally:
        trained.set()
        thread.join()
    beside.report(wait=True)


def evaluations(found: dict[str, Any]) -> tuple[int, int]:
    """How many snapshots have no evaluation, and how many evaluations there are too many, or failed."""
    from pathray.evaluation.results import Results

    rows = Results(toy.URL, None).rows
    images = [row["images_seen"] for row in rows if row["status"] == "ok"]
    snapshots = [int(name.split()[1]) for name in found if name.startswith("snapshot")]
    return len(set(snapshots) - set(images)), len(rows) - len(set(images))


def run_process(stage: str, seconds: float) -> dict[str, Any]:
    command = [sys.executable, __file__, f"stage={stage}", f"seconds={seconds}"]
    paths = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"stage": stage, "error": done.stderr[-2000:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def line(found: dict[str, Any], seconds: float, undisturbed_s: float) -> str:
    if "error" in found:
        return f"| {found['stage']} | failed: {found['error'].strip().splitlines()[-1]} |"
    lost = found["took_s"] - undisturbed_s
    rows, evaluated = ("{} / {}".format(*found[name]) for name in ("rows", "evaluations"))
    equal = "yes" if found["equal"] else "NO"
    return f"| {found['stage']} | {seconds:.0f} | {found['refused']} | {lost:.0f} | {rows} | {evaluated} | {equal} |"


def is_right(found: dict[str, Any]) -> bool:
    return "error" not in found and found["began"] and found["equal"] and not sum(found["rows"] + found["evaluations"])


def main(argv: list[str]) -> int:
    options = {"seconds": "60", "together": "4", "stage": ""}
    given = {name: value for name, _, value in (word.partition("=") for word in argv)}
    if unknown := set(given) - set(options):
        raise SystemExit(f"{__doc__}\nunknown: {', '.join(sorted(unknown))}")
    options |= given
    seconds = float(options["seconds"])
    if options["stage"]:
        print(json.dumps(run_stage(options["stage"], seconds)))
        return 0
    stages = [NONE, *toy.STAGES, *toy.EVALUATIONS]
    with ThreadPoolExecutor(int(options["together"])) as pool:
        results = list(pool.map(lambda stage: run_process(stage, seconds), stages))
    undisturbed_s = results[0].get("took_s", 0.0)
    print(f"\nthe training takes {undisturbed_s:.0f} s without an outage\n")
    print("| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|", sep="\n")
    print(*(line(found, seconds, undisturbed_s) for found in results[1:]), sep="\n", flush=True)
    print(*(found["error"] for found in results if "error" in found), sep="\n")
    return 0 if all(is_right(found) for found in results) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
