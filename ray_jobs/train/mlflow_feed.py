"""MLflow, fed from a run's metrics while the job runs; where it is, by the config's `logging`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pathray.fingerprint import flatten
from pathray.run.layout import EVALUATIONS, METRICS
from ray_jobs.train.job import Tracking, TrainJob

if TYPE_CHECKING:
    from pathray.store.committed import Committed

log = logging.getLogger(__name__)
MLFLOW_EVERY_S = 30.0  # its first connection is seconds of a core, which the workers' start needs


@contextmanager
def feed_mlflow(job: TrainJob, store: Any) -> Iterator[None]:
    """Feed MLflow from metrics.jsonl while the job runs; MLflow's trouble is logged, never the run's."""
    if not job.tracking.mlflow:
        yield
        return
    from pathray.run.mlflow import MlflowFeeder, default_uri

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
        params=mlflow_params(job),
        tags=job.tracking.tags,
        beside={EVALUATIONS: "tune/tune_images_seen"} if job.tuning is not None else {},
        every_s=MLFLOW_EVERY_S,
    ):
        yield


def mlflow_params(job: TrainJob) -> dict[str, Any]:
    """The run's whole config by dotted key, and its identity."""
    return {key: value for key, (value, _) in flatten(job.config).items()} | job.identity


def tell_tracking(config: Any, run_dir: str, newest: Committed) -> None:
    """Send what a tracking server that was away has not been told of a finished run. SQLite next to a run has all."""
    from pathray.run.mlflow import is_local

    tracking, tuning = tracking_of(config), getattr(config, "tuning", None)
    if not tracking.mlflow or tracking.uri is None or is_local(tracking.uri):
        return
    from pathray.store.storage import Storage

    known = newest.meta.get("identity", {})
    identity = {**known.get("values", {}), "identity": known.get("hash")}
    job = TrainJob(  # nothing is trained: of it only what MLflow is told is read
        assemble=without_login, config=without_login(config), plan_path="", run_dir=run_dir, scaling=config.scaling,
        tracking=tracking, identity=identity, tuning=tuning if tuning is not None and tuning.enable else None,
    )  # fmt: skip
    with feed_mlflow(job, Storage.of(run_dir)):
        pass


def tracking_of(config: Any) -> Tracking:
    """Where the metrics of a run go, as its `logging` says."""
    settings = config.logging
    tags = {"mlflow.parentRunId": settings.mlflow_parent} if settings.mlflow_parent else {}
    return Tracking(settings.mlflow, settings.tracking_uri, settings.experiment, tags=tags)


def without_login(config: Any) -> Any:
    """`config` without a login that `logging.tracking_uri` may hold."""
    from pathray.urls import public

    if config.logging.tracking_uri is None:
        return config
    return replace(config, logging=replace(config.logging, tracking_uri=public(config.logging.tracking_uri)))
