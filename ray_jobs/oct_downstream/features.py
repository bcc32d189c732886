"""Features of a frozen OCT encoder for labelled volumes, through a pool of actors; what is kept already is not redone.

Without a running Ray the volumes are encoded in this process.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pathray.config.sections import ScalingConfig
from ray_jobs.extract.actors import DIED

if TYPE_CHECKING:
    from oct.downstream.features import Features, FeatureSource

log = logging.getLogger(__name__)


def ensure_features(source: FeatureSource, rows: list[dict[str, Any]], scaling: ScalingConfig, what: str) -> Features:
    """The features of all `rows` of an index. A volume that cannot be read has none and is named with the reason.

    UserError when no volume can be read.
    """
    from oct.downstream.features import Compute, load_features, missing_rows
    from pathray.reports.progress import Progress
    from ray_jobs.extract.actor_map import ActorMap
    from ray_jobs.train.resources import resolve_accelerator

    missing, failed = missing_rows(source, rows), dict[str, str]()
    kind = resolve_accelerator(scaling.accelerator, scaling.autoscaling) if missing else "cpu"
    kind = kind if kind == "cuda" else "cpu"  # an XLA device would be one more compiled program for one pass
    gpus = float(scaling.gpus_per_worker) if kind == "cuda" else 0.0
    compute = Compute(source, kind, scaling.threads_per_worker or max(1, int(scaling.cpus_per_worker)))
    pool = ActorMap(scaling.ranks, float(scaling.cpus_per_worker), gpus)
    log.info("features of %s: %d volumes, %d kept already", what, len(rows), len(rows) - len(missing))
    with Progress(len(missing), f"features of {what}", "volumes") as progress:
        for number, reason in pool(compute, missing):
            if reason is None or reason:
                failed[missing[number]["path"]] = DIED if reason is None else reason
                log.warning("left out: %s: %s", missing[number]["path"], failed[missing[number]["path"]])
            progress.update(1)
    return load_features(source, rows, failed)
