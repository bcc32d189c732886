"""What one evaluation asks Ray for: CPUs, and a GPU or the part of one that the training leaves. Pure arithmetic.

Not here: running evaluations (ray_jobs.tune.evaluation_runner).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pathray.errors import UserError
from pathray.evaluation.settings import ExecutionConfig


@dataclass(frozen=True)
class Request:
    """What one evaluation asks Ray for, on which kind of device, and what is to be said about that choice."""

    resources: Mapping[str, float]
    accelerator: str
    advice: str = ""


def request_of(
    execution: ExecutionConfig,
    accelerator: str,
    available: Mapping[str, float],
    taken_gpus: float = 0.0,
    workers: int = 1,
) -> Request:
    """Resources of an evaluation beside a training on `accelerator` whose `workers` take `taken_gpus` of those
    `available`.

    auto: a GPU that the training leaves, or the part of one; else the CPU. UserError when what is asked for cannot be.
    """
    cpus = {"CPU": execution.cpus}
    free = free_gpus(available.get("GPU", 0.0), taken_gpus, workers)
    wanted = execution.gpus
    if execution.device == "cpu" or wanted == 0:
        return Request(cpus, "cpu")
    if wanted is None and execution.device.startswith("cuda"):
        wanted = 1.0
    if wanted is not None:
        if wanted > free + 1e-9:
            key = "tuning.execution.gpus" if execution.gpus is not None else "tuning.execution.device"
            found = f"{max(0.0, free):g} of {available.get('GPU', 0.0):g} GPUs beside the training"
            expected = f"{wanted:g}: fewer scaling.workers, a smaller scaling.gpus_per_worker, or device=cpu"
            raise UserError("no GPU is left for evaluations", key=key, found=found, expected=expected)
        advice = "" if execution.device in ("auto", "cuda") else f"{execution.device}: Ray picks which GPU it is"
        return Request({**cpus, "GPU": wanted}, "cuda", advice)
    if accelerator != "cuda":
        return Request(cpus, "cpu")
    if free >= 1:
        return Request({**cpus, "GPU": 1.0}, "cuda")
    if free > 1e-3:
        return Request({**cpus, "GPU": free}, "cuda")
    advice = "the training takes every GPU: evaluations run on the CPU"
    if available.get("GPU", 0.0) >= 2:
        advice += "; one worker fewer would leave them a GPU"
    else:
        advice += "; scaling.gpus_per_worker=0.8 would leave them a part of it"
    return Request(cpus, "cpu", advice)


def free_gpus(gpus: float, taken: float, workers: int) -> float:
    """Whole GPUs that `workers` leave, else the largest part of one: parts of several are none that Ray can give."""
    each = taken / max(1, workers)
    if not 0 < each < 1:
        return gpus - taken
    together = int(1 / each + 1e-9)  # workers that share one GPU
    full, rest = divmod(workers, together)
    untouched = gpus - full - (rest > 0)
    if untouched > 1e-9:
        return untouched
    return max(1 - together * each if full else 0.0, 1 - rest * each if rest else 0.0) if untouched > -1e-9 else 0.0
