"""MLflow, fed from a run's metrics while the job runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pathray.fingerprint import flatten
from pathray.run.layout import EVALUATIONS, METRICS
from ray_jobs.train.job import TrainJob

log = logging.getLogger(__name__)
MLFLOW_EVERY_S = 30.0  # its first connection is seconds of a core, which the workers' start needs


@contextmanager
def mlflow_fed(job: TrainJob, store: Any) -> Iterator[None]:
    """Feed MLflow from metrics.jsonl while the job runs; MLflow's trouble is logged, never the run's."""
    if not job.tracking.mlflow:
        yield
        return
    from pathray.run.tracking import MlflowFeeder, default_uri

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
