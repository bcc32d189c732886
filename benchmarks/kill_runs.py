"""Small pretraining runs on generated data, as commands, and one start of a command with all its processes.

What is killed, and when, is in benchmarks/kills.py. Linux only: processes are found in /proc.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BATCH = 4  # images a step
LATEST_EVERY, SNAPSHOT_EVERY = 3, 80  # steps between checkpoints
DRIVER, WORKER, RAYLET = "ray_jobs.pretrain_", "RayTrainWorker", "raylet/raylet "
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "dashboard/agent.py", "runtime_env/agent/main.py")


def commands(science: str, folder: Path, steps: int, workers: int) -> Callable[[Path], list[str]]:
    """Write the inputs of a science's run of so many steps; its command by output folder."""
    words = {"ijepath": ijepath_words, "adios": adios_words}[science](folder, steps)
    both = [f"scaling.workers={workers}", f"checkpoint.latest_every={LATEST_EVERY * BATCH}", "checkpoint.keep_last_n=1"]

    def command(output: Path) -> list[str]:
        return [sys.executable, "-m", f"{DRIVER}{science}", *words, *both, f"output={output}"]

    return command


def ijepath_words(folder: Path, steps: int) -> list[str]:
    """Three small slides, of which one has three truncated tiles."""
    from tests.builders.run import KEYS, write_cohort
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
    """One start of a command, in a session of its own: all its processes are in it, also when their parent is dead."""

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
        """The driver's exit code; None when it still runs after so long."""
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
        """What it has printed."""
        with self.said.open("rb") as said:
            said.seek(self.begin)
            return said.read().decode(errors="replace")
