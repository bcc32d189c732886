"""The `checkpoint` section that the run configs of all sciences share. Only the schema; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from pathray.config.checks import at_least, positive


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
