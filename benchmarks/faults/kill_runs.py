"""Small pretraining runs on generated data, as commands; a start of one with all its processes; a run of many starts.

What is killed, and when, is in benchmarks/faults/kills.py. Linux only: processes are found in /proc.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults import kill_checks as checks

ROOT = Path(__file__).resolve().parents[2]
BATCH = 4  # images a step
LATEST_EVERY, SNAPSHOT_EVERY = 3, 80  # steps between checkpoints
DRIVER, WORKER, RAYLET = "ray_jobs.pretrain_", "RayTrainWorker", "raylet/raylet "
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "dashboard/agent.py", "runtime_env/agent/main.py")
# More seconds are wrong: to the next step; to the driver's end; from there to that of the others, and of Ray's agents
NEXT_STEP_S, END_S, LEFT_S, AGENTS_S = 600.0, 240.0, 120.0, 300.0


def commands(science: str, folder: Path, steps: int, workers: int) -> Callable[[Path], list[str]]:
    """Write the inputs of a run of `steps` steps; return its command for an output folder."""
    return command_of(science, {"ijepath": ijepath_words, "adios": adios_words}[science](folder, steps), workers)


def command_of(science: str, words: Sequence[str], workers: int) -> Callable[[Path], list[str]]:
    """The command of a science's job with these keys, for an output folder."""
    both = [f"scaling.workers={workers}", f"checkpoint.latest_every={LATEST_EVERY * BATCH}", "checkpoint.keep_last_n=1"]

    def command(output: Path) -> list[str]:
        return [sys.executable, "-m", f"{DRIVER}{science}", *words, *both, f"output={output}"]

    return command


def ijepath_words(folder: Path, steps: int) -> list[str]:
    """Three small slides, of which one has three truncated tiles."""
    from tests.builders.runs.run import KEYS, write_cohort
    from tests.builders.slides import truncate_tile

    manifest = write_cohort(folder / "slides", slides=3)
    for tile in (16, 17, 18):
        truncate_tile(folder / "slides" / "slide1.tiff", 0, tile, keep=0.4)
    own = [f"data.slide_manifest_csv={manifest}", f"optimization.total_images_budget={steps * BATCH}"]
    return [*KEYS, *own, f"training.save_every={SNAPSHOT_EVERY * BATCH}", "data.max_corrupt_fraction=0.9"]


def adios_words(folder: Path, steps: int) -> list[str]:
    """Three zips of eight patches, one of them damaged."""
    from tests.builders.zips import write_folder

    write_folder(folder / "zips", archives=3, patches=8)
    archive = folder / "zips" / "s0.zip"
    data = bytearray(archive.read_bytes())
    start = data.index(b"\x89PNG") + 60  # in the first patch's pixels
    data[start : start + 8] = bytes(8)
    archive.write_bytes(data)
    return [
        "arch=vit_tiny", "patch_size=8", "embed_dim=32", "depth=2", "num_heads=2", "mask_model_type=adios",
        "mask_model.channels=8", "student.head=[16,8]", "data.patch_px=32", "data.image_size=32", "crops.size=16",
        f"global_batch={BATCH}", f"total_iterations={steps}", f"save_freq={SNAPSHOT_EVERY}", "viz_freq=0", "lr=1e-3",
        "logging.log_every={iterations: 1}", "logging.mlflow=false", "optimization.precision=fp32",
        "optimization.warmup_iterations=1", "data.threads=1", "data.max_corrupt_fraction=0.9",
        "checkpoint.latest_minutes=0", "scaling.accelerator=cpu", "scaling.cpus_per_worker=0.5",
        "runtime.worker_logs=false", f"data_path={folder}/zips",
    ]  # fmt: skip


def is_agent(line: str) -> bool:
    return RAYLET not in line and any(title in line for title in AGENTS)


class Job:
    """One start of a command, in its own session: all its processes are in it, even when their parent is dead."""

    def __init__(self, command: Sequence[str], said: Path, ray_folder: str) -> None:
        paths = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
        own = {"PYTHONPATH": paths, "RAY_TMPDIR": ray_folder, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | own
        self.said, self.begin = said, said.stat().st_size if said.exists() else 0
        with said.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)

    def lines(self) -> dict[int, str]:
        """Command lines of the session's processes by id."""
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                line = stat.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(session) == self.process.pid and state not in "ZX":
                found[int(stat.parent.name)] = line
        return found

    def processes(self, title: str = "") -> list[int]:
        """Ids of the session's processes whose command line holds `title`."""
        return [pid for pid, line in self.lines().items() if title in line]

    def kill(self, pids: Sequence[int]) -> None:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def kill_all(self, first: Sequence[int] = ()) -> None:
        """SIGKILL for `first`, then for the others, until there are none."""
        self.kill(first)
        while left := self.processes():
            self.kill(left)
            time.sleep(0.005)
        self.process.wait()

    def wait(self, seconds: float) -> int | None:
        """The driver's exit code; None when it still runs after the time given."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def left(self, seconds: float = 0.0, *, agents: bool = True) -> list[str]:
        """Command lines of the processes that are still there so long after the driver's end. `agents` False: but for
        Ray's agents, which notice a killed raylet after a minute; they have no part in the training."""
        deadline = time.monotonic() + seconds
        while True:
            left = [line for line in self.lines().values() if agents or not is_agent(line)]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.05)

    def words(self) -> str:
        """The output of the job so far."""
        with self.said.open("rb") as said:
            said.seek(self.begin)
            return said.read().decode(errors="replace")


@dataclass(frozen=True)
class Kill:
    """One kill that was drawn: what, and when. `whole`: all processes and not the driver only."""

    number: int
    kind: str
    at_images: int  # earliest image count at which it strikes
    stage: str = DRIVER  # of a start: after this process has appeared …
    delay_s: float = 0.0  # … and so much later
    whole: bool = True


@dataclass
class Strike:
    """The result of a kill. `restarted`: the command had to be given again. `next_step_s`: from the kill to the next
    step's row; None where none followed."""

    kill: Kill
    images: int
    time: float
    restarted: bool
    note: str = ""
    half: int = 0  # checkpoints that it left half-written
    next_step_s: float | None = None

    def line(self) -> str:
        seconds = "no step after it" if self.next_step_s is None else f"{self.next_step_s:.0f} s to the next step"
        note = f" ({self.note})" if self.note else ""
        return f"kill {self.kill.number:2d}: {self.kill.kind:<6} at {self.images:4d} images, {seconds}{note}"


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
        """End the current start: nothing of it may be left, except Ray's agents for a while."""
        assert self.job is not None
        for line in self.job.left(LEFT_S, agents=False):
            self.problem(f"{name}: still running {LEFT_S:.0f} s later: {line[:100]}")
        self.over[self.job] = time.monotonic()
        self.job = None

    def sweep(self, wait: bool = False) -> None:
        """Check starts that are over: a process left for too long is an error, and is killed."""
        for job, since in list(self.over.items()):
            if job.left() and time.monotonic() - since < AGENTS_S and not wait:
                continue
            for line in job.left(max(0.0, since + AGENTS_S - time.monotonic())):
                self.problem(f"still running {AGENTS_S:.0f} s after its driver: {line[:100]}")
            job.kill_all()
            del self.over[job]

    def stepped(self, at: float) -> None:
        """Complete the lines of the kills that waited for a next step."""
        if self.waiting:
            for text in checks.metrics_problems(self.folder, BATCH):
                self.problem(f"after kill {self.waiting[-1].kill.number}: {text}")
        for strike in self.waiting:
            strike.next_step_s = at - strike.time
            print(strike.line(), flush=True)
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
