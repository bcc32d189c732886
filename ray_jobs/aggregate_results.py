"""All regression runs below a folder → one Markdown table, best first, written and printed. Needs no Ray.

python -m ray_jobs.aggregate_results runs=outputs/regression
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import pathray
from pathray.config.load import MISSING, Loaded
from pathray.errors import MissingFile
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell

log = logging.getLogger(__name__)


@dataclass
class AggregateConfig:
    runs: str = MISSING  # folder or URL with the runs, at any depth
    output: str | None = None  # the table; null: results.md in `runs`


def main(loaded: Loaded[AggregateConfig]) -> Outputs | None:
    from pathray.store.storage import Storage, write_atomic
    from regression.reports.report import read_results, results_table

    config = loaded.config
    store = Storage.of(config.runs)
    found = read_results(store)
    if not found:
        expected = "run folders with metrics.json, written when a run finishes"
        raise MissingFile("no finished run found", file=store.url, key="runs", expected=expected)
    text = results_table(found)
    if loaded.dry_run:
        return tell((len(found), "finished runs"))
    target = config.output or store.join("results.md")
    write_atomic(target, text.encode())
    print(text)
    return Outputs({"table": target})


if __name__ == "__main__":
    job(main, AggregateConfig, Path(pathray.__file__).parent)
