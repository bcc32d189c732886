"""Kill small pretraining runs at random moments; compare what they end with, bit for bit, with an undisturbed run.

    python benchmarks/kills.py [kills=30] [science=ijepath|adios|both] [seed=0] [minutes=60] [workers=1] [folder=PATH]

Every run is the real job in processes of its own, on generated slides or patches, some of which are damaged. A kill is
SIGKILL for the driver, a training worker, the raylet or all processes at once, at a drawn number of images; for all at
once when a checkpoint is being written; or for the driver or all during start-up. The same command then starts again.
Prints a line per kill and a table. Exit code 1 when a result differs, a half checkpoint counts, a row of metrics is
doubled, missing or out of order, the quarantine report cannot be read, a process is left, or a run ends otherwise than
it should. After so many minutes for a science no kill is begun, and the run goes on to its end. Linux only. Half a
minute to a minute per kill on two cores. Ends only processes of the sessions that it has started.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import kill_checks as checks
from benchmarks.kill_runs import BATCH, DRIVER, RAYLET, WORKER, Job, commands

STEPS_PER_KILL, STEPS_AFTER = 8, 16  # of a run: for each kill, and after the last
KINDS = ("driver", "worker", "raylet", "tree", "save", "start")
STAGES = (DRIVER, "gcs/gcs_server ", RAYLET, "TrainController", WORKER)  # processes of a start, in order
# More seconds are wrong: to the next step; to the driver's end; from there to that of the others, and of Ray's agents
NEXT_STEP_S, END_S, LEFT_S, AGENTS_S = 600.0, 240.0, 120.0, 300.0
ENDS = {"raylet": 2}  # exit codes of the driver; of those it is killed by, -9


@dataclass(frozen=True)
class Kill:
    """One kill that was drawn: what, and when. `whole`: all processes and not the driver only."""

    number: int
    kind: str
    at_images: int  # not before so many
    stage: str = DRIVER  # of a start: after this process has appeared …
    delay_s: float = 0.0  # … and so much later
    whole: bool = True


@dataclass
class Strike:
    """What became of a kill. `next_step_s`: from it to the next step's row; None where another kill came before."""

    kill: Kill
    images: int
    time: float
    restarted: bool
    note: str = ""
    half: int = 0  # checkpoints that it left half-written
    next_step_s: float | None = None


def draw(kills: int, seed: int) -> list[Kill]:
    """Kills of all kinds, equally often as far as possible, in random order, each in a window of steps of its own."""
    rng = random.Random(seed)
    kinds: list[str] = []
    while len(kinds) < kills:
        kinds += rng.sample(KINDS, len(KINDS))
    kinds = kinds[:kills]
    rng.shuffle(kinds)
    found = []
    for number, kind in enumerate(kinds):
        at = BATCH * (STEPS_PER_KILL * number + rng.randrange(1, STEPS_PER_KILL + 1))
        stage, delay, whole = rng.choice(STAGES), rng.uniform(0, 2), kind != "start" or rng.random() < 0.5
        found.append(Kill(number + 1, kind, at, stage, delay, whole))
    return found


@dataclass
class Run:
    """A run that is killed and started again until it is finished."""

    command: list[str]
    folder: Path
    ray_folder: str
    job: Job | None = None
    over: dict[Job, float] = field(default_factory=dict)  # killed starts whose agents still run, since when
    since: float = 0.0  # rows from then on are of steps after the last kill
    waiting: list[Strike] = field(default_factory=list)  # for the next step
    strikes: list[Strike] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    starts: int = 0

    def start(self) -> Job:
        if self.job is None:
            self.starts += 1
            self.job = Job(self.command, self.folder.with_suffix(".txt"), self.ray_folder)
        return self.job

    def problem(self, text: str) -> None:
        print(f"WRONG: {text}", flush=True)
        self.problems.append(text)

    def images(self) -> int:
        """Images of the newest row since the last kill; 0 before the first."""
        row = checks.newest_row(self.folder)
        if row is None or row["time"] <= self.since or not row["images_seen"]:
            return 0
        self.stepped(row["time"])
        return int(row["images_seen"])

    def end_job(self, name: str) -> None:
        """The current start is over: nothing of it may be left, but Ray's agents for a while."""
        assert self.job is not None
        for line in self.job.left(LEFT_S, agents=False):
            self.problem(f"{name}: still running {LEFT_S:.0f} s later: {line[:100]}")
        self.over[self.job] = time.monotonic()
        self.job = None

    def sweep(self, wait: bool = False) -> None:
        """Starts that are over: what is left of them for too long is wrong, and is killed."""
        for job, since in list(self.over.items()):
            if job.left() and time.monotonic() - since < AGENTS_S and not wait:
                continue
            for line in job.left(max(0.0, since + AGENTS_S - time.monotonic())):
                self.problem(f"still running {AGENTS_S:.0f} s after its driver: {line[:100]}")
            job.kill_all()
            del self.over[job]

    def stepped(self, at: float) -> None:
        """A step after the kills that wait for one: their lines are complete."""
        if self.waiting:
            for text in checks.metrics_problems(self.folder, BATCH):
                self.problem(f"after kill {self.waiting[-1].kill.number}: {text}")
        for strike in self.waiting:
            strike.next_step_s = at - strike.time
            print(line_of(strike), flush=True)
        self.waiting = []

    def until(self, ready: Callable[[], Any], every: float = 0.005) -> bool:
        """Wait until `ready()`. False when the job ends before, or nothing happens for NEXT_STEP_S."""
        job, deadline, reached = self.start(), time.monotonic() + NEXT_STEP_S, 0
        while not ready():
            if job.process.poll() is not None:
                return False
            if (images := self.images()) > reached:
                reached, deadline = images, time.monotonic() + NEXT_STEP_S
            if time.monotonic() > deadline:
                self.problem(f"no step for {NEXT_STEP_S:.0f} s; the last words: {job.words()[-300:]}")
                job.kill_all()
                return False
            time.sleep(every)
        return True


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
    entries, half = checks.entries(run.folder), checks.uncommitted(run.folder)
    if kill.kind == "save" and not run.until(lambda: checks.entries(run.folder) - entries, every=0.0002):
        return None
    found = Strike(kill, run.images(), time.time(), restarted=kill.kind != "worker")
    if kill.kind in ("tree", "save") or (kill.kind == "start" and kill.whole):
        job.kill_all(first=workers)  # a worker would write to the end
    else:
        job.kill({"worker": workers, "raylet": job.processes(RAYLET)}.get(kill.kind, [job.process.pid])[:1])
    if kill.kind == "save":
        found.half = len(checks.uncommitted(run.folder) - half - entries)
        found.note = "in the middle of it" if found.half else "too late for it"
    if kill.kind == "start":
        found.note = f"{'all' if kill.whole else 'driver'}, {kill.delay_s:.1f} s after {kill.stage.strip()}"
    return found


