"""What the pretraining jobs of all sciences ask of a run folder: what it goes on from, whether evaluations ended it.

Of a config they want `output`, `checkpoint`, `logging.write_tag`, `tuning`, `scaling` and `data`. Nothing here imports
torch before there is a checkpoint.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any

from ray_jobs.cli import Outputs

if TYPE_CHECKING:
    from core.committed import Committed
    from ray_jobs.trainer import Tracking

log = logging.getLogger(__name__)


def resumed(config: Any) -> Committed | None:
    """The checkpoint that this run would go on from."""
    from core.storage import Storage

    store, resume = Storage.of(str(config.output)), config.checkpoint.resume
    if resume in ("auto", "never") and not store.exists("checkpoints"):
        return None  # told without importing torch
    from ray_jobs.resume import chosen

    return chosen(store.url, config.logging.write_tag, resume)


def recorded(config: Any) -> dict[str, Any]:
    """The identity of the run that this one goes on with, as its checkpoint has it; empty for a fresh start."""
    newest = resumed(config)
    return {} if newest is None else dict(newest.meta.get("identity", {}).get("values", {}))


def early_stopped(config: Any) -> Outputs | None:
    """The outputs of a run that early stopping has ended, which the same command leaves as it is."""
    from core.evaluation.results import Results

    stopping, newest = config.tuning.early_stopping, resumed(config)
    if not (config.tuning.enable and stopping.enable and stopping.stop_training and newest is not None):
        return None
    decision = Results(str(config.output), newest.meta.get("identity", {}).get("hash"), stopping).decision()
    if decision is None or not decision.stop:
        return None
    log.warning(
        "early stopping ended this run (%s was best at %s images); tuning.early_stopping.enable=false goes on with it",
        stopping.selection.key,
        f"{decision.best_images:,}",
    )
    return Outputs({"run": config.output, "checkpoint": newest.path, **evaluated(config)})


def evaluated(config: Any) -> dict[str, object]:
    """Where the evaluations of a run lie, if it has any."""
    if not config.tuning.enable:
        return {}
    from core.committed import list_committed
    from core.evaluation.results import BEST, ROWS
    from core.storage import Storage

    store = Storage.of(str(config.output))
    paths: dict[str, object] = {"robustness": store.join(ROWS)} if store.exists(ROWS) else {}
    if store.exists("robustness/report.html"):
        paths["report"] = store.join("robustness", "report.html")
    best = list_committed(store.join("checkpoints"), BEST)
    return paths | ({"best": best[-1].path} if best else {})


def cpus_of(config: Any) -> float:
    """The logical CPUs that a run takes of Ray."""
    scaling, tuning = config.scaling, config.tuning
    training = scaling.workers * scaling.cpus_per_worker + (1.0 if config.data.decode_on == "cluster" else 0.5)
    return float(training + (tuning.execution.cpus if tuning.enable else 0.0))


def decode_tasks(config: Any) -> int:
    """How many tasks of the cluster decode for each worker."""
    return int(config.data.threads) if config.data.decode_on == "cluster" else 0


def tracking_of(config: Any) -> Tracking:
    """Where the metrics of a run go, as its `logging` says."""
    from ray_jobs.trainer import Tracking

    settings = config.logging
    tags = {"mlflow.parentRunId": settings.mlflow_parent} if settings.mlflow_parent else {}
    return Tracking(settings.mlflow, settings.tracking_uri, settings.experiment, tags=tags)


def plan_folder(root: Any) -> str:
    """Where the plan is built: in the output folder, or on the local disk when that is remote."""
    if root.local:
        return str(root.join("plan"))
    from core.storage import private_cache

    digest = hashlib.sha256(root.url.encode()).hexdigest()[:24]
    return str(private_cache() / f"{digest}-plan-built")
