"""Predictions of several models on the same slides → which differ: DeLong, McNemar, intervals of all scores. No Ray.

    python -m ray_jobs.compare_experiments a=outputs/abmil b=outputs/transmil output=significance.json
    python -m ray_jobs.compare_experiments a=preds_a.csv b=preds_b.csv output=significance.json
    python -m ray_jobs.compare_experiments a=[run_s0,run_s1,run_s2] b=[other_s0,other_s1,other_s2] output=comparison
    python -m ray_jobs.compare_experiments predictions=[abmil=outputs/abmil,clam=outputs/clam,dsmil=outputs/dsmil] \
output=comparison

A model is a table of predictions (as for evaluate_mil), an output of train_mil with all its seeds, or a list of these:
its seeds. In `predictions`, entries of one name are seeds of one model. Next to the JSON there are a forest plot (.png)
and a page (.html).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from mil.sections import CONFIGS_DIR
from pathray.config.checks import check_between, check_positive
from pathray.config.load import MISSING, Loaded
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell
from ray_jobs.train.training_jobs import absolute

log = logging.getLogger(__name__)


@dataclass
class CompareConfig:
    output: str = MISSING  # a file .json, or a folder
    a: Any = None  # table, output of train_mil, or a list of them: seeds; NAME=PATH names it
    b: Any = None  # the same of the other model
    predictions: list[str] = field(default_factory=list)  # instead of a and b: NAME=PATH of each model
    only_common: bool = False  # leave out the slides that a model lacks, instead of refusing
    label: str = "label"  # the column of the truth
    patient_column: str = "patient_id"
    level: float = 0.95
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(self, "", "resamples")
        check_between(self, "", 0.5, 0.999, "level")


def main(loaded: Loaded[CompareConfig]) -> Outputs | None:
    from mil.analysis.comparing.comparison import compare_models
    from mil.analysis.comparing.joining import join
    from mil.analysis.comparing.output import write_comparison
    from mil.analysis.comparing.reading import models_of, read_models

    config = loaded.config
    models = models_of(config.a, config.b, config.predictions)
    joined = join(
        read_models(models, label=config.label, patient=config.patient_column), only_common=config.only_common
    )
    for name, values in joined.values.items():
        log.info("%s: %d seeds, %d slides left out", name, len(values), joined.left_out[name])
    if loaded.dry_run:
        return tell((len(joined.values), "models"), (len(joined.names), "slides"))
    compared = compare_models(joined, level=config.level, resamples=config.resamples, seed=config.seed)
    return Outputs(write_comparison(compared, str(absolute(config.output))))


if __name__ == "__main__":
    job(main, CompareConfig, CONFIGS_DIR)
