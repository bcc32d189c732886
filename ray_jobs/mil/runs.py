"""One fold of a MIL training: its plan, its run in its own folder, and its predictions of slides it did not train on.

Not here: the command (ray_jobs.train_mil), what folds say together (mil.results).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pathray.run.layout import ENCODER
from pathray.store.outages import START, through_outages
from pathray.store.storage import Storage
from ray_jobs.shell.run_summary import write_run_summary
from ray_jobs.train.plans import share_plan
from ray_jobs.train.trainer import begin, fit
from ray_jobs.train.training_jobs import (
    checkpoint_to_resume,
    decode_tasks,
    plan_folder,
    recorded_identity,
    save_config,
    train_job,
)

if TYPE_CHECKING:
    from pathray.data.plan import Plan
    from ray_jobs.train_mil import TrainMILConfig

log = logging.getLogger(__name__)


def is_finished(config: TrainMILConfig) -> bool:
    """Whether a fold has its predictions, of this very config. UserError where its folder holds another run."""
    from mil.results import finished_identity

    found = finished_identity(str(config.output))
    return found is not None and found == _prepare(config)[2]["hash"]


def train_fold(config: TrainMILConfig) -> None:
    """To the end of the budget on the running Ray (or in this process), and to the fold's predictions. Returns early
    when it is asked to stop: the same command resumes it."""
    from mil.assembly import assemble
    from pathray.run.fence import hold
    from pathray.run.log import run_log

    plan, ready, known = _prepare(config)
    folder = str(ready.output)
    slides = int(ready.training.slides or 0)
    log.info("%s: %d slides train, %s in all", folder, plan.rows, f"{slides:,}")
    with hold(folder), run_log(Storage.of(folder)):
        accelerator = begin(folder, ready.scaling, decode_tasks(ready))
        through_outages(lambda: save_config(ready, folder), START)
        outcome = fit(
            train_job(
                ready, plan, assemble, known, run_dir=folder, total_images=slides, accelerator=accelerator
            )
        )  # fmt: skip
        log.info("%s ended (%s) after %s slides", folder, outcome.end, f"{outcome.images_seen:,}")
        if outcome.artifact is not None:
            _predict(ready, plan, known["hash"])
        paths: dict[str, object] = {"checkpoint": outcome.checkpoint, "model": outcome.artifact}
        through_outages(lambda: write_run_summary(folder, outcome, paths), "the summary")


def _prepare(config: TrainMILConfig) -> tuple[Plan, TrainMILConfig, dict[str, Any]]:
    """The fold's plan, its resolved config and its identity. UserError when its folder holds another run."""
    from mil.config import resolve
    from mil.model.build import initial_digest
    from mil.plan import build_plan, identity
    from mil.settings import identity_of
    from mil.splits import read_split
    from pathray.run.resume import check_resumable
    from ray_jobs.train_mil import read_inputs

    store, cohort = read_inputs(config)
    split = read_split(str(config.splits.folder), cohort)
    root = Storage.of(str(config.output))
    folder = plan_folder(root)
    plan = share_plan(build_plan(cohort, split, store, folder), folder, root)
    before = recorded_identity(config).get("training.global_batch")
    ready = resolve(config, config.scaling.ranks, plan.rows, before)
    known = identity_of(ready, identity(plan), initial_digest(ready))
    if (newest := checkpoint_to_resume(config)) is not None:
        check_resumable(newest, known, config.checkpoint.resume_changes)
    return plan, ready, known


def _predict(config: TrainMILConfig, plan: Plan, identity: str) -> None:
    """Predictions of validation and test slides, in a task with what a worker has; in this process without workers."""
    from ray_jobs.train.resources import resolve_accelerator

    scaling = config.scaling
    kind = resolve_accelerator(scaling.accelerator, scaling.autoscaling)
    kind = kind if kind == "cuda" else "cpu"
    arguments = (str(config.output), plan.origin, identity, kind, config.data.threads, config.training.seed)
    if not scaling.workers:
        _predict_here(*arguments)
        return
    import ray

    gpus = float(scaling.gpus_per_worker) if kind == "cuda" else 0.0
    ray.get(ray.remote(num_cpus=scaling.cpus_per_worker, num_gpus=gpus)(_predict_here).remote(*arguments))


def _predict_here(folder: str, plan_path: str, identity: str, kind: str, threads: int, seed: int) -> None:
    from mil.artifact import load
    from mil.data import BagReader
    from mil.plan import rows_of
    from mil.predict import predict_slides
    from mil.results import write_fold
    from pathray.data.plan import Plan as Opened
    from pathray.device import Device

    plan, device = Opened.open(plan_path), Device.of(kind)
    net = load(Storage.of(folder).join(ENCODER)).net.to(device.torch_device)
    reader = BagReader(plan, seed)
    parts = {part: rows_of(plan, part) for part in ("val", "test")}
    found = {part: predict_slides(net, reader, rows, device, threads) for part, rows in parts.items() if rows.size}
    write_fold(folder, plan, found, identity)
