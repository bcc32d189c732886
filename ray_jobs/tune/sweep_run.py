"""One training run of a sweep, in a thread of the trial's process: the job's own `main`, and the rows that it writes.

The run's folder is the truth: it resumes by itself, and what it has done is read from its rows of metrics. No Tune.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from omegaconf import OmegaConf

from pathray.errors import UserError
from pathray.run.layout import CONFIG, METRICS
from pathray.run.stop import request_stop
from pathray.run.tracking import rows_of
from pathray.search.objective import IMAGES, Objective, Point
from pathray.store.storage import Storage, private_cache
from ray_jobs.tune.config import TrainingJob

log = logging.getLogger(__name__)
TRIAL = "trial.json"
BUDGETS = ("optimization.total_images_budget", "train.images", "total_images")  # where resolved configs have it


class TrialRun:
    """A run of `job` with `values` into `folder`; `words` are the sweep's own `key=value` for it."""

    def __init__(
        self, job: TrainingJob, trial: str, values: Mapping[str, Any], folder: str, words: Sequence[str],
        objective: Objective,
    ) -> None:  # fmt: skip
        self.job, self.trial, self.values, self.words = job, trial, dict(values), tuple(words)
        self.store, self.objective = Storage.of(folder), objective
        self.error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._budget = 0

    def start(self) -> None:
        record = {"trial": self.trial, "values": self.values, "began": time.time()}
        if not self.store.exists(TRIAL):
            self.store.write_bytes(TRIAL, json.dumps(record).encode())
        self._thread = threading.Thread(target=self._run, name="pathray-trial", daemon=True)
        self._thread.start()

    @property
    def started(self) -> bool:
        return self._thread is not None

    @property
    def ended(self) -> bool:
        return self._thread is not None and not self._thread.is_alive()

    def stop(self, seconds: float) -> bool:
        """Ask the run to checkpoint and end; whether it has within so long."""
        if self._thread is None:
            return True
        deadline = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < deadline:
            request_stop(self.store.url)  # again and again: a run that is only beginning removes an older one
            self._thread.join(2.0)
        return not self._thread.is_alive()

    def history(self) -> list[Point]:
        return history_of(self.store, self.objective)

    @property
    def budget(self) -> int:
        """The images that the run is to see; 0 as long as it has not said so."""
        if self._budget == 0 and self.store.exists(CONFIG):
            config = OmegaConf.create(self.store.read_bytes(CONFIG).decode())
            found = (OmegaConf.select(config, key) for key in BUDGETS)
            self._budget = next((budget for budget in found if isinstance(budget, int)), 0)
        return self._budget

    def _run(self) -> None:
        try:
            with _alone(self.store.url):
                self.job.module.main(self.job.load(self.values, *self.words))
        except BaseException as e:  # carried to whoever asks, who raises it
            self.error = e


def history_of(store: Storage, objective: Objective) -> list[Point]:
    """What the run in the folder has of the objective so far."""
    return objective.history(_rows(store, objective.source))


def images_of(store: Storage) -> int:
    """The images that the run in the folder has seen, by its rows."""
    return max((int(row.get(IMAGES, 0)) for row in _rows(store, METRICS)), default=0)


def metrics_of(store: Storage, objective: Objective) -> list[str]:
    """The metrics that there are where the objective should be."""
    return sorted({key for row in _rows(store, objective.source) for key in row})


def _rows(store: Storage, name: str) -> list[dict[str, Any]]:
    return rows_of(store.read_bytes(name)) if store.exists(name) else []


@contextmanager
def _alone(folder: str) -> Iterator[None]:
    """Waits while another process of this node trains in the folder: a trial that was paused and goes on at once must
    not meet its former self. All trials run on the driver's node."""
    name = hashlib.sha256(folder.encode()).hexdigest()[:24]
    with open(private_cache() / f"{name}.trial", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def no_objective(store: Storage, objective: Objective) -> UserError:
    where = store.join(objective.source)
    known = [name for name in metrics_of(store, objective) if name not in (IMAGES, "time")]
    expected = ", ".join(known) or "rows of metrics: is training.log_every within the budget?"
    return UserError(
        "the training ended without the objective", file=where, key="objective.metric", found=objective.metric,
        expected=expected,
    )  # fmt: skip
