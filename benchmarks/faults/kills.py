"""Kill small pretraining runs at random moments, and compare their results with an undisturbed run, bit for bit.

    python benchmarks/faults/kills.py [kills=30] [science=ijepath|adios|both] [seed=0] [minutes=60] [workers=1]
                                      [folder=PATH]

Every run is the real job in its own processes, on generated slides or patches, some of which are damaged. A kill is
SIGKILL for the driver, a training worker, the raylet or all processes at once, at a drawn number of images. It may
also hit all processes while a checkpoint is being written, or the driver or all during start-up. The same command then
starts again. Prints a line per kill and a table. Exit code 1 when a result differs, a half checkpoint counts, a row of
metrics is doubled, missing or out of order, or the quarantine report is unreadable. The same holds when a process is
left, or a run ends in another way than it should. After `minutes` per science no further kill starts, and the run
continues to its end. Linux only. Takes 30 to 60 seconds per kill on two cores. Ends only processes of the sessions
that it started.
"""

from __future__ import annotations

import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.faults import kill_checks as checks
from benchmarks.faults.kill_runs import BATCH, DRIVER, END_S, RAYLET, WORKER, Job, Kill, Run, Strike, commands

STEPS_PER_KILL = {"ijepath": 8, "adios": 32}  # a worker whose driver is killed trains on for some seconds
KINDS = ("driver", "worker", "raylet", "tree", "save", "start")
STAGES = (DRIVER, "gcs/gcs_server ", RAYLET, "TrainController", WORKER)  # processes of a start, in order
ENDS = {"raylet": 2}  # exit codes of the driver; of those it is killed by, -9


def draw(kills: int, seed: int, steps: int, kinds: Sequence[str] = KINDS) -> list[Kill]:
    """Kills of all `kinds`, as equally often as possible, in random order, each in its own window of `steps`."""
    rng = random.Random(seed)
    drawn: list[str] = []
    while len(drawn) < kills:
        drawn += rng.sample(kinds, len(kinds))
    drawn = drawn[:kills]
    rng.shuffle(drawn)
    found = []
    for number, kind in enumerate(drawn):
        at = BATCH * (steps * number + rng.randrange(1, steps + 1))
        stage, delay, whole = rng.choice(STAGES), rng.uniform(0, 2), kind != "start" or rng.random() < 0.5
        found.append(Kill(number + 1, kind, at, stage, delay, whole))
    return found


# --- kills ------------------------------------------------------------------------------------------------------------


def strike(run: Run, kill: Kill) -> Strike | None:
    """Wait for the kill's moment and kill; None when the run ended before."""
    job = run.start()
    if kill.kind == "start":
        if not run.until(lambda: job.processes(kill.stage), every=0.1):
            return None
        time.sleep(kill.delay_s)
    elif not run.until(lambda: run.images() >= kill.at_images):
        return None
    workers = job.processes(WORKER)
    entries = checks.entries(run.folder)
    if kill.kind == "save" and not run.until(lambda: checks.entries(run.folder) - entries, every=0.0002):
        return None
    found = Strike(kill, run.images(), time.time(), restarted=kill.kind != "worker")
    if kill.kind in ("tree", "save") or (kill.kind == "start" and kill.whole):
        job.kill_all(first=workers)  # a worker would write to the end
    else:
        victims = {"worker": workers, "raylet": job.processes(RAYLET)}.get(kill.kind, [job.process.pid])
        assert victims, f"no {kill.kind} to kill"
        job.kill(victims[:1])
    if kill.kind == "save":
        found.half = len(checks.uncommitted(run.folder) - entries)
        found.note = "in the middle of it" if found.half else "too late for it"
    if kill.kind == "start":
        found.note = f"{'all' if kill.whole else 'driver'}, {kill.delay_s:.1f} s after {kill.stage.strip()}"
    return found


def after(run: Run, struck: Strike) -> None:
    """Check what must hold after a kill. The run's job is over then, unless only a worker was killed."""
    job, name = run.start(), f"kill {struck.kill.number} ({struck.kill.kind})"
    if struck.restarted:
        code, expected = job.wait(END_S), ENDS.get(struck.kill.kind, -signal.SIGKILL)
        if code != expected:
            run.problem(f"{name}: the driver ended with {code}, expected {expected}: {job.words()[-300:]}")
            job.kill_all()
        if "Traceback" in job.words():
            run.problem(f"{name}: a trace was printed")
        run.end_job(name)
    for text in checks.half_checkpoints(run.folder) + checks.quarantine_problems(run.folder):
        run.problem(f"{name}: {text}")
    run.sweep()
    run.since = time.time()
    run.waiting.append(struck)
    run.strikes.append(struck)


