"""A trial of a sweep as a Ray Tune Trainable: each result is the run's next metrics row with the objective.

Tune's checkpoints of a trial hold only a pointer; the training has its own. A restored trial continues in its run's
folder. A trial that takes over another's weights (population based training) starts a new run from the donor's
snapshot, with some identity keys changed.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ray import tune

from pathray.errors import MissingFile
from pathray.run.layout import CHECKPOINTS, STOP
from pathray.search.objective import IMAGES, Objective, Point
from pathray.search.space import word
from pathray.store.committed import Committed, list_committed
from pathray.store.outages import Looks, through_outages
from pathray.store.storage import Storage
from ray_jobs.tune.config import CHANGES, SAVE_EVERY, TrainingJob
from ray_jobs.tune.sweep_run import TrialRun, no_objective

log = logging.getLogger(__name__)
END, PARKED = "end", "parked"  # in a result: how the run ended; the run has ended because the sweep stops
POLL_S, REMOTE_POLL_S = 0.3, 5.0
STOP_WITHIN_S, SNAPSHOT_WITHIN_S = 540.0, 120.0


@dataclass(frozen=True)
class TrialSettings:
    """Settings shared by all trials of a sweep. `words`: `key=value` for each run, after its values."""

    root: str
    job: TrainingJob
    keys: tuple[str, ...]
    objective: Objective
    words: tuple[str, ...]
    cwd: str
    snapshot_images: int = 0  # > 0: runs save a snapshot every this many images, from which others may continue
    environment: Mapping[str, str] = field(default_factory=dict)  # of Ray's workers


class SweepTrial(tune.Trainable):  # type: ignore[misc]
    def setup(self, config: dict[str, Any], settings: TrialSettings) -> None:  # type: ignore[override]
        from ray_jobs.shell.runtime import set_worker_environment

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        if os.path.isdir(settings.cwd):
            os.chdir(settings.cwd)  # relative paths in the arguments start here
        set_worker_environment(settings.environment)
        self.settings, self.sweep = settings, Storage.of(settings.root)
        self.values = {key: plain(config[key]) for key in settings.keys}
        self.folder, self.donor = f"trials/{self.trial_id}", ""
        self.run: TrialRun | None = None
        self.told: set[int] = set()  # images seen of the results that were returned to Tune
        self.from_images = -1  # earlier results are already known
        self.last: Point = (0, math.nan)
        self.stops, self.rows = Looks("a stop of the sweep"), Looks(f"the results of {self.trial_id}")

    def step(self) -> dict[str, Any]:
        poll = POLL_S if self.sweep.local else REMOTE_POLL_S
        while True:
            if token := self.stops.look(lambda: stop_token(self.sweep), ""):
                return self._park(token, poll)
            run = self._ensure_running()
            ended = run.has_ended  # checked before reading the rows, so that none is missed
            fresh = self.rows.look(partial(self._fresh, run, ended), None)
            if fresh:
                self.last = fresh[0]
                self.told.add(fresh[0][0])
                if len(fresh) > 1 or not ended or run.error is not None:
                    return self._result()
            if ended and fresh is not None:
                return self._final_result(run)
            time.sleep(poll)

    def _fresh(self, run: TrialRun, ended: bool) -> list[Point]:
        """The results to return to Tune, in order. The one at the end of the budget waits for the run's end."""
        fresh = [p for p in run.history() if p[0] > self.from_images and p[0] not in self.told]
        waits = len(fresh) == 1 and not ended and 0 < run.budget <= fresh[0][0]
        return [] if waits else fresh

    def _final_result(self, run: TrialRun) -> dict[str, Any]:
        """The last result, returned after the run has ended, because PBT would let others continue a complete run."""
        if run.error is not None:
            raise run.error
        if not self.told and self.from_images < 0:
            raise through_outages(lambda: no_objective(run.store, run.objective), "the trial")
        return {**self._result(), "done": True, END: "finished"}

    def _ensure_running(self) -> TrialRun:
        if self.run is None:
            settings = self.settings
            words = [*settings.words, *settings.job.words_for(self.sweep.join(self.folder))]
            if self.donor:
                words += [word("checkpoint.resume", self.donor), word(CHANGES, list(settings.keys))]
            self.run = TrialRun(
                settings.job, self.trial_id, self.values, self.sweep.join(self.folder), words, settings.objective
            )
            self.run.start()
        return self.run

    def _result(self) -> dict[str, Any]:
        images, value = self.last
        return {IMAGES: images, self.settings.objective.metric: value, "folder": self.folder}

    def _park(self, token: str, poll: float) -> dict[str, Any]:
        """End the run with a checkpoint because the sweep stops, then repeat the last result until the process ends."""
        if self.run is not None and not self.run.stop(STOP_WITHIN_S):
            log.warning("%s did not stop in time", self.folder)
        time.sleep(poll)
        return {**self._result(), PARKED: token}

    def cleanup(self) -> None:
        if self.run is not None and not self.run.stop(STOP_WITHIN_S):
            log.warning("%s did not stop in time and is killed", self.folder)

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """The run's folder, and the snapshot from which another trial may continue."""
        snapshot = self._snapshot() if self.settings.snapshot_images else None
        seen = int(snapshot.meta["images_seen"]) if snapshot else 0
        return {
            "trial": self.trial_id, "folder": self.folder, "donor": self.donor, "images_seen": self.last[0],
            "last": self.last, "snapshot": snapshot.path if snapshot else "", "snapshot_images": seen,
        }  # fmt: skip

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        assert self.run is None and checkpoint is not None
        if checkpoint["trial"] == self.trial_id:
            self.folder, self.donor = checkpoint["folder"], checkpoint["donor"]
            self.from_images, self.last = checkpoint["images_seen"], tuple(checkpoint["last"])
            return
        if not checkpoint["snapshot"]:
            log.warning("trial %s has no snapshot to continue from: %s starts over", checkpoint["trial"], self.trial_id)
        seen = checkpoint["snapshot_images"]
        self.donor, self.from_images, self.last = checkpoint["snapshot"], seen, tuple(checkpoint["last"])
        self.folder = f"trials/{self.trial_id}-from-{checkpoint['trial']}-img{seen}"

    def _snapshot(self) -> Committed | None:
        """The snapshot due at the last result, waiting until it exists; if the run ends without it, the newest."""
        due = self.last[0] // self.settings.snapshot_images * self.settings.snapshot_images
        deadline = time.monotonic() + SNAPSHOT_WITHIN_S
        while True:
            ended = self.run is None or self.run.has_ended
            found = through_outages(self._snapshots, "the trial")
            if late := [c for c in found if c.meta["images_seen"] >= due]:
                return min(late, key=lambda c: int(c.meta["images_seen"]))
            if ended or time.monotonic() > deadline:
                return max(found, key=lambda c: int(c.meta["images_seen"]), default=None)
            time.sleep(POLL_S)

    def _snapshots(self) -> list[Committed]:
        """The run's own snapshots, or the donor's if it has none yet."""
        from pathray.store.committed import read_committed

        found = list_committed(self.sweep.join(self.folder, CHECKPOINTS))
        tagged = self.settings.job.has(SAVE_EVERY)  # otherwise all checkpoints are kept, see sweep.py
        own = [c for c in found if ("-img" in c.name if tagged else "-best" not in c.name)]
        return own or ([read_committed(self.donor)] if self.donor else [])


def stop_token(sweep: Storage) -> str:
    """The token of the current request to stop the sweep, which differs each time; "" if there is none."""
    try:
        return sweep.read_bytes(STOP).decode() if sweep.exists(STOP) else ""
    except MissingFile:
        return ""


def plain(value: Any) -> Any:
    """A sampled value as a plain Python value, since Tune samples NumPy values."""
    value = value.item() if hasattr(value, "item") else value
    return json.loads(json.dumps(value))
