"""What a science gives to the trainer: the parts of one run, put together from its config. No Ray, no devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from pathray.data.groups import GroupedOrder
from pathray.data.order import Order
from pathray.data.stream import DecodeSettings
from pathray.data.units import UnitReader
from pathray.evaluation.settings import TuningConfig
from pathray.store.artifact import Encoder
from pathray.train.loop import Tick
from pathray.train.recipe import Recipe
from pathray.train.settings import LoopSettings
from pathray.train.supervised import Selection, Validate


class Watch(Protocol):
    """Looks at every tick, on every rank, and gives figures for the log when it has some (pathray.train.perf)."""

    def observe(self, tick: Tick) -> dict[str, float]: ...


@dataclass
class Assembly:
    """The parts of one run.

    `recipe` is built on every rank from the same seed; `identity` and `placement` are fingerprints
    (pathray.fingerprint), the identity including the plan's; `watch` looks at the ticks; `export` writes the final
    artifacts of a recipe into a folder (path or URL); `encoder` is what snapshots carry for evaluations, and
    `tuning` says whether and when somebody does. The rolling checkpoint is at most `latest_minutes` old (0: by images
    alone), and `keep_last_n` of them are kept. With a `selection`, `validate` runs on its cadence, the best state has a
    checkpoint of its own (`<tag>-best`), and that is what `export` gets at the end. `passes_name` is what rows of
    metrics call the passes over the plan's units. `smaller` gives the same run on smaller units, for one that is out of
    memory and cannot take a smaller micro-batch; only where the user has allowed it.
    """

    science: str
    tag: str
    recipe: Recipe
    settings: LoopSettings
    order: Order | GroupedOrder
    reader: UnitReader
    identity: dict[str, Any]
    placement: dict[str, Any]
    export: Callable[[Recipe, str, dict[str, Any]], None]
    decode_on: str = "worker"
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    decode_tasks: int = 2
    chunk: int = 2048
    latest_minutes: float = 10.0
    keep_last_n: int = 2
    watch: Watch | None = None
    encoder: Callable[[Recipe], Encoder] | None = None
    tuning: TuningConfig | None = None
    selection: Selection | None = None
    validate: Validate | None = None
    passes_name: str = "passes_seen"
    smaller: Callable[[], Assembly] | None = None
