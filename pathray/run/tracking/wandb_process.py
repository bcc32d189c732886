"""Starts the process that mirrors a run to W&B, passes on its warnings, and ends it without waiting for long.

    with WandbProcess(spec): …

Not here: what it tells W&B (pathray.run.tracking.wandb_mirror).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

from pathray.errors import UserError
from pathray.run.tracking.wandb_mirror import MirrorSpec

log = logging.getLogger(__name__)
END_S = 20.0  # that a job's end waits for W&B


def check_installed() -> None:
    """UserError that names the extra where wandb is not installed."""
    if importlib.util.find_spec("wandb") is None:
        expected = "pip install 'pathray[wandb]', or logging.wandb.mode=off"
        raise UserError("wandb is not installed", key="logging.wandb.mode", expected=expected)


class WandbProcess:
    """The mirror of one run while the block runs. Its trouble is logged, never raised."""

    def __init__(self, spec: MirrorSpec, end_s: float | None = None) -> None:
        self.spec, self.end_s = spec, END_S if end_s is None else end_s
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> WandbProcess:
        root = str(Path(__file__).parents[3])  # the folder with the package
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pathray.run.tracking.wandb_mirror"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # an interrupt is for the job, which then says how it ended
            )
        except OSError as e:
            log.warning("W&B: the mirror could not be started; metrics.jsonl has everything: %s", e)
            return self
        self._send(self.spec.to_line())
        self._thread = threading.Thread(target=self._pass_on, name="pathray-wandb", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(0 if kind is None else 1)

    def close(self, exit_code: int) -> None:
        """Ask the mirror to end, and wait for it for `end_s` seconds: uploads may continue behind the job."""
        process = self._process
        if process is None:
            return
        self._send(str(exit_code))
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        try:
            process.wait(self.end_s)
        except subprocess.TimeoutExpired:
            log.warning(
                "W&B is slow: process %d still sends what is left; metrics.jsonl has everything, and `wandb sync` in "
                "the folder wandb sends what is missing",
                process.pid,
            )
            return
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def _send(self, line: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended, and said why
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def _pass_on(self) -> None:
        process = self._process
        assert process is not None and process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(ValueError):  # a word of wandb's own
                log.warning("%s", json.loads(line))
        if process.wait():
            log.warning("W&B: the mirror ended with %d; metrics.jsonl has everything", process.returncode)
