"""How far a training is, shown to the user: read in the run's folder, wherever the run is.

`write_beat` leaves a sign of life there (progress.json, local runs only); `TrainingProgress` shows it, as a bar on a
terminal, elsewhere as a line for about every tenth of the budget.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from typing import Any, TextIO

from pathray.reports.progress import LINE_EVERY_S, duration
from pathray.run.layout import METRICS, PROGRESS
from pathray.store.storage import Storage

log = logging.getLogger(__name__)
LOCAL_EVERY_S, REMOTE_EVERY_S, TAIL_BYTES = 2.0, 30.0, 1 << 16


def write_beat(store: Storage, images_seen: int, end: str | None = None) -> None:
    """Leave how far the run is, and how it ended if it has."""
    beat = {"images_seen": images_seen, "time": time.time()} | ({} if end is None else {"end": end})
    store.write_bytes(PROGRESS, json.dumps(beat).encode())


class TrainingProgress:
    """Images of the budget, loss, speed and time left, from what a run leaves in its folder `store`.

    That is the newest row of metrics.jsonl, which may come hours apart, and between them progress.json (local runs).
    `look` reads at most every few seconds; what was there before this object was made is not news. `total` 0: the
    budget is not known.
    """

    def __init__(
        self,
        store: Storage,
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
        if not self.store.local or not self.store.exists(PROGRESS):
            return None
        beat: dict[str, Any] = json.loads(self.store.read_bytes(PROGRESS))
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
        from pathray.store.metrics_log import TIME, rows_of

        if not self.store.exists(METRICS):
            return None
        if self.store.local:
            with open(self.store.path(METRICS), "rb") as f:
                f.seek(max(0, f.seek(0, 2) - TAIL_BYTES))
                content = f.read()
            content = content if len(content) < TAIL_BYTES else content.partition(b"\n")[2]
        else:
            content = self.store.read_bytes(METRICS)
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