def kill_and_finish(run: Run, kills: Sequence[Kill], seconds: float) -> None:
    """Apply all kills in turn, restarting the run after each; start none after `seconds`. Then run to the end."""
    deadline = time.monotonic() + seconds
    for kill in kills:
        if time.monotonic() > deadline:
            break
        struck = strike(run, kill)
        if struck is not None:
            after(run, struck)
        elif run.start().wait(0) == 0:
            print(f"kill {kill.number:2d}: {kill.kind:<6} missed: the run is finished", flush=True)
            break
        else:
            name = f"kill {kill.number} ({kill.kind})"
            run.problem(f"{name}: the start failed before: {run.start().words()[-300:]}")
            run.end_job(name)
    run.until(lambda: False)
    run.images()
    print(*(struck.line() for struck in run.waiting), sep="\n", end="\n" * bool(run.waiting), flush=True)
    if code := run.start().wait(END_S):
        run.problem(f"the last start ended with {code}: {run.start().words()[-300:]}")
    run.end_job("the end")
    run.sweep(wait=True)
    for text in checks.problems_in(run.folder, BATCH):
        run.problem(text)


def undisturbed(command: list[str], folder: Path, ray_folder: str) -> float:
    """Run the command to its end; return its seconds."""
    began, job = time.monotonic(), Job(command, folder.with_suffix(".txt"), ray_folder)
    try:
        if job.process.wait():
            raise SystemExit(f"the undisturbed run failed: {job.words()}")
        return time.monotonic() - began
    finally:
        job.kill_all()


# --- the command ------------------------------------------------------------------------------------------------------


def table(run: Run) -> list[str]:
    """Kills, restarts and seconds to the next step by kind."""
    lines = ["| kind | kills | restarts | seconds to the next step: median, most |", "|---|---|---|---|"]
    for kind in KINDS:
        of_kind = [s for s in run.strikes if s.kill.kind == kind]
        if not of_kind:
            continue
        seconds = [s.next_step_s for s in of_kind if s.next_step_s is not None]
        figures = f"{statistics.median(seconds):.0f}, {max(seconds):.0f}" if seconds else "–"
        lines.append(f"| {kind} | {len(of_kind)} | {sum(s.restarted for s in of_kind)} | {figures} |")
    return lines


def attempt(
    title: str,
    command: Callable[[Path], list[str]],
    folder: Path,
    kills: Sequence[Kill],
    minutes: float,
    ray_folder: str,
) -> bool:
    """Run a command undisturbed and with kills, in `folder`; return whether all is right."""
    seconds = undisturbed(command(folder / "undisturbed"), folder / "undisturbed", ray_folder)
    expected = checks.result_of(folder / "undisturbed")
    print(f"{title}: {len(expected['metrics'])} steps of {BATCH} images, undisturbed in {seconds:.0f} s", flush=True)
    run = Run(command(folder / "killed"), folder / "killed", ray_folder)
    began = time.monotonic()
    try:
        kill_and_finish(run, kills, 60 * minutes)
    finally:
        for job in [*run.over, *([run.job] if run.job else [])]:
            job.kill_all()
    differing = checks.differences(expected, checks.result_of(run.folder))
    for name in differing:
        run.problem(f"{name} is not that of the undisturbed run")
    half = sum(s.half for s in run.strikes)
    print(f"\n{title}: {len(run.strikes)} of {len(kills)} kills, {run.starts} starts, {time.monotonic() - began:.0f} s")
    print(*table(run), sep="\n")
    print(f"half checkpoints left by kills during a save: {half}; units replaced: {len(expected['quarantine'])}")
    print(f"bit-equal to the undisturbed run: {'no' if differing else 'yes'} ({', '.join(expected)})")
    print(f"wrong: {len(run.problems)}\n", flush=True)
    return not run.problems


def attempt_science(science: str, folder: Path, options: dict[str, str], ray_folder: str) -> bool:
    each = STEPS_PER_KILL[science]
    kills = draw(int(options["kills"]), int(options["seed"]), each)
    command = commands(science, folder, each * (len(kills) + 2), int(options["workers"]))
    return attempt(science, command, folder, kills, float(options["minutes"]), ray_folder)


def main(argv: list[str]) -> int:
    options = {"kills": "30", "science": "both", "seed": "0", "minutes": "60", "workers": "1", "folder": ""}
    given = {name: value for name, _, value in (word.partition("=") for word in argv)}
    if unknown := set(given) - set(options):
        raise SystemExit(f"{__doc__}\nunknown: {', '.join(sorted(unknown))}")
    options |= given
    sciences = tuple(STEPS_PER_KILL) if options["science"] == "both" else (options["science"],)
    if not set(sciences) <= set(STEPS_PER_KILL):
        raise SystemExit(f"science: found {options['science']}, expected ijepath, adios or both")
    folder = Path(options["folder"] or tempfile.mkdtemp(prefix="pathray-kills-")).resolve()
    ray_folder = tempfile.mkdtemp(prefix="kills-", dir="/tmp")  # short enough for Ray's sockets
    try:
        right = [attempt_science(science, folder / science, options, ray_folder) for science in sciences]
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)
    if all(right) and not options["folder"]:
        shutil.rmtree(folder)
        return 0
    print(f"the runs are in {folder}")
    return 0 if all(right) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
