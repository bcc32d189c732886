"""Regression table, or labelled slides → splits into train, val and test, by whole groups and a seed. Needs no Ray.

    python -m ray_jobs.make_splits table=metadata.csv output=splits/split_seed42.csv
    python -m ray_jobs.make_splits table=metadata.csv output=splits/loso kind=leave_one_group_out
    python -m ray_jobs.make_splits data.csv=slides.csv data.store=stores/uni2h splits=nested output=splits/nested
    python -m ray_jobs.make_splits data.store=stores/uni2h splits=pretrain output=splits/pretrain

Of a table, holdout writes one CSV; group_kfold and leave_one_group_out write a folder with `fold_0.csv` … Of slides
(MIL), a folder gets a parquet per split and summary.json, or split_manifest.json. The keys of the two differ: `--help`
lists those of a table, `splits=kfold5 --help` those of slides.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pathray
from mil.sections import CONFIGS_DIR as MIL_CONFIGS
from mil.sections import GROUPS as MIL_GROUPS
from pathray.config.load import MISSING, Loaded
from pathray.errors import UserError
from ray_jobs.mil.splitting import MakeMILSplitsConfig, make_mil_splits
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell

log = logging.getLogger(__name__)
OF_SLIDES = ("data", "encoder", "splits")  # sections and groups of MIL; a regression has no such keys
KINDS = ("holdout", "group_kfold", "leave_one_group_out")


@dataclass
class MakeSplitsConfig:
    table: str = MISSING  # CSV or parquet with columns path, group_id and targets
    output: str = MISSING  # a CSV for holdout, a folder for folds
    kind: str = "holdout"  # | group_kfold | leave_one_group_out
    seed: int = 42
    fractions: list[float] = field(default_factory=lambda: [0.7, 0.15, 0.15])  # of the rows: train, val, test
    k: int = 5  # folds of group_kfold
    validation: bool = True  # each fold validates on the next one's groups
    genes: list[str] | None = None  # the target columns; None: y0, y1 …
    target_dim: int | None = 50  # required number of target columns; null: any

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError("unknown kind of split", key="kind", found=self.kind, expected=" | ".join(KINDS))
        if len(self.fractions) != 3:
            message = "fractions must have three values"
            raise UserError(message, key="fractions", found=self.fractions, expected="[train, val, test]")


def main(loaded: Loaded[MakeSplitsConfig]) -> Outputs | None:
    from pathray.data.split_files import write_split
    from pathray.data.splits import SPLITS, folds, holdout
    from pathray.store.storage import Storage
    from regression.tables.table import read_table

    config = loaded.config
    table = read_table(config.table, genes=config.genes, target_dim=config.target_dim)
    if config.kind == "holdout":
        train, val, test = config.fractions
        splits = {config.output: holdout(table, config.seed, train=train, val=val, test=test)}
    else:
        k = config.k if config.kind == "group_kfold" else None
        made = folds(table, config.seed, k, validation=config.validation)
        store = Storage.of(config.output)
        splits = {store.join(f"fold_{i}.csv"): split for i, split in enumerate(made)}
    if loaded.dry_run:
        return tell((len(table.names), "rows"), (len(splits), "splits"))
    for path, split in splits.items():
        write_split(path, table, split)
        groups = {part: sorted(set(table.groups[split.rows(part)].tolist())) for part in SPLITS}
        counts = ", ".join(f"{part} {len(split.rows(part))} of {len(groups[part])} groups" for part in SPLITS)
        log.info("%s: %s", path, counts)
    return Outputs({"splits": config.output})


def is_of_slides(argv: Sequence[str]) -> bool:
    """Whether a command line has keys of MIL, in its words or its config files, and none of a table."""
    files = [word for before, word in zip(argv, argv[1:], strict=False) if before == "--config"]
    files += [word.removeprefix("--config=") for word in argv if word.startswith("--config=")]
    keys = {word.partition("=")[0].partition(".")[0] for word in argv if "=" in word and not word.startswith("-")}
    keys |= {key for file in files for key in _keys_of(Path(file))}
    return "table" not in keys and not keys.isdisjoint(OF_SLIDES)


def _keys_of(file: Path) -> set[str]:
    """The sections in a config file; none where it cannot be read, which loading the config reports."""
    from pathray.config.files import read_config_file

    try:
        return set(read_config_file(file))
    except UserError:
        return set()


if __name__ == "__main__":
    if is_of_slides(sys.argv[1:]):
        job(make_mil_splits, MakeMILSplitsConfig, MIL_CONFIGS, MIL_GROUPS)
    job(main, MakeSplitsConfig, Path(pathray.__file__).parent)
