"""Splits of a labelled cohort, or of the slides of a pretraining, as files: the MIL side of make_splits.

Not here: the command (ray_jobs.make_splits), how splits are made and checked (mil.splits).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mil.config import LabelledSlides, SplitsConfig
from mil.sections import CohortConfig
from pathray.config.checks import check_between
from pathray.config.load import MISSING, Loaded
from pathray.errors import UserError
from ray_jobs.shell.cli import Outputs
from ray_jobs.shell.dry_run import tell
from ray_jobs.train.training_jobs import absolute

if TYPE_CHECKING:
    from mil.splits.manifest import Slides
    from mil.store.reading import Store

log = logging.getLogger(__name__)
PRETRAIN = "pretrain"


@dataclass
class SplitChoice(SplitsConfig):
    """The schemes of a training, and `pretrain`: train and val slides without labels."""

    val_fraction: float = 0.1  # of pretrain: of the slides, by whole patients where data.csv names them
    manifest: str | None = None  # of pretrain: a table of slide_id, and of split (train, val) where parts are given

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(self, "splits", 0.0, 0.9, "val_fraction")
        if self.folder:
            expected = "a scheme; make_splits writes splits into output"
            raise UserError("make_splits reads no splits", key="splits.folder", found=self.folder, expected=expected)

    def schemes(self) -> tuple[str, ...]:
        return (*super().schemes(), PRETRAIN)


@dataclass
class MakeMILSplitsConfig(CohortConfig):
    output: str = MISSING  # a folder for the files of the splits
    data: LabelledSlides = field(default_factory=LabelledSlides)
    splits: SplitChoice = field(default_factory=SplitChoice)


def make_mil_splits(loaded: Loaded[MakeMILSplitsConfig]) -> Outputs | None:
    """Make, check and write the splits; a dry run counts them."""
    config = loaded.config
    if not config.data.store and not (config.splits.scheme == PRETRAIN and config.data.features):
        more = ", or data.features for splits.scheme=pretrain" if config.splits.scheme == PRETRAIN else ""
        expected = f"a folder that build_store wrote{more}"
        raise UserError("data.store is required", key="data.store", expected=expected)
    if config.splits.scheme == PRETRAIN:
        return _split_pretraining(config, loaded.dry_run)
    return _split_cohort(config, loaded.dry_run)


def _split_cohort(config: MakeMILSplitsConfig, dry: bool) -> Outputs | None:
    from mil.splits import check_duplicates, check_parts, splits_of, write_splits
    from pathray.data.splits import SPLITS
    from ray_jobs.train_mil import TrainMILConfig, read_inputs

    if not config.data.csv:
        raise UserError("data.csv is required", key="data.csv", expected="a table of slides")
    data = replace(config.data, csv=absolute(config.data.csv), store=absolute(config.data.store))
    store, cohort = read_inputs(TrainMILConfig(data=data))
    splits = splits_of(cohort, config.splits)
    check_parts(cohort, splits)
    folder = None if dry else config.output
    allowed = config.splits.allow_duplicates
    check_duplicates(store, cohort, cohort.slides, splits, allowed=allowed, folder=folder)
    if dry:
        return tell((len(cohort.names), "labelled slides"), (cohort.patients, "patients"), (len(splits), "splits"))
    for name, path in write_splits(config.output, cohort, splits).items():
        log.info("%s: %s", path, ", ".join(f"{part} {splits[name].rows(part).size}" for part in SPLITS))
    return Outputs({"splits": config.output})


def _split_pretraining(config: MakeMILSplitsConfig, dry: bool) -> Outputs | None:
    from mil.splits import check_duplicates
    from mil.splits.manifest import split_slides, write_manifest
    from mil.store.reading import Store

    data, choice = config.data, config.splits
    store = Store(str(data.store)) if data.store else None
    table = _slides(config, store)
    split = split_slides(table, choice.seed, choice.val_fraction)
    if store is None:
        log.warning("without data.store, copies of a bag in both parts are not looked for")
    else:
        import numpy as np

        rows = np.array([store.index[name] for name in table.names.tolist()], np.int64)
        folder, allowed = None if dry else config.output, choice.allow_duplicates
        check_duplicates(store, table, rows, {PRETRAIN: split}, allowed=allowed, folder=folder)
    sizes = {part: int(split.rows(part).size) for part in ("train", "val")}
    if dry:
        return tell((len(table.names), "slides"), *((sizes[part], f"slides of {part}") for part in sizes))
    source = {"store_sha256": store.meta["sha256"]} if store else {"features": data.features}
    path = write_manifest(config.output, table, split, source)
    log.info("%s: train %d, val %d", path, sizes["train"], sizes["val"])
    return Outputs({"splits": path})


def _slides(config: MakeMILSplitsConfig, store: Store | None) -> Slides:
    from mil.splits.manifest import list_slides
    from mil.store.sources import find_bags

    data, csv = config.data, config.splits.manifest or config.data.csv
    where = str(data.store or data.features)
    ids = store.ids if store else [one.slide_id for one in find_bags(where).sources]
    table = list_slides(ids, where, csv, data.slide_column, data.patient_column)
    if lost := len(ids) - len(table.names):
        log.info("%d of %d slides are not in %s", lost, len(ids), csv)
    return table
