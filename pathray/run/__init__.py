"""A run without Ray: from an assembly and a plan to checkpoints, metrics and an exported artifact in one folder.

    outcome = pathray.run.train(assembly, plan, "outputs/run", Device.of("cpu"))

The names below are loaded when they are first used, so the light parts (layout, stop) import no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathray.run.batches import Batches, local
    from pathray.run.outcome import Outcome, RunSettings
    from pathray.run.session import train

__all__ = ["Batches", "Outcome", "RunSettings", "local", "train"]
_HOMES = {"Batches": "batches", "local": "batches", "Outcome": "outcome", "RunSettings": "outcome", "train": "session"}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
