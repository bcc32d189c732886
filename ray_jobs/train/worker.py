"""The train function: a run (pathray.run) as one Ray Train worker trains it. Science-agnostic.

Ray adds three things: the stream that the batches come from, a note of an error that a restart would only meet again,
and the news that a node is about to be taken away.
"""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pathray.errors import UserError
from pathray.run.layout import fatal_note
from pathray.store.outages import START, through_outages
from pathray.store.storage import Storage, StorageError
from ray_jobs.train.group_start import WORKERS, meet_in_time, note_met

if TYPE_CHECKING:
    from pathray.data.plan import Plan
    from pathray.data.share import Share
    from pathray.run.outcome import RunSettings
    from pathray.train.assembly import Assembly
    from ray_jobs.train.job import TrainJob

log = logging.getLogger(__name__)


def train_worker(loop_config: dict[str, Any]) -> dict[str, Any]:
    """Entry point given to Ray Train with the pickled TrainJob. Returns rank 0's outcome as plain data.

    A UserError is the user's to mend, so a restart would only meet it again. Where all ranks end with it together it is
    the outcome; where one rank alone does, the group has to be restarted: the error is noted in the run folder, and the
    next attempt finds the note and ends at once with it. Storage that is away is nothing to mend.
    """
    from pathray.run.failure import RunFailed
    from pathray.train.recipe import TrainingStopped

    job: TrainJob = pickle.loads(loop_config["job"])
    store = Storage.of(job.run_dir)
    note = fatal_note(job.fit_id)
    if through_outages(lambda: store.exists(note), START):
        return {"fatal": json.loads(through_outages(lambda: store.read_bytes(note), START))}
    try:
        return _train(job)
    except UserError as e:
        if isinstance(e, StorageError) and e.passing:
            raise  # a restart may find storage again
        if job.starting and e.where["key"] == WORKERS:
            raise  # for the driver to judge
        fatal = _fatal(e)
        if job.scaling.workers == 1 or isinstance(e, RunFailed | TrainingStopped):
            return {"fatal": fatal}
        try:
            store.write_bytes(note, json.dumps(fatal).encode())
        except StorageError as full:
            log.warning("the error could not be noted: %s", full)
        raise


def _train(job: TrainJob) -> dict[str, Any]:
    from pathray.data.plan import Plan
    from pathray.device import Device
    from pathray.run.session import train

    with meet_in_time(job):
        device = Device.of(str(job.accelerator))
        note_met(job, Storage.of(job.run_dir), device)
    plan = through_outages(lambda: Plan.open(job.plan_path), START)
    parts = through_outages(lambda: job.assemble(job.config, plan, device.world_size), START)
    return asdict(train(parts, plan, job.run_dir, device, ray_batches, settings=_settings(job)))


def _settings(job: TrainJob) -> RunSettings:
    from dataclasses import replace

    return replace(
        job.run_settings(),
        preemption=_is_preempted,
        preemption_every_steps=job.scaling.preemption_check_steps,
    )


def ray_batches(parts: Assembly, plan: Plan, share: Share) -> Iterator[dict[str, Any]]:
    """This rank's decoded micro-batches, through a Ray Data stream of its own."""
    from pathray.data.share import Lookup
    from ray_jobs.train.rank_stream import stream

    return stream(
        Lookup(plan, parts.order),
        parts.reader,
        share,
        decode_on=parts.decode_on,
        settings=parts.decode,
        tasks=parts.decode_tasks,
        chunk=parts.chunk,
    )


def _is_preempted() -> bool:
    """Whether a node is about to be taken away, agreed over all ranks: a barrier."""
    import ray.train

    return ray.train.get_preemption_info() is not None


def _fatal(e: UserError) -> dict[str, Any]:
    where = {k: None if v is None else str(v) for k, v in e.where.items()}
    return {"message": e.message, "where": where, "trace": "".join(traceback.format_exception(e))}