def after(run: Run, struck: Strike) -> None:
    """What must hold when a kill has had its effect; the run's job is over then, unless only a worker was killed."""
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


def line_of(struck: Strike) -> str:
    seconds = "another kill before" if struck.next_step_s is None else f"{struck.next_step_s:.0f} s to the next step"
    note = f" ({struck.note})" if struck.note else ""
    return f"kill {struck.kill.number:2d}: {struck.kill.kind:<6} at {struck.images:4d} images, {seconds}{note}"


def kill_and_finish(run: Run, kills: Sequence[Kill], seconds: float) -> None:
    """All kills in turn, none begun after so many seconds, each followed by the same command; then the command until
    the run is finished."""
    deadline = time.monotonic() + seconds
    for kill in kills:
        if time.monotonic() > deadline:
            break
        struck = strike(run, kill)
        if struck is None:
            name = f"kill {kill.number} ({kill.kind})"
            run.problem(f"{name}: the start ended before: {run.start().words()[-300:]}")
            run.end_job(name)
        else:
            after(run, struck)
    run.until(lambda: False)
    run.images()
    if code := run.start().wait(END_S):
        run.problem(f"the last start ended with {code}: {run.start().words()[-300:]}")
    run.end_job("the end")
    run.sweep(wait=True)
    for text in checks.problems_in(run.folder, BATCH):
        run.problem(text)


def undisturbed(command: list[str], folder: Path, ray_folder: str) -> float:
    """Run the command to its end; its seconds."""
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
        seconds = [s.next_step_s for s in of_kind if s.next_step_s is not None]
        figures = f"{statistics.median(seconds):.0f}, {max(seconds):.0f}" if seconds else "–"
        lines.append(f"| {kind} | {len(of_kind)} | {sum(s.restarted for s in of_kind)} | {figures} |")
    return lines


def attempt(science: str, folder: Path, options: dict[str, str], ray_folder: str) -> bool:
    """One science's undisturbed run and its killed one; whether all is right."""
    kills = draw(int(options["kills"]), int(options["seed"]))
    steps = STEPS_PER_KILL * len(kills) + STEPS_AFTER
    command = commands(science, folder, steps, int(options["workers"]))
    seconds = undisturbed(command(folder / "undisturbed"), folder / "undisturbed", ray_folder)
    print(f"{science}: {steps} steps of {BATCH} images, undisturbed in {seconds:.0f} s", flush=True)
    expected = checks.result_of(folder / "undisturbed")
    run = Run(command(folder / "killed"), folder / "killed", ray_folder)
    began = time.monotonic()
    try:
        kill_and_finish(run, kills, 60 * float(options["minutes"]))
    finally:
        for job in [*run.over, *([run.job] if run.job else [])]:
            job.kill_all()
    differing = checks.differences(expected, checks.result_of(run.folder))
    for name in differing:
        run.problem(f"{name} is not that of the undisturbed run")
    half = sum(s.half for s in run.strikes)
    print(
        f"\n{science}: {len(run.strikes)} of {len(kills)} kills, {run.starts} starts, {time.monotonic() - began:.0f} s"
    )
    print(*table(run), sep="\n")
    print(f"half checkpoints left by kills during a save: {half}; units replaced: {len(expected['quarantine'])}")
    print(f"bit-equal to the undisturbed run: {'no' if differing else 'yes'} ({', '.join(expected)})")
    print(f"wrong: {len(run.problems)}\n", flush=True)
    return not run.problems


def main(argv: list[str]) -> int:
    options = {"kills": "30", "science": "both", "seed": "0", "minutes": "60", "workers": "1", "folder": ""}
    given = dict(word.split("=", 1) if "=" in word else (word, "") for word in argv)
    if unknown := set(given) - set(options):
        raise SystemExit(f"{__doc__}\nunknown: {', '.join(sorted(unknown))}")
    options |= given
    sciences = ("ijepath", "adios") if options["science"] == "both" else (options["science"],)
    folder = Path(options["folder"] or tempfile.mkdtemp(prefix="pathray-kills-")).resolve()
    ray_folder = tempfile.mkdtemp(prefix="kills-", dir="/tmp")  # short enough for Ray's sockets
    try:
        right = [attempt(science, folder / science, options, ray_folder) for science in sciences]
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)
    if all(right) and not options["folder"]:
        shutil.rmtree(folder)
        return 0
    print(f"the runs are in {folder}")
    return 0 if all(right) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
