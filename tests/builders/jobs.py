"""Jobs in processes of their own: a small one as a file (`python -m toy_job`); running, finding and awaiting them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]

TOY_JOB = '''"""Adds numbers up. Only here to be run by a test."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from pathray.config.load import MISSING
from pathray.errors import UserError
from ray_jobs.shell.cli import Outputs, job


@dataclass
class ToyConfig:
    end: str = MISSING  # how it ends
    amount: int = 1


def main(loaded):
    config = loaded.config
    if config.end == "user":
        raise UserError("no slides", file="slides.csv", row=3)
    if config.end == "assert":
        assert config.amount > 5, "ours"
    if config.end == "wrapped":
        try:
            raise UserError("unreadable", file="a.svs")
        except UserError as e:
            raise RuntimeError("worker died") from e
    if config.end == "wait":
        try:
            print("waiting", flush=True)
            time.sleep(60)
        finally:
            print("cleaned up", flush=True)
    if config.end == "poor":
        return Outputs({"report": "r.csv"}, exit_code=1)
    print(type(config).__module__, loaded.dry_run)
    return Outputs({"index": "a.parquet", "report": Path("r.csv")})


if __name__ == "__main__":
    job(main, ToyConfig, Path(__file__).parent / "configs")
'''


def write_toy_job(folder: Path) -> None:
    (folder / "toy_job.py").write_text(TOY_JOB)


def job_command(module: str, *argv: str) -> list[str]:
    return [sys.executable, "-m", module, *argv]


def job_environment(*extra_paths: Path) -> dict[str, str]:
    paths = os.pathsep.join([*map(str, extra_paths), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths}


def run_job_process(folder: Path, module: str, *argv: str, paths: tuple[Path, ...] = (), timeout: float = 60):
    return subprocess.run(
        job_command(module, *argv),
        cwd=folder, env=job_environment(*paths), capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def wait_for(what: Callable[[], T], seconds: float = 120.0, every: float = 0.005) -> T:
    """The first true value of `what()`."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(every)
    return value


def descendants(pid: int) -> list[int]:
    """Process ids below `pid`, by /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        todo += (below := children.get(todo.pop(), []))
        found += below
    return found


def kill_job(job: subprocess.Popen[str]) -> None:
    """SIGKILL for a job and all that it has started; returns when they are gone."""
    own = [job.pid, *descendants(job.pid)]
    own.sort(key=lambda pid: pid == job.pid)  # the job last: what it starts would be lost to us
    for pid in alive(own):
        os.kill(pid, signal.SIGKILL)
    job.wait()
    wait_for(lambda: not alive(own), seconds=60)


def alive(pids: list[int]) -> list[int]:
    def state(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return "gone"

    return [pid for pid in pids if state(pid) not in ("gone", "Z", "X")]


def join_threads_that_exit() -> None:
    """Wait for the threads that end a job which does not stop. Called while `os._exit` is patched: one that comes later
    would end the process of the tests."""
    for thread in [t for t in threading.enumerate() if t.name == "pathray-end"]:
        thread.join(60)
