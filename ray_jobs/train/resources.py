"""What a training takes: its accelerator and its workers' resources, held against what there is. Imports no Ray by
itself: a job that trains in its own process asks here, too."""

from __future__ import annotations

import os

from pathray.errors import UserError
from ray_jobs.shell.runtime import is_ray_running


def resolve_accelerator(accelerator: str, autoscaling: bool = False) -> str:
    """``auto`` → what the cluster has: ``cuda`` with a GPU, ``xla`` with a TPU, otherwise ``cpu``. Without a running
    Ray, what this machine has.

    UserError for ``auto`` on a cluster that has none yet but may grow: it would train on CPUs although GPUs may come.
    """
    if accelerator != "auto":
        return accelerator
    if not is_ray_running():
        from pathray.device import available_kind

        return available_kind()
    import ray

    resources = ray.cluster_resources()
    if resources.get("GPU", 0) >= 1:
        return "cuda"
    if resources.get("TPU", 0) >= 1:
        return "xla"
    if autoscaling:
        message = "a cluster that scales up does not show yet what it will have: name the accelerator"
        raise UserError(message, key="scaling.accelerator", found="auto", expected="cpu, cuda or xla")
    return "cpu"


def worker_resources(accelerator: str, cpus: float, gpus: float, extra: dict[str, float]) -> dict[str, float]:
    """Ray resources of one training worker."""
    resources = {"CPU": cpus, **extra}
    if accelerator == "cuda":
        resources["GPU"] = gpus
    if accelerator == "xla" and os.environ.get("PJRT_DEVICE") != "CPU":
        resources.setdefault("TPU", 4.0)
    return resources


STREAM_CPUS = 0.5  # rows that travel to workers which decode them


def stream_cpus(decode_tasks: int) -> float:
    """CPUs, in addition to the workers' own, that their streams need at least: where tasks decode, those of one such
    task."""
    return 1.0 if decode_tasks else STREAM_CPUS


def check_resources(
    workers: int,
    resources: dict[str, float],
    available: dict[str, float],
    autoscaling: bool,
    decode_tasks: int = 0,
) -> None:
    """UserError when the cluster can never hold the workers and their streams, instead of waiting for ever.

    `decode_tasks` is how many tasks of a worker's stream decode for it, 0 where it decodes itself.
    """
    if autoscaling:
        return
    for name, amount in resources.items():
        needed = amount * workers + (stream_cpus(decode_tasks) if name == "CPU" else 0.0)
        if needed > available.get(name, 0.0) + 1e-9:
            raise UserError(
                f"the cluster has too little {name} for {workers} workers and the stream that feeds them",
                key="scaling.workers",
                found=f"{name}: {available.get(name, 0.0):g}",
                expected=f"{name}: {needed:g}",
            )
