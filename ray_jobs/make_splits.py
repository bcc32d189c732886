"""Regression table → splits into train, val and test rows, by whole groups and a seed, as CSV. Needs no Ray.

    python -m ray_jobs.make_splits table=metadata.csv output=splits/split_seed42.csv
    python -m ray_jobs.make_splits table=metadata.csv output=splits/loso kind=leave_one_group_out

holdout writes one file; group_kfold and leave_one_group_out write a folder with `fold_0.csv`, `fold_1.csv` …
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import pathray
from pathray.config.load import MISSING, Loaded
from pathray.errors import UserError
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell

log = logging.getLogger(__name__)
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


if __name__ == "__main__":
    job(main, MakeSplitsConfig, Path(pathray.__file__).parent)
