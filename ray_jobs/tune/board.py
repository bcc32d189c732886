"""Writes a sweep's results: leaderboard.md and .csv, parallel.png, best.yaml. They are read from the trials' folders.

``trials.json`` has what only Tune knows: the trials and how each of them ended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import OmegaConf

from pathray.search.leaderboard import UNFINISHED, Entry, best_of, csv_text, entry_of, markdown
from pathray.search.objective import Objective
from pathray.search.space import Dimension
from pathray.store.storage import Storage
from pathray.urls import public, public_text
from ray_jobs.tune.config import Sweep, TrainingJob
from ray_jobs.tune.sweep_run import TRIAL, history_of, images_of

TRIALS, RUNS = "trials.json", "trials"
BEST, BOARD, TABLE, PICTURE = "best.yaml", "leaderboard.md", "leaderboard.csv", "parallel.png"
URI = "logging.tracking_uri"


@dataclass(frozen=True)
class Status:
    """A trial as Tune knows it. `error`: message, where (of a UserError, else None) and trace."""

    trial: str
    status: str = UNFINISHED
    values: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None


def write_statuses(store: Storage, statuses: Sequence[Status]) -> None:
    rows = [{"trial": s.trial, "status": s.status, "values": dict(s.values), "error": s.error} for s in statuses]
    store.write_bytes(TRIALS, json.dumps(rows, indent=1).encode())


def read_statuses(store: Storage) -> list[Status]:
    return [Status(**row) for row in json.loads(store.read_bytes(TRIALS))] if store.exists(TRIALS) else []


def entries_of(store: Storage, objective: Objective) -> list[Entry]:
    """The sweep's trials, from their folders and ``trials.json``."""
    folders: dict[str, list[tuple[float, dict[str, Any], Storage]]] = {}
    for name in store.list(RUNS):
        run = store.at(RUNS, name)
        if run.exists(TRIAL):
            record = json.loads(run.read_bytes(TRIAL))
            folders.setdefault(record["trial"], []).append((record["began"], record["values"], run))
    found = []
    for status in read_statuses(store):
        runs = [
            (values, history_of(run, objective), images_of(run))
            for _, values, run in sorted(folders.get(status.trial, []), key=lambda entry: entry[0])
        ]
        error = status.error["message"] if status.error else ""
        found.append(entry_of(status.trial, status.status, runs or [(dict(status.values), [], 0)], objective, error))
    return found


def write_board(store: Storage, sweep: Sweep) -> Entry | None:
    """Write all files again; returns the best trial, if any has the objective."""
    from pathray.search.parallel import draw_parallel

    objective, keys, title = sweep.config.objective, list(sweep.space), f"Sweep of {sweep.job.name}"
    entries = entries_of(store, objective)
    store.write_bytes(BOARD, markdown(entries, objective, keys, title).encode())
    store.write_bytes(TABLE, csv_text(entries, objective, keys).encode())
    store.write_bytes(PICTURE, draw_parallel(entries, sweep.space, objective, title))
    best = best_of(entries, objective)
    if best is not None:
        store.write_bytes(BEST, best_yaml(sweep.job, best, sweep.space, objective).encode())
    return best


def best_yaml(job: TrainingJob, best: Entry, space: Mapping[str, Dimension], objective: Objective) -> str:
    """The job's config with the best trial's values, headed by the command that runs it."""
    assert best.best is not None
    loaded = job.load(best.values).config
    resolve = getattr(job.module, "make_paths_absolute", lambda config: config)  # for a run from another folder
    config = OmegaConf.structured(replace(resolve(loaded), output=None))
    if uri := OmegaConf.select(config, URI):
        OmegaConf.update(config, URI, public(str(uri)))
    value, images = best.best[1], best.best[0]
    lines = [
        f"# python -m ray_jobs.{job.name} --config {BEST} output=outputs/best",
        f"# The best trial of a sweep: {best.trial}, {objective.metric} {value:.6g} at {images:,} images, with",
        *(f"#   {key}: {json.dumps(best.values[key])}" for key in space if key in best.values),
    ]
    return public_text("\n".join(lines) + "\n" + OmegaConf.to_yaml(config))
