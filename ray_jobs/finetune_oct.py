"""Pretrained OCT encoder and labels → linear and attentive probes, a fine-tuned model, or a probe of every checkpoint.

    python -m ray_jobs.finetune_oct --config probe data.index=volumes.parquet data.labels=labels.csv \\
        model.encoder=RUN/encoder output=outputs/probe

`kind` is probe, finetune or sweep. Labels are of volumes (column path) or of persons (person_id); persons are never
divided between training and test. Inputs are those of pretraining, as the artifact says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from oct.config import CONFIGS_DIR
from oct.downstream.config import SELECTED_BY, DownstreamConfig
from pathray.config.load import Loaded, is_set, placement
from pathray.errors import UserError
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import check_files, tell
from ray_jobs.shell.runtime import RuntimeConfig, ray_session
from ray_jobs.train import training_jobs
from ray_jobs.train.training_jobs import absolute, check_output, cpus_of

if TYPE_CHECKING:
    from oct.downstream.cohort import Cohort

log = logging.getLogger(__name__)


@dataclass
class FinetuneOctConfig(DownstreamConfig):
    """A config, and where it runs."""

    runtime: RuntimeConfig = placement(default_factory=RuntimeConfig)


def main(loaded: Loaded[FinetuneOctConfig]) -> Outputs | None:
    from oct.downstream.cohort import read_cohort

    config = make_paths_absolute(loaded.config)
    check_output(config.output)
    data = config.data
    cohort = read_cohort(data.index, data.labels, data.label, data.task, data.gcs_root)
    encoders = check_encoders(config)
    log.info("%s", cohort)
    if cohort.notes:
        log.warning("%d labels or volumes are left out; summary.md says why", len(cohort.notes))
    work = _work_of(config, cohort)
    if loaded.dry_run:
        files = [f"{cohort.root.rstrip('/')}/{row['path']}" for row in cohort.volumes]
        volumes = check_files(files, data.index, "data.index")
        return tell((volumes, "labelled volumes"), (cohort.persons, "persons"), (encoders, "encoders"))
    scaling = config.scaling
    session = ray_session(
        config.runtime, cpus=cpus_of(config), autoscaling=scaling.autoscaling, needed=bool(scaling.workers)
    )
    with session:
        return work()


def _work_of(config: FinetuneOctConfig, cohort: Cohort) -> Callable[[], Outputs]:
    """What is left to call, after the checks that need no Ray."""
    from functools import partial

    from oct.downstream.folds import splits_of

    data, tuned = config.data, config.kind == "finetune"
    splits = splits_of(cohort, split_file=data.split_file, k=data.folds, seed=data.seed, validation=tuned)
    if config.kind == "probe":
        from ray_jobs.oct_downstream.probes import probe

        return partial(probe, config, cohort, splits)
    if config.kind == "sweep":
        from ray_jobs.oct_downstream.probes import sweep

        return partial(sweep, config, cohort, splits, SELECTED_BY[data.task][0])
    from ray_jobs.oct_downstream.finetuning import finetune

    return partial(finetune, config, cohort, splits)


def make_paths_absolute(config: FinetuneOctConfig) -> FinetuneOctConfig:
    """With every path absolute: a worker runs in another folder than the command. UserError for a missing key."""
    for key in ("index", "labels"):
        if not is_set(getattr(config.data, key)):
            raise UserError(f"data.{key} is required", key=f"data.{key}", expected=f"data.{key}=FILE")
    paths: dict[str, Any] = {
        key: absolute(getattr(config.data, key)) for key in ("index", "labels", "gcs_root", "split_file", "cache_dir")
    }
    model = replace(config.model, encoder=absolute(config.model.encoder), run=absolute(config.model.run))
    done: FinetuneOctConfig = training_jobs.make_paths_absolute(config, data=replace(config.data, **paths), model=model)
    return done


def check_encoders(config: FinetuneOctConfig) -> int:
    """How many encoders are judged. MissingFile, UserError for one that is not there or not of OCT volumes."""
    model = config.model
    if config.kind == "sweep":
        from oct.downstream.snapshots import find_snapshots

        if not model.run:
            raise UserError("model.run is required", key="model.run", expected="the folder of a ray_jobs.pretrain_oct")
        return len(find_snapshots(model.run))
    from oct.downstream.preprocess import check_encoder

    if not model.encoder:
        expected = "model.encoder=RUN/encoder; with model.weights=random for its architecture alone"
        raise UserError("model.encoder is required", key="model.encoder", expected=expected)
    check_encoder(model.encoder)
    return 1


if __name__ == "__main__":
    job(main, FinetuneOctConfig, CONFIGS_DIR)
