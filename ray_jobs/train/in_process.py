"""A training in the job's own process, without Ray: `scaling.workers=0`. The same bits as one Ray worker."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace
from functools import partial
from typing import Any

from pathray.run.outcome import RETRY, Outcome
from ray_jobs.train.driver import run_in_thread
from ray_jobs.train.job import TrainJob

log = logging.getLogger(__name__)


def fit_in_process(job: TrainJob, store: Any) -> Outcome:
    """Train in a thread of this process to the end. UserError for what the user can mend."""
    settings = job.run_settings()
    while True:
        outcome: Outcome = run_in_thread(partial(_train, job, settings), store, job.total_images, job.name)
        if outcome.end != RETRY:
            return outcome
        gc.collect()  # what the attempt held
        settings = replace(settings, changes=settings.changes | outcome.changes)


def _train(job: TrainJob, settings: Any) -> Outcome:
    import torch

    from pathray.data.plan import Plan
    from pathray.device import Device
    from pathray.run.session import train

    torch.set_num_threads(threads_of(job.scaling))  # as a worker's: sums depend on it
    device, plan = Device.of(str(job.accelerator)), Plan.open(job.plan_path)
    return train(job.assemble(job.config, plan, 1), plan, job.run_dir, device, settings=settings)


def threads_of(scaling: Any) -> int:
    """The threads that a training process computes with."""
    return int(scaling.threads_per_worker or max(1, int(scaling.cpus_per_worker)))
