"""MLflow and W&B, fed from a run's metrics while the job runs; where they are, by the config's `logging`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pathray.fingerprint import flatten
from pathray.run.layout import EVALUATIONS, METRICS
from ray_jobs.train.job import Tracking, TrainJob

if TYPE_CHECKING:
    from pathray.store.committed import Committed

log = logging.getLogger(__name__)
PARENT = "mlflow.parentRunId"
MLFLOW_EVERY_S = 30.0  # its first connection is seconds of a core, which the workers' start needs


@contextmanager
def feed_tracking(job: TrainJob, store: Any) -> Iterator[None]:
    """Feed MLflow and W&B from metrics.jsonl while the job runs; their trouble is logged, never the run's."""
    with _feed_mlflow(job, store), _feed_wandb(job, store):
        yield


@contextmanager
def _feed_mlflow(job: TrainJob, store: Any) -> Iterator[None]:
    if not job.tracking.mlflow:
        yield
        return
    from pathray.run.tracking.mlflow import MlflowFeeder, default_uri

    uri = job.tracking.uri
    if uri is None:
        if not store.local:
            log.warning("MLflow: no tracking_uri is given and the run is remote; metrics.jsonl has it all")
            yield
            return
        uri = default_uri(store)
    with MlflowFeeder(
        store.join(METRICS),
        uri=uri,
        experiment=job.tracking.experiment,
        run_name=store.url,
        params=tracked_params(job),
        tags=job.tracking.tags,
        beside=_beside(job),
        every_s=MLFLOW_EVERY_S,
    ):
        yield


def _feed_wandb(job: TrainJob, store: Any) -> AbstractContextManager[Any]:
    wanted, tracking = job.tracking.wandb, job.tracking
    if wanted.mode == "off":
        return nullcontext()
    from pathray.run.tracking.tracked import public_params
    from pathray.run.tracking.wandb_mirror import MirrorSpec
    from pathray.run.tracking.wandb_process import WandbProcess, check_installed

    check_installed()
    spec = MirrorSpec(
        run_dir=store.url,
        mode=wanted.mode,
        project=wanted.project or tracking.experiment,
        entity=wanted.entity,
        name=wanted.name or store.url.rstrip("/").rpartition("/")[2],
        group=tracking.tags.get(PARENT),
        tags=list(wanted.tags),
        config=public_params(tracked_params(job)),
        beside=_beside(job),
        encoder=wanted.encoder,
    )
    return WandbProcess(spec)


def _beside(job: TrainJob) -> dict[str, str]:
    """Other files of rows that belong to the run, each with the number that is their x-axis."""
    return {EVALUATIONS: "tune/tune_images_seen"} if job.tuning is not None else {}


def tracked_params(job: TrainJob) -> dict[str, Any]:
    """The run's whole config by dotted key, and its identity."""
    return {key: value for key, (value, _) in flatten(job.config).items()} | job.identity


def tell_tracking(config: Any, run_dir: str, newest: Committed) -> None:
    """Send what a tracking server that was away has not been told of a finished run. SQLite next to a run has all."""
    from pathray.store.storage import Storage

    tracking, tuning = missing_tracking(config, Storage.of(run_dir)), getattr(config, "tuning", None)
    if not tracking.mlflow and tracking.wandb.mode == "off":
        return
    known = newest.meta.get("identity", {})
    identity = {**known.get("values", {}), "identity": known.get("hash")}
    job = TrainJob(  # nothing is trained: of it only what is told is read
        assemble=without_login, config=without_login(config), plan_path="", run_dir=run_dir, scaling=config.scaling,
        tracking=tracking, identity=identity, tuning=tuning if tuning is not None and tuning.enable else None,
    )  # fmt: skip
    with feed_tracking(job, Storage.of(run_dir)):
        pass


def missing_tracking(config: Any, store: Any) -> Tracking:
    """Of what a finished run's metrics go to, that which may not have all of them."""
    from pathray.run.tracking.mlflow import is_local
    from pathray.run.tracking.wandb_mirror import is_finished

    tracking = tracking_of(config)
    remote = tracking.uri is not None and not is_local(tracking.uri)
    wandb = replace(tracking.wandb, mode="off") if is_finished(store) else tracking.wandb
    return replace(tracking, mlflow=tracking.mlflow and remote, wandb=wandb)


def check_tracking(config: Any) -> None:
    """UserError where the config wants W&B and it is not installed."""
    if config.logging.wandb.mode != "off":
        from pathray.run.tracking.wandb_process import check_installed

        check_installed()


def tracking_of(config: Any) -> Tracking:
    """Where the metrics of a run go, as its `logging` says."""
    settings = config.logging
    tags = {PARENT: settings.mlflow_parent} if settings.mlflow_parent else {}
    return Tracking(settings.mlflow, settings.tracking_uri, settings.experiment, tags=tags, wandb=settings.wandb)


def without_login(config: Any) -> Any:
    """`config` without a login that `logging.tracking_uri` may hold."""
    from pathray.urls import public

    if config.logging.tracking_uri is None:
        return config
    return replace(config, logging=replace(config.logging, tracking_uri=public(config.logging.tracking_uri)))
