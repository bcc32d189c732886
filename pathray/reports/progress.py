"""How far a job is: a tqdm bar on a terminal, elsewhere a line for about every tenth. Not a log of metrics."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, ClassVar, TextIO

LINE_EVERY_S = 600.0  # a line at least so often, where there is no terminal


class Progress:
    """`with Progress(len(slides), "index", "slides") as progress: progress.update()`. `total` None: not known.

    `parts`: what the items consist of and is counted with them (tiles of slides): `progress.update(1, tiles)`.
    `Progress.shown` are those whose blocks run.
    """

    shown: ClassVar[list[Progress]] = []

    def __str__(self) -> str:
        return f"{self.what} ({self.done}{f' of {self.total}' if self.total else ''} {self.unit} done)"

    def __init__(
        self, total: int | None, what: str, unit: str = "items", stream: TextIO | None = None, *, parts: str = ""
    ) -> None:
        self.total, self.what, self.unit, self.parts = total, what, unit, parts
        self.done, self.parts_done = 0, 0
        self.stream = stream or sys.stderr
        self.started, self.told = time.monotonic(), 0
        self.told_at = self.started
        self.bar: Any = None

    def __enter__(self) -> Progress:
        self.shown.append(self)
        if self.stream.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=self.total, desc=self.what, unit=f" {self.unit}", file=self.stream, dynamic_ncols=True
            )
        return self

    def update(self, n: int = 1, parts: int = 0) -> None:
        self.done, self.parts_done = self.done + n, self.parts_done + parts
        now = time.monotonic()
        if self.bar is not None:
            if self.parts:
                self.bar.set_postfix_str(self._parts(now), refresh=False)
            self.bar.update(n)
        elif self.total and n and self._is_due(now):
            self.told, self.told_at = 10 * self.done // self.total, now
            seconds = max(1e-9, now - self.started)
            figures = [f"{self.done} of {self.total} {self.unit}"]
            figures.append(self._parts(now) if self.parts else f"{self.done / seconds:.1f}/s")
            if self.done < self.total:
                figures.append(f"{duration(seconds / self.done * (self.total - self.done))} left")
            text = f"{self.what}: {100 * self.done // self.total}% ({', '.join(figures)})"
            print(text, file=self.stream, flush=True)

    def _is_due(self, now: float) -> bool:
        assert self.total
        return min(10, 10 * self.done // self.total) > self.told or now - self.told_at > LINE_EVERY_S

    def _parts(self, now: float) -> str:
        rate = self.parts_done / max(1e-9, now - self.started)
        return f"{self.parts_done:,} {self.parts}, {rate:,.1f} {self.parts}/s"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shown.remove(self)
        if self.bar is not None:
            self.bar.close()
        elif not self.total:
            seconds = time.monotonic() - self.started
            print(f"{self.what}: {self.done} {self.unit} in {seconds:.1f} s", file=self.stream, flush=True)


def duration(seconds: float) -> str:
    """A time as people say it: 45 s, 36 min, 5.2 h, 3.1 days."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 90 * 60)):
        if seconds < most:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
