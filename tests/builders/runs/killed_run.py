"""Toy runs in children that kill themselves, forked by a process that imports torch once and never has threads.

`python -m tests.builders.runs.killed_run PLAN` reads a line of JSON per run, `{"folder", "scratch", "kill"}`, and
prints how each ended: 0, or minus the signal. POINTS says where a run may be killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH, STEPS, SAVE_EVERY = 12, 12, 2
TOY: dict[str, Any] = {"total_images": STEPS * BATCH, "save_every": SAVE_EVERY * BATCH, "unreadable_every": 7}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def kill_at(owner: Any, name: str, picks: Callable[..., bool] = lambda *given: True, call: int = 1) -> None:
    """Kill this process where `owner.name` is called for the `call`-th time with arguments that are picked."""
    original, left, lock = getattr(owner, name), [call], threading.Lock()

    def killing(*given: Any, **more: Any) -> Any:
        with lock:
            if picks(*given):
                left[0] -= 1
            if left[0] == 0:
                die()
        return original(*given, **more)

    setattr(owner, name, killing)


def _in_a_row() -> None:
    """Half of the sixth row is on the disk."""
    from pathray.store.metrics_log import MetricsLog

    append, rows = MetricsLog.append_line, list[bytes]()

    def half(self: Any, line: bytes) -> None:
        rows.append(line)
        if len(rows) == 6:
            with open(self._store.path(self._name), "ab") as f:
                f.write(line[: len(line) // 2])
            die()
        append(self, line)

    MetricsLog.append_line = half  # type: ignore[method-assign]


def _in_the_tensors() -> None:
    """Half of the third checkpoint's tensors are on the disk."""
    import safetensors.torch

    save, files = safetensors.torch.save_file, list[Any]()

    def half(tensors: Any, path: Any, *more: Any) -> None:
        save(tensors, path, *more)
        if os.path.basename(path) == "tensors.safetensors":
            files.append(path)
        if len(files) == 3:
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    safetensors.torch.save_file = half  # type: ignore[assignment]


def _writing(name: str, call: int = 1) -> Callable[[], None]:
    """Before a file of this name is written."""

    def install() -> None:
        from pathray.store.storage import Storage

        kill_at(Storage, "write_bytes", lambda store, own, *more: store.path(own).endswith(name), call)

    return install


def _replacing(name: str, call: int = 1) -> Callable[[], None]:
    """The new content is on the disk under another name, and the file is still the old one."""
    return lambda: kill_at(os, "replace", lambda source, target: str(target).endswith(name), call)


def _calling(module: str, name: str, call: int = 1) -> Callable[[], None]:
    def install() -> None:
        path, _, inside = module.partition(":")
        owner: Any = __import__(path, fromlist=["_"])
        kill_at(getattr(owner, inside) if inside else owner, name, call=call)

    return install


def _removing_the_rest() -> None:
    """An older checkpoint has lost its record, and nothing else yet."""
    from pathray.store.storage import Storage

    kill_at(Storage, "remove", lambda store, name: name == "" and "/checkpoints/" in store.url)


TOY_SCIENCE = "tests.builders.runs.toy_science:ToyRecipe"
POINTS: dict[str, Callable[[], None]] = {
    "before the first step": _calling(TOY_SCIENCE, "prepare"),
    "in a step": _calling(TOY_SCIENCE, "loss", 6 * 5 + 3),
    "in a checkpoint's tensors": _in_the_tensors,
    "between the files of a snapshot": _writing("/encoder/artifact.json"),
    "before the commit": _calling("pathray.store.committed:CommittedWriter", "commit", 3),
    "in the commit": _replacing("/COMMITTED.json", 3),
    "after the commit, before older ones are removed": _calling("pathray.store.checkpoint", "prune", 3),
    "while an older checkpoint is removed": _removing_the_rest,
    "in a row of metrics": _in_a_row,
    "before a part of the quarantine report": _writing("-rank00000.parquet", 2),
    "after a part of the quarantine report": _calling("pathray.run.saves:Saves", "_save_checkpoint", 2),
    "in the quarantine report": _replacing("/quarantine.parquet"),
    "in the export": _writing("run/encoder/artifact.json"),
    "after the export": _calling("pathray.run.quarantine", "merge"),
    "before the place is given back": _calling("pathray.run.fence:Fence", "release"),
    "in a takeover, before the owner is written": _writing("/owner.json"),
    "in a takeover, after the owner was written": _calling("pathray.store.exclusive", "_is_settled"),
    "in a takeover on a disk, after the owner was written": _calling("pathray.run.fence:Fence", "_beat"),
    "": lambda: None,
}


def run(folder: str, scratch: str, kill: str, plan: Any) -> None:
    from pathray.device import Device
    from pathray.run import train
    from tests.builders.runs.bucket_run import assemble, register
    from tests.builders.runs.toy_science import ToyConfig

    register(Path(scratch), os.environ.__setitem__)
    POINTS[kill]()
    train(assemble(ToyConfig(run=scratch, **TOY), plan, 1), plan, folder, Device.of("cpu"))


class Runs:
    """The forking process: `end(folder, kill)` is how a run ended."""

    def __init__(self, plan: str, scratch: Path, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "tests.builders.runs.killed_run", plan]
        pipe = subprocess.PIPE
        self.scratch = scratch
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True)

    def end(self, folder: str, kill: str = "") -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps({"folder": folder, "scratch": str(self.scratch), "kill": kill}), file=self.process.stdin)
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def main(plan_path: str) -> None:
    import torch

    from pathray import run as _  # noqa: F401  # what a run imports is imported before the first fork
    from pathray.data.plan import Plan
    from tests.builders.runs import bucket_run  # noqa: F401

    torch.set_num_threads(1)
    plan = Plan.open(plan_path)
    assert threading.active_count() == 1, threading.enumerate()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)
            code = 1
            try:
                run(**json.loads(line), plan=plan)
                code = 0
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
