"""Whether models differ on the same slides: differences with intervals over patients, DeLong, McNemar, a page. No Ray.

    python -m ray_jobs.compare_experiments a=preds_abmil.csv b=preds_clam.csv output=significance.json
    python -m ray_jobs.compare_experiments a=outputs/abmil b=outputs/clam output=significance.json
    python -m ray_jobs.compare_experiments 'predictions=[outputs/abmil, outputs/clam, outputs/dsmil]' output=comparison
    python -m ray_jobs.compare_experiments 'a=[run_0, run_1, run_2]' 'b=[other_0, other_1, other_2]' output=comparison

An experiment is a table of predictions (CSV, parquet), a folder of train_mil with all its seeds, or a list of them, one
per seed. Several are `predictions`, their names the folders' or `names`. All must have the same slides and labels. The
figure and the page are next to the JSON, under the same name.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from mil.sections import CONFIGS_DIR
from pathray.config.checks import check_between, check_positive
from pathray.config.load import MISSING, Loaded, placement
from pathray.errors import UserError
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell
from ray_jobs.train.training_jobs import absolute, check_output

log = logging.getLogger(__name__)


@dataclass
class CompareConfig:
    output: str = MISSING  # FILE.json, or a folder for significance.json
    a: Any = None  # a table or a folder, or a list of them: its seeds
    b: Any = None
    predictions: list[Any] = field(default_factory=list)  # more than two: each as `a`
    names: list[str] = field(default_factory=list)  # of a and b, or of predictions
    label: str = "label"  # the column of the truth
    patient_column: str = "patient_id"
    only_common: bool = False  # leave out slides that are not in all tables
    primary: str | None = None  # the score that the figure and the words are about: auroc, accuracy …
    level: float = 0.95
    resamples: int = 2000  # of patients
    seed: int = 0
    title: str | None = placement(None)

    def __post_init__(self) -> None:
        check_positive(self, "", "resamples")
        check_between(self, "", 0.5, 0.999, "level")


def main(loaded: Loaded[CompareConfig]) -> Outputs | None:
    from mil.comparison.comparing import compare
    from mil.comparison.experiments import digest_tables, read_experiments
    from mil.comparison.joining import join_slides
    from mil.comparison.output import split_output, write_comparison
    from mil.judging.predictions import read_predictions

    config = loaded.config
    check_output(config.output and split_output(config.output)[0])
    sources = name_sources(config)
    experiments = read_experiments(
        sources, lambda path: read_predictions(path, label=config.label, patient=config.patient_column)
    )
    seeds = sum(len(one.seeds) for one in experiments)
    for one in experiments:
        log.info("%s: %d slides, %d seeds", one.name, len(one.first), len(one.seeds))
    if loaded.dry_run:
        slides = len(join_slides(experiments, config.only_common).first)
        return tell((len(experiments), "experiments"), (seeds, "tables"), (slides, "slides"))
    compared = compare(
        experiments, only_common=config.only_common, primary=config.primary, level=config.level,
        resamples=config.resamples, seed=config.seed,
    )  # fmt: skip
    for note in compared.notes:
        log.warning("%s", note)
    title = config.title or "Comparison of " + ", ".join(sources)
    settings = {"resamples": config.resamples, "seed": config.seed, "only_common": config.only_common}
    about = {"settings": settings, "sha256": digest_tables(experiments)}
    return Outputs(write_comparison(compared, config.output, title, about))


def name_sources(config: CompareConfig) -> dict[str, list[str]]:
    """The paths of each experiment by its name. UserError for what is neither `a` and `b` nor `predictions`."""
    from mil.comparison.experiments import name_experiments

    if config.predictions and (config.a is not None or config.b is not None):
        raise UserError("a and b, or predictions, not both", key="predictions", expected="one of the two")
    keys = ["predictions"] * len(config.predictions) or ["a", "b"]
    paths = [_paths(given, key) for given, key in zip(config.predictions or (config.a, config.b), keys, strict=True)]
    names = config.names or name_experiments(paths)
    if len(names) != len(paths) or len(set(names)) < len(names):
        expected = f"{len(paths)} different names"
        raise UserError("a name for each experiment is required", key="names", found=list(names), expected=expected)
    return dict(zip(names, paths, strict=True))


def _paths(given: Any, key: str) -> list[str]:
    paths = list(given) if isinstance(given, list | tuple) else [given]
    if not paths or not all(isinstance(path, str) and path for path in paths):
        expected = f"{key}=TABLE, {key}=FOLDER, or a list of them, one per seed"
        raise UserError(
            f"{key} is required" if given is None else "not a path", key=key, found=given, expected=expected
        )
    return [absolute(path) or "" for path in paths]


if __name__ == "__main__":
    job(main, CompareConfig, CONFIGS_DIR)
