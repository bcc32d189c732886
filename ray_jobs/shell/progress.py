"""How far a job is: a tqdm bar on a terminal, elsewhere a line for about every tenth. Not a log of metrics.

`Progress` is told what is done; `TrainingProgress` reads it in the folder of a run whose workers are elsewhere.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from types import TracebackType
from typing import Any, ClassVar, TextIO

log = logging.getLogger(__name__)
LOCAL_EVERY_S, REMOTE_EVERY_S, TAIL_BYTES = 2.0, 30.0, 1 << 16
LINE_EVERY_S = 600.0  # a line at least so often, where there is no terminal
BEAT = "progress.json"


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


class TrainingProgress:
    """Images of the budget, loss, speed and time left, from what a run leaves in its folder `store`.

    That is the newest row of metrics.jsonl, which may come hours apart, and between them progress.json (local runs).
    `look` reads at most every few seconds; what was there before this object was made is not news. `total` 0: the
    budget is not known.
    """

    def __init__(
        self,
        store: Any,
        total: int,
        what: str = "train",
        *,
        stream: TextIO | None = None,
        every_s: float | None = None,
    ) -> None:
        self.store, self.total, self.what, self.stream = store, total, what, stream or sys.stderr
        self.every_s = every_s if every_s is not None else LOCAL_EVERY_S if store.local else REMOTE_EVERY_S
        self.began, self.looked = math.floor(1e3 * time.time()) / 1e3, time.monotonic()  # rows have milliseconds
        self.seen, self.told, self.told_at = -1, -1, -math.inf
        self.first: tuple[int, float] | None = None  # images and time of the first sign of life
        self.bar: Any = None

    def look(self, *, now: bool = False) -> None:
        """Read what is new, if it is time (or `now`), and show it. Trouble with storage is only logged."""
        if not now and time.monotonic() - self.looked < self.every_s:
            return
        self.looked = time.monotonic()
        try:
            row, beat = self._newest() or {}, self._beat() or {}
        except OSError as e:
            log.warning("the training progress could not be read; retrying: %s", e)
            return
        seen = max(row.get("images_seen", -1), beat.get("images_seen", -1))
        if seen >= 0 and seen != self.seen:
            self.seen = seen
            self._show({"images_per_s": self._rate(beat), **row})

    def close(self) -> None:
        """Show the end, and leave the terminal as it was."""
        self.look(now=True)
        if self.bar is not None:
            self.bar.close()

    def _beat(self) -> dict[str, Any] | None:
        if not self.store.local or not self.store.exists(BEAT):
            return None
        beat: dict[str, Any] = json.loads(self.store.read_bytes(BEAT))
        return beat if beat["time"] >= self.began else None

    def _rate(self, beat: dict[str, Any]) -> float:
        """Images a second since the first sign of life: until the first row of metrics has it measured."""
        if not beat:
            return math.nan
        self.first = self.first or (beat["images_seen"], beat["time"])
        seconds = beat["time"] - self.first[1]
        return float((beat["images_seen"] - self.first[0]) / seconds) if seconds > 0 else math.nan

    def _newest(self) -> dict[str, Any] | None:
        """The newest row of this attempt that has a loss."""
        from pathray.run.tracking import TIME, rows_of

        if not self.store.exists("metrics.jsonl"):
            return None
        if self.store.local:
            with open(self.store.path("metrics.jsonl"), "rb") as f:
                f.seek(max(0, f.seek(0, 2) - TAIL_BYTES))
                content = f.read()
            content = content if len(content) < TAIL_BYTES else content.partition(b"\n")[2]
        else:
            content = self.store.read_bytes("metrics.jsonl")
        rows = [row for row in rows_of(content) if "loss" in row and row.get(TIME, 0.0) >= self.began]
        return rows[-1] if rows else None

    def _show(self, row: dict[str, Any]) -> None:
        text = " · ".join([f"{self._images()} images", *self._figures(row)])
        if self.stream.isatty():
            self._draw(text)
            return
        tenth = 10 * self.seen // self.total if self.total else 0
        if tenth == self.told and time.monotonic() - self.told_at < LINE_EVERY_S:
            return
        self.told, self.told_at = tenth, time.monotonic()  # tenths go back where a worker died: steps are taken again
        print(f"{self.what}: {text}", file=self.stream, flush=True)

    def _draw(self, text: str) -> None:
        from tqdm import tqdm

        if self.bar is None:
            shape = "{desc}: {percentage:3.0f}%|{bar}| {unit}" if self.total else "{desc}: {unit}"
            self.bar = tqdm(
                total=self.total or None,
                desc=self.what,
                unit="",
                bar_format=shape,
                file=self.stream,
                dynamic_ncols=True,
            )
        self.bar.n = self.seen
        self.bar.unit = text  # tqdm puts a comma before a postfix
        self.bar.refresh()

    def _images(self) -> str:
        return f"{self.seen:,} of {self.total:,}" if self.total else f"{self.seen:,}"

    def _figures(self, row: dict[str, Any]) -> list[str]:
        rate = row.get("images_per_s") or math.nan
        parts = [f"loss {row['loss']:.3g}"] if "loss" in row else []
        if math.isfinite(rate):
            parts.append(f"{rate:.3g} images/s" if rate < 100 else f"{rate:,.0f} images/s")
            if left := self.total - self.seen if self.total else 0:
                parts.append(f"{duration(left / rate)} left")
        return parts


def duration(seconds: float) -> str:
    """A time as people say it: 45 s, 36 min, 5.2 h, 3.1 days."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 90 * 60)):
        if seconds < most:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
