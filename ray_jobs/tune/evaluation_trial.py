"""The trial of an evaluation: what runs in the evaluator's own process, with its own CPUs or share of a GPU.

Not here: which snapshot, when (ray_jobs.tune.evaluation_runner), and what is computed (pathray.evaluation.judge).
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pathray.evaluation.settings import PluginConfig

if TYPE_CHECKING:
    from pathray.evaluation.attempts import Attempts

log = logging.getLogger(__name__)
FIRST_PAUSE_S = 2.0
_judges: dict[str, Any] = {}  # of this process: datasets stay open from one snapshot to the next


@dataclass(frozen=True)
class TrialSpec:
    """What all trials of one run share."""

    plugins: tuple[PluginConfig, ...]
    run_dir: str
    accelerator: str  # cpu | cuda
    threads: int
    retries: int


def evaluation_trial(config: dict[str, Any], spec: TrialSpec) -> None:
    """Evaluate the encoder `config["encoder"]` with the metrics of `config["due"]` and report them, as JSON under
    ``judged``; ``error`` instead for an evaluation that failed for good."""
    from ray import tune

    from pathray.evaluation.attempts import Attempts
    from pathray.store.storage import Storage

    tune.report(evaluate_with_retries(config, spec, Attempts(Storage.of(spec.run_dir), config["snapshot"])))


def evaluate_with_retries(config: dict[str, Any], spec: TrialSpec, attempts: Attempts | None = None) -> dict[str, Any]:
    """`evaluate_once`, repeated after an error that is not the user's; the last attempt's error goes into ``error`` and
    ``trace``. `attempts`: those of earlier starts, which count too."""
    from pathray.errors import UserError
    from pathray.evaluation.attempts import Attempts
    from pathray.store.outages import through_outages
    from pathray.store.storage import StorageError

    attempts = attempts or Attempts()
    while not attempts.are_spent(spec.retries):
        attempts.begin()
        try:
            return through_outages(lambda: evaluate_once(config, spec), "an evaluation", first_pause_s=FIRST_PAUSE_S)
        except Exception as e:
            if isinstance(e, UserError) and not isinstance(e, StorageError):  # it would be met again
                return {"error": str(e), "trace": ""}
            error = f"{type(e).__name__}: {e}"
            attempts.fail(error, traceback.format_exc())
            log.warning("an evaluation of %s failed: %s", config["encoder"], error, exc_info=True)
    error, trace = attempts.last()
    return {"error": error, "trace": trace}


def evaluate_once(config: dict[str, Any], spec: TrialSpec) -> dict[str, Any]:
    import torch

    from pathray.device import Device
    from ray_jobs.tune.judges import judge_of

    began = time.monotonic()
    torch.set_num_threads(spec.threads)
    key = repr(spec)
    judge = _judges.setdefault(key, judge_of(spec.plugins, spec.run_dir))
    found = judge.judge(
        config["encoder"],
        json.loads(config["due"]),
        Device.of(spec.accelerator),
        config["images_seen"],
        json.loads(config["neighbours"]),
    )
    return {
        "judged": json.dumps({"metrics": found.metrics, "notes": found.notes, "failed": found.failed}),
        "evaluator_s": time.monotonic() - began,
    }
