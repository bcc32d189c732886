"""What a run is told besides its assembly, and how it ended: plain data."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pathray.evaluation.early_stopping import EARLY_STOPPED

BUDGET, STOPPED, EARLY_STOP, RETRY = "budget", "stopped", "early_stop", "retry"
ENDED = (BUDGET, EARLY_STOPPED, EARLY_STOP)  # as against interrupted: there is something to export


@dataclass(frozen=True)
class RunSettings:
    """How a run starts and what it watches.

    resume: ``auto`` (the newest checkpoint of the folder), ``never``, or a checkpoint to begin from; `resume_changes`
    are identity keys that may differ from the checkpoint's. fit_id: of this job, the same
    after a restart.
    start_metrics: figures of the first row of a fresh run. changes: settings of the loop that an `Outcome` to retry
    asked for. preemption: asked on all ranks together every `preemption_every_steps` steps; True saves a checkpoint.
    keep_stop: a STOP that is there already counts; otherwise it is of an earlier start and is removed. keep_log: write
    log.txt here; no where somebody else does. owner: the token by which the driver owns the folder (pathray.run.fence);
    empty: the run takes it itself.
    """

    resume: str = "auto"
    resume_changes: tuple[str, ...] = ()
    fit_id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    start_metrics: dict[str, float] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    preemption: Callable[[], bool] | None = None
    preemption_every_steps: int = 0
    keep_stop: bool = False
    keep_log: bool = True
    owner: str = ""


@dataclass
class Outcome:
    """How a run ended, as rank 0 tells it.

    `end` is ``budget``, ``early_stopped`` (by an evaluator), ``early_stop`` (by validation), ``stopped`` (interrupted)
    or ``retry``: train again, in a fresh process, with `changes`. Then the last metrics, where checkpoint and artifact
    are, and how many units could not be read.
    """

    end: str
    images_seen: int
    metrics: dict[str, float]
    checkpoint: str | None
    artifact: str | None
    unreadable: int = 0
    changes: dict[str, Any] = field(default_factory=dict)
