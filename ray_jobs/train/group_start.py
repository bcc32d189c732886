"""Workers that cannot be initialised together: they are tried once more, and then one worker trains alone.

A group has failed to initialise when its fit ended before all its processes had met: Ray could not start it, a process
group could not be built, or XLA sees other hosts. Once a job's workers have met, whatever ends them is a failure in
training, which `scaling.max_failures` counts. The global batch stays what it is: one worker takes more micro-batches.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pathray.config.sections import ScalingConfig
from pathray.data.watchdog import exit_after
from pathray.errors import UserError
from pathray.run.layout import SINGLE_WORKER, group_note
from pathray.store.outages import START, through_outages

if TYPE_CHECKING:
    from pathray.device import Device
    from ray_jobs.train.job import TrainJob

log = logging.getLogger(__name__)
TRIES = 2
WORKERS = "scaling.workers"


def falls_back(scaling: ScalingConfig, accelerator: str) -> bool:
    """Whether one worker may train instead of several: as `scaling.fallback_single_worker` says, by default on TPUs."""
    if scaling.workers < 2:
        return False
    if scaling.fallback_single_worker is None:
        return accelerator == "xla" and os.environ.get("PJRT_DEVICE") != "CPU"
    return scaling.fallback_single_worker


class GroupStart:
    """The driver's view of a job's first fits. While `job.starting`, every failure comes back to the driver at once."""

    def __init__(self, job: TrainJob, store: Any) -> None:
        self.job, self.store, self.left = job, store, TRIES
        job.starting = falls_back(job.scaling, str(job.accelerator))
        before = through_outages(lambda: read_fallback(store), START)
        if before is not None and job.starting:
            self.left = 1
            words = "an earlier start trained with one worker, as %s could not be initialised: %d are tried once"
            log.warning(words, before["workers"], job.scaling.workers)
        elif before is not None:
            through_outages(lambda: store.remove(SINGLE_WORKER), START)

    def can_retry(self, error: Exception) -> bool:
        """Whether another fit should follow this failure of one: of the same workers, or, then noted in `job`, of one.

        False for a failure that is for others to judge.
        """
        job = self.job
        if not job.starting or (isinstance(error, UserError) and error.where["key"] != WORKERS):
            return False
        if through_outages(lambda: self.store.exists(group_note(job.fit_id)), "the next fit"):
            job.starting = False
            return not isinstance(error, UserError) and job.scaling.max_failures > 0
        self.left -= 1
        said = " ".join(str(error).split())[:400]
        if self.left:
            log.warning("%d workers could not be initialised, trying once more: %s", job.scaling.workers, said)
        else:
            self._fall_back(said)
        return True

    def _fall_back(self, said: str) -> None:
        job, asked = self.job, self.job.scaling.workers
        log.warning(
            "%d workers could not be initialised: one worker trains, with the same global batch; the next start tries "
            "%d again (scaling.fallback_single_worker=false ends with the error instead): %s",
            asked,
            asked,
            said,
        )
        note = json.dumps({"workers": asked, "error": said, "time": time.time(), "fit_id": job.fit_id}).encode()
        through_outages(lambda: self.store.write_bytes(SINGLE_WORKER, note), "the note of one worker")
        job.scaling = replace(job.scaling, workers=1, tpu_type=None, tpu_topology=None)
        if hasattr(job.config, "scaling"):
            job.config = replace(job.config, scaling=job.scaling)
        job.starting, job.alone = False, True


@contextmanager
def meet_in_time(job: TrainJob) -> Iterator[None]:
    """In a worker that is starting: the block, in which it meets the others, ends the process when it takes longer than
    `scaling.collective_timeout_s`, with its stacks on standard error."""
    with exit_after(job.scaling.collective_timeout_s if job.starting else 0.0):
        yield


def note_met(job: TrainJob, store: Any, device: Device) -> None:
    """On every rank: when all have met, the driver is told."""
    if not job.starting:
        return
    device.gather_objects(None)
    if device.rank == 0:
        note = json.dumps({"workers": device.world_size}).encode()
        through_outages(lambda: store.write_bytes(group_note(job.fit_id), note), START)
        through_outages(lambda: store.remove(SINGLE_WORKER), START)


def read_fallback(store: Any) -> dict[str, Any] | None:
    """How many `workers` could not be initialised at the last start, and the `error`, if one trained instead."""
    return dict(json.loads(store.read_bytes(SINGLE_WORKER))) if store.exists(SINGLE_WORKER) else None
