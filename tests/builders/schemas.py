"""Config schemas for the tests of pathray/config/load.py: what the sciences' schemas contain, in small."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from pathray.config.load import MISSING, is_set, placement
from pathray.errors import UserError


class Precision(Enum):
    fp32 = "fp32"
    bf16 = "bf16"


@dataclass(frozen=True)
class Vit:
    name: str = "vit_tiny"
    patch_size: int = 16
    size: tuple[int, ...] = (224, 224)


@dataclass
class Plugin:
    kind: str = "pathorob"
    manifest_csv: str = ""
    every_n_evals: int = 1


@dataclass
class Data:
    context_mpp: float = 1.0  # micrometres per pixel of the context
    policy: Literal["skip_anchor", "skip_slide"] = "skip_anchor"
    weights: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    cache_dir: str = placement("/tmp/cache")
    mask_path: str | None = None


@dataclass
class Optimization:
    # images until the end of training
    total_images_budget: int = MISSING
    lr: float = 2e-4
    ema: list[float] = field(default_factory=lambda: [0.996, 1.0])
    bf16: bool = True
    precision: Precision = Precision.fp32

    def __post_init__(self) -> None:
        if is_set(self.total_images_budget) and self.total_images_budget <= 0:
            raise UserError("the budget is not positive", key="optimization.total_images_budget")


@dataclass
class Tuning:
    tune_every: int = 1000
    plugins: list[Plugin] = field(default_factory=list)


@dataclass
class Runtime:
    num_workers: int = 1
    threads: int = 2


@dataclass
class Run:
    data: Data = field(default_factory=Data)
    model: Vit = field(default_factory=Vit)
    optimization: Optimization = field(default_factory=Optimization)
    tuning: Tuning | None = None
    runtime: Runtime = placement(default_factory=Runtime)
    run_name: str = ""
    output: str = placement("out/${data.seed}")
    extra: Any = None
