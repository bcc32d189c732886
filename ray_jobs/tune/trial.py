"""A trial of a sweep as Ray Tune's class Trainable: a result is the next row of the run that has the objective.

Tune's checkpoints of a trial hold a pointer only; the training's own are the truth. A trial that is restored goes on in
its run's folder. One that takes over another's weights (population based training) begins a run of its own, from the
donor's snapshot, with some identity keys changed.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray import tune

from pathray.errors import MissingFile
from pathray.run.layout import CHECKPOINTS, STOP
from pathray.search.objective import IMAGES, Objective, Point
from pathray.search.space import word
from pathray.store.committed import Committed, list_committed
from pathray.store.storage import Storage
from ray_jobs.tune.config import CHANGES, SAVE_EVERY, TrainingJob
from ray_jobs.tune.sweep_run import TrialRun, no_objective

log = logging.getLogger(__name__)
END, PARKED = "end", "parked"  # in a result: how the run ended; that the sweep is to end and the run has
POLL_S, REMOTE_POLL_S = 0.3, 5.0
STOP_WITHIN_S, SNAPSHOT_WITHIN_S = 540.0, 120.0


@dataclass(frozen=True)
class TrialSettings:
    """What all trials of a sweep share. `words`: `key=value` for each run, after its values."""

    root: str
    job: TrainingJob
    keys: tuple[str, ...]
    objective: Objective
    words: tuple[str, ...]
    cwd: str
    snapshot_images: int = 0  # > 0: runs leave a snapshot every so many images, for others to go on from
    environment: Mapping[str, str] = field(default_factory=dict)  # of the workers that Ray starts


class SweepTrial(tune.Trainable):  # type: ignore[misc]
    def setup(self, config: dict[str, Any], settings: TrialSettings) -> None:  # type: ignore[override]
        from ray_jobs.shell.runtime import know_workers

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        if os.path.isdir(settings.cwd):
            os.chdir(settings.cwd)  # where the files that the arguments name are
        know_workers(settings.environment)
        self.settings, self.sweep = settings, Storage.of(settings.root)
        self.values = {key: plain(config[key]) for key in settings.keys}
        self.folder, self.donor = f"trials/{self.trial_id}", ""
        self.run: TrialRun | None = None
        self.told: set[int] = set()  # the places of the run's history that Tune has
        self.from_images = -1  # what lies before is known already
        self.last: Point = (0, math.nan)

    def step(self) -> dict[str, Any]:
        poll = POLL_S if self.sweep.local else REMOTE_POLL_S
        while True:
            if token := stop_token(self.sweep):
                return self._parked(token, poll)
            run = self._running()
            ended = run.ended  # asked before the rows are read: then these are all
            fresh = [p for p in run.history() if p[0] > self.from_images and p[0] not in self.told]
            if fresh and (ended or len(fresh) > 1 or not 0 < run.budget <= fresh[0][0]):
                self.last = fresh[0]
                self.told.add(fresh[0][0])
                if len(fresh) > 1 or not ended or run.error is not None:
                    return self._result()
            if ended:
                return self._ended(run)
            time.sleep(poll)

    def _ended(self, run: TrialRun) -> dict[str, Any]:
        """The last result. It is told when the run has ended: PBT would let others go on from a complete run."""
        if run.error is not None:
            raise run.error
        if not self.told and self.from_images < 0:
            raise no_objective(run.store, run.objective)
        return {**self._result(), "done": True, END: "finished"}

    def _running(self) -> TrialRun:
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

    def _parked(self, token: str, poll: float) -> dict[str, Any]:
        """The sweep is to end: so does the run, with a checkpoint; then nothing new is told until the process ends."""
        if self.run is not None and not self.run.stop(STOP_WITHIN_S):
            log.warning("%s does not stop", self.folder)
        time.sleep(poll)
        return {**self._result(), PARKED: token}

    def cleanup(self) -> None:
        if self.run is not None and not self.run.stop(STOP_WITHIN_S):
            log.warning("%s does not stop and is ended", self.folder)

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Where the run is, and the snapshot from which another trial may go on."""
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
            log.warning("trial %s has no snapshot to go on from: %s begins anew", checkpoint["trial"], self.trial_id)
        seen = checkpoint["snapshot_images"]
        self.donor, self.from_images, self.last = checkpoint["snapshot"], seen, tuple(checkpoint["last"])
        self.folder = f"trials/{self.trial_id}-from-{checkpoint['trial']}-img{seen}"

    def _snapshot(self) -> Committed | None:
        """The snapshot that was due at the last result, once it is there; the newest of a run that ends without."""
        due = self.last[0] // self.settings.snapshot_images * self.settings.snapshot_images
        deadline = time.monotonic() + SNAPSHOT_WITHIN_S
        while True:
            ended = self.run is None or self.run.ended
            found = self._snapshots()
            if late := [c for c in found if c.meta["images_seen"] >= due]:
                return min(late, key=lambda c: int(c.meta["images_seen"]))
            if ended or time.monotonic() > deadline:
                return max(found, key=lambda c: int(c.meta["images_seen"]), default=None)
            time.sleep(POLL_S)

    def _snapshots(self) -> list[Committed]:
        """Those of the run's own; of a run that has only begun from a donor's, that one."""
        from pathray.store.committed import read_committed

        found = list_committed(self.sweep.join(self.folder, CHECKPOINTS))
        tagged = self.settings.job.has(SAVE_EVERY)  # else every checkpoint stays, see sweep.py
        own = [c for c in found if ("-img" in c.name if tagged else "-best" not in c.name)]
        return own or ([read_committed(self.donor)] if self.donor else [])


def stop_token(sweep: Storage) -> str:
    """What the wish to end the sweep says, which is another one each time; empty where there is none."""
    try:
        return sweep.read_bytes(STOP).decode() if sweep.exists(STOP) else ""
    except MissingFile:
        return ""


def plain(value: Any) -> Any:
    """A drawn value as Python's own: Tune draws NumPy's."""
    value = value.item() if hasattr(value, "item") else value
    return json.loads(json.dumps(value))
