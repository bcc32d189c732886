"""How far a job is: a tqdm bar on a terminal, elsewhere a line for about every tenth. Not a log of metrics."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO


class Progress:
    """`with Progress(len(slides), "index", "slides") as progress: progress.update()`. `total` None: not known."""

    def __init__(self, total: int | None, what: str, unit: str = "items", stream: TextIO | None = None) -> None:
        self.total, self.what, self.unit, self.done = total, what, unit, 0
        self.stream = stream or sys.stderr
        self.started, self.told = time.monotonic(), 0
        self.bar: Any = None

    def __enter__(self) -> Progress:
        if self.stream.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=self.total, desc=self.what, unit=f" {self.unit}", file=self.stream, dynamic_ncols=True
            )
        return self

    def update(self, n: int = 1) -> None:
        self.done += n
        if self.bar is not None:
            self.bar.update(n)
        elif self.total and (tenth := min(10, 10 * self.done // self.total)) > self.told:
            self.told = tenth
            rate = self.done / max(1e-9, time.monotonic() - self.started)
            text = (
                f"{self.what}: {100 * self.done // self.total}% ({self.done} of {self.total} {self.unit}, {rate:.1f}/s)"
            )
            print(text, file=self.stream, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        elif not self.total:
            seconds = time.monotonic() - self.started
            print(f"{self.what}: {self.done} {self.unit} in {seconds:.1f} s", file=self.stream, flush=True)
