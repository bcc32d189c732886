"""The skeleton of a pretraining job: check, build what is missing, train to the end of the budget, say what is left.

What a science adds is a `Pretraining`: functions of its job. By its name its package is found, whose `assembly` has
`assemble` and `identity_of`, and whose `plan` has `identity`. Not here: the training itself (ray_jobs.train.trainer).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pathray.config.load import Loaded
from pathray.run.fence import hold
from pathray.run.outcome import STOPPED
from pathray.store.outages import through_outages
from ray_jobs.shell.cli import Outputs
from ray_jobs.shell.run_summary import write_run_summary
from ray_jobs.shell.runtime import ray_session
from ray_jobs.train.tracking_feed import check_tracking
from ray_jobs.train.trainer import begin, fit
from ray_jobs.train.training_jobs import (
    checkpoint_to_resume,
    cpus_of,
    decode_tasks,
    evaluation_paths,
    outputs_if_early_stopped,
    recorded_identity,
    save_config,
    train_job,
)

if TYPE_CHECKING:
    from pathray.data.plan import Plan
    from pathray.run.outcome import Outcome

log = logging.getLogger(__name__)
C = TypeVar("C")


@dataclass(frozen=True)
class Pretraining(Generic[C]):
    """What the job of one science does in its own way; in the order in which it is asked.

    locate: every path made absolute. check: UserError, before Ray is started, for what can be told of the config, its
    inputs and the run that is resumed. rehearse: the dry run. outputs_if_finished: those of a run that has nothing
    left to do. prepare: the plan, on the running Ray, with what is missing for it. resolve: the config with global
    batch and budget, given the number of rows in the plan. announce: logs how much data the run will see, given the
    requested and the resolved config, and returns the metrics of the first row. exports: folders exported next to the
    encoder.
    """

    science: str
    locate: Callable[[C], C]
    check: Callable[[C], None]
    rehearse: Callable[[C], None]
    outputs_if_finished: Callable[[C], Outputs | None]
    prepare: Callable[[C], Plan]
    resolve: Callable[[C, int], C]
    total_images: Callable[[C], int]
    announce: Callable[[C, C, Plan], dict[str, float]]
    exports: tuple[str, ...] = ()


def pretrain(job: Pretraining[Any], loaded: Loaded[Any]) -> Outputs | None:
    """The whole job, from its typed config to what it leaves."""
    config = job.locate(loaded.config)
    job.check(config)
    check_tracking(config)
    if loaded.dry_run:
        return job.rehearse(config)
    if (ended := outputs_if_early_stopped(config) or job.outputs_if_finished(config)) is not None:
        return ended
    scaling = config.scaling
    session = ray_session(
        config.runtime, cpus=cpus_of(config), autoscaling=scaling.autoscaling, needed=bool(scaling.workers)
    )
    with hold(str(config.output)), session:
        accelerator = begin(str(config.output), scaling, decode_tasks(config))
        outcome = train(job, config, job.prepare(config), accelerator)
    more = "; the same command resumes the run" if outcome.end == STOPPED else ""
    log.info("ended (%s) after %s images%s", outcome.end, f"{outcome.images_seen:,}", more)
    paths: dict[str, object] = {"run": config.output, "checkpoint": outcome.checkpoint}
    if outcome.artifact:
        beside = outcome.artifact.rpartition("/")[0]
        paths |= {"encoder": outcome.artifact} | {name: f"{beside}/{name}" for name in job.exports}
    through_outages(lambda: write_run_summary(str(config.output), outcome, paths), "the summary")
    return Outputs(paths | through_outages(lambda: evaluation_paths(config), "the summary"))


def train(job: Pretraining[C], asked: C, plan: Plan, accelerator: str | None = None) -> Outcome:
    """Save the resolved config and train to the end of the budget, on what `begin` found."""
    config: Any = job.resolve(asked, plan.rows)
    digest = import_module(f"{job.science}.plan").identity(plan)
    check_same_run(job.science, config, digest)
    start_metrics = job.announce(asked, config, plan)
    save_config(config, str(config.output))
    parts = import_module(f"{job.science}.assembly")
    told = train_job(
        config,
        plan,
        parts.assemble,
        parts.identity_of(config, digest),
        run_dir=str(config.output),
        total_images=job.total_images(config),
        accelerator=accelerator,
        start_metrics=start_metrics,
    )
    return fit(told)


def check_same_run(science: str, config: Any, plan: str | None = None) -> None:
    """UserError where the checkpoint that the resolved `config` would resume is another run's. `plan` is the digest of
    the plan; None, where nobody knows it yet: that of the checkpoint."""
    if (newest := checkpoint_to_resume(config)) is None:
        return
    from pathray.run.resume import check_resumable

    known = recorded_identity(config).get("plan", "") if plan is None else plan
    identity = import_module(f"{science}.assembly").identity_of(config, known)
    check_resumable(newest, identity, config.checkpoint.resume_changes)
