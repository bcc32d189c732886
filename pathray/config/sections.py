"""Sections that the run configs of all sciences share, as they are or to inherit from. Only the schema; no torch.

A science keeps its own keys, and its own defaults where they differ, in a subclass.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pathray.config.checks import at_least, check_accelerator, positive
from pathray.errors import UserError
from pathray.fingerprint import placement


@dataclass
class CheckpointConfig:
    resume: str = "auto"  # auto: from the newest committed checkpoint of the run, if any | never | a checkpoint's path
    latest_minutes: float = 10.0  # between two <write_tag>-latest; 0: not by time
    latest_every: int | None = None  # and images between them; None: by time alone
    keep_last_n: int = 2
    resume_changes: list[str] = field(default_factory=list)  # identity keys that may differ from the checkpoint's

    def __post_init__(self) -> None:
        positive(self, "checkpoint", "keep_last_n", "latest_every")
        at_least(self, "checkpoint", 0, "latest_minutes")


@dataclass
class ScalingConfig:
    """How a training job is spread: all of it placement."""

    workers: int = placement(1)
    accelerator: str = placement("auto")
    cpus_per_worker: float = placement(1.0)
    gpus_per_worker: float = placement(1.0)
    resources_per_worker: dict[str, float] = placement(default_factory=dict)
    threads_per_worker: int = placement(0)
    tpu_type: str | None = placement(None)  # several TPU hosts: what kind of slice they are, TPU-V5P say
    tpu_topology: str | None = placement(None)  # and its shape, 2x2x2 say
    max_failures: int = placement(3)  # restarts of the workers before training has got further than it was
    preemption_check_steps: int = placement(0)
    collective_timeout_s: int = placement(1800)
    autoscaling: bool = placement(False)  # the cluster may grow to what is asked for: do not check it beforehand

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError("at least one worker is needed", key="scaling.workers", found=self.workers, expected=">= 1")
        check_accelerator(self.accelerator, "scaling.accelerator")
