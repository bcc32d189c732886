"""Training curves of a run as one PNG: loss, schedules, tokens, collapse signals, speed, from its metrics.jsonl.

    python -m ray_jobs.plot_training run=outputs/run output=outputs/run/curves.png

Works while the run is going on, and on a run folder of any science. Needs no Ray.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import core
from core.charts import Panel, draw_curves
from core.config import MISSING, Loaded, is_set
from core.errors import MissingFile, UserError
from ray_jobs.cli import Outputs, job

log = logging.getLogger(__name__)
METRICS = "metrics.jsonl"

PANELS = (
    Panel("Loss", (("loss", "mean"),), band=("loss_min", "loss_max")),
    Panel(
        "Collapse: RankMe of the targets",
        (("target_rankme", "teacher features"),),
        "effective dimensions",
        from_zero=True,
    ),
    Panel(
        "Collapse: feature deviation",
        (
            ("target_std", "targets, per batch"),
            ("target_feature_std", "targets, newest"),
            ("prediction_std", "predictions"),
        ),
        from_zero=True,
    ),
    Panel("Teacher behind student", (("teacher_student_drift", "drift"),), "relative distance"),
    Panel("Learning rate", (("lr", "learning rate"),), from_zero=True, smooth=False),
    Panel(
        "Tokens",
        (("context_keep_tokens", "context, seen"), ("target_predict_tokens", "per target, predicted")),
        from_zero=True,
        smooth=False,
    ),
    Panel("Gradient norm", (("grad_norm", "before clipping"),)),
    Panel("Speed", (("images_per_s", "images/s"),), "images/s", from_zero=True),
)


@dataclass
class PlotConfig:
    run: str = MISSING  # the run's folder or URL
    output: str = ""  # PNG; "" = curves.png in the run's folder
    title: str = ""  # "" = the run's name
    scale: float = 1.5  # 1 is 1600 px wide

    def __post_init__(self) -> None:
        if is_set(self.run) and not self.output:
            self.output = os.path.join(self.run, "curves.png")
        if not 0.1 <= self.scale <= 8:
            raise UserError("not a sensible scale", key="scale", found=self.scale, expected="0.1 – 8")


def main(loaded: Loaded[PlotConfig]) -> Outputs | None:
    from core.storage import Storage
    from core.tracking import MetricsLog

    config = loaded.config
    store = Storage.of(config.run)
    if not store.exists(METRICS):
        raise MissingFile("no metrics were logged here yet", file=store.join(METRICS), key="run")
    rows = MetricsLog(store.join(METRICS)).read()
    if loaded.dry_run:
        return None
    title = config.title or os.path.basename(config.run.rstrip("/"))
    picture = draw_curves(rows, PANELS, title, scale=config.scale)
    target = Storage.of(os.path.dirname(config.output) or ".")
    target.write_bytes(os.path.basename(config.output), picture)
    return Outputs({"curves": config.output})


if __name__ == "__main__":
    job(main, PlotConfig, Path(core.__file__).parent)
