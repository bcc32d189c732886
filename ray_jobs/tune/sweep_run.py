"""One training run of a sweep: the job's own `main` in a thread of the trial's process, and the metrics it writes.

All state is in the run's folder: the run resumes by itself, and its progress is read from its metrics. Without Tune.
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
from pathray.search.objective import IMAGES, Objective, Point
from pathray.store.cache import private_cache
from pathray.store.metrics_log import rows_of
from pathray.store.outages import through_outages
from pathray.store.storage import Storage, StorageError
from ray_jobs.tune.config import TrainingJob

log = logging.getLogger(__name__)
TRIAL = "trial.json"
BUDGETS = ("optimization.total_images_budget", "train.images", "total_images")  # keys of the budget in resolved configs


class TrialRun:
    """A run of `job` with `values` in `folder`; `words` are `key=value` settings from the sweep."""

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
        if not through_outages(lambda: self.store.exists(TRIAL), "the trial"):
            through_outages(lambda: self.store.write_bytes(TRIAL, json.dumps(record).encode()), "the trial")
        self._thread = threading.Thread(target=self._run, name="pathray-trial", daemon=True)
        self._thread.start()

    @property
    def has_started(self) -> bool:
        return self._thread is not None

    @property
    def has_ended(self) -> bool:
        return self._thread is not None and not self._thread.is_alive()

    def stop(self, seconds: float) -> bool:
        """Request the run to save a checkpoint and end; returns whether it did within `seconds`."""
        if self._thread is None:
            return True
        deadline = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < deadline:
            try:
                request_stop(self.store.url)  # repeated, because a starting run removes an older request
            except StorageError as e:
                if not e.passing:
                    raise
                log.warning("could not ask %s to stop; retrying: %s", self.store.url, e)
            self._thread.join(2.0)
        return not self._thread.is_alive()

    def history(self) -> list[Point]:
        return history_of(self.store, self.objective)

    @property
    def budget(self) -> int:
        """The run's budget in images; 0 until the run has written its config."""
        if self._budget == 0 and self.store.exists(CONFIG):
            config = OmegaConf.create(self.store.read_bytes(CONFIG).decode())
            found = (OmegaConf.select(config, key) for key in BUDGETS)
            self._budget = next((budget for budget in found if isinstance(budget, int)), 0)
        return self._budget

    def _run(self) -> None:
        try:
            with _exclusive(self.store.url):
                self.job.module.main(self.job.load(self.values, *self.words))
        except BaseException as e:  # raised later by the trial
            self.error = e


def history_of(store: Storage, objective: Objective) -> list[Point]:
    """The objective's values in the run's folder so far."""
    return objective.history(_rows(store, objective.source))


def images_of(store: Storage) -> int:
    """The images seen by the run in the folder, from its metrics."""
    return max((int(row.get(IMAGES, 0)) for row in _rows(store, METRICS)), default=0)


def metrics_of(store: Storage, objective: Objective) -> list[str]:
    """The names of all metrics in the objective's file."""
    return sorted({key for row in _rows(store, objective.source) for key in row})


def _rows(store: Storage, name: str) -> list[dict[str, Any]]:
    return rows_of(store.read_bytes(name)) if store.exists(name) else []


@contextmanager
def _exclusive(folder: str) -> Iterator[None]:
    """Wait while another process on this node trains in the folder, since a paused trial may resume before its old
    process has ended. All trials run on the driver's node."""
    name = hashlib.sha256(folder.encode()).hexdigest()[:24]
    with open(private_cache() / f"{name}.trial", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def no_objective(store: Storage, objective: Objective) -> UserError:
    where = store.join(objective.source)
    known = [name for name in metrics_of(store, objective) if name not in (IMAGES, "time")]
    expected = ", ".join(known) or "rows of metrics; check that training.log_every is within the budget"
    return UserError(
        "the run ended without a value of the objective", file=where, key="objective.metric", found=objective.metric,
        expected=expected,
    )  # fmt: skip
