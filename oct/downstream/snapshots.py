"""The encoders that a pretraining has left, over the volumes it had seen, and the leaderboard of their probes.

Not here: the probes themselves (oct.downstream.probing).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oct.downstream.preprocess import check_encoder
from pathray.draw.charts import Panel, draw_curves
from pathray.errors import MissingFile, UserError
from pathray.run.layout import CHECKPOINTS, ENCODER
from pathray.stats.bootstrap import Interval
from pathray.store.artifact import DESCRIPTION
from pathray.store.committed import list_committed
from pathray.store.storage import Storage
from pathray.urls import public

LEADERBOARD, CURVE = "leaderboard.csv", "probe_over_volumes.png"


@dataclass(frozen=True)
class Snapshot:
    """An encoder at `path` after `images_seen` volumes."""

    name: str
    path: str
    images_seen: int


def find_snapshots(run: str) -> list[Snapshot]:
    """The snapshots of a run and its final encoder, in the order of the volumes they have seen; equal weights once.

    UserError when the run has none.
    """
    store, found = Storage.of(run), dict[str, Snapshot]()
    paths = []
    if store.exists(CHECKPOINTS):
        committed = list_committed(store.join(CHECKPOINTS))
        paths = [f"{c.path}/{ENCODER}" for c in committed if f"{ENCODER}/{DESCRIPTION}" in c.files]
    for path in [*paths, store.join(ENCODER)]:
        try:
            description = check_encoder(path)
        except MissingFile:  # the run has not ended yet
            continue
        seen = int(description["provenance"].get("images_seen", 0))
        name = "final" if path == store.join(ENCODER) else f"{seen:,} volumes"
        found[description["sha256"]] = Snapshot(name, path, seen)
    if not found:
        expected = f"a run of ray_jobs.pretrain_oct with snapshots (logging.save_every) or {ENCODER}"
        raise UserError("the run has no encoders", file=public(run), key="model.run", expected=expected)
    return sorted(found.values(), key=lambda snapshot: snapshot.images_seen)


@dataclass(frozen=True)
class Standing:
    """A snapshot's scores with their intervals, and their differences to random weights."""

    snapshot: Snapshot
    scores: Mapping[str, Interval]
    above_random: Mapping[str, Interval]


def ranked(standings: Sequence[Standing], metric: str) -> list[Standing]:
    """The best by `metric` first; of equal ones that which has seen less."""
    return sorted(standings, key=lambda s: (-s.scores[metric].estimate, s.snapshot.images_seen))


def write_leaderboard(store: Storage, standings: Sequence[Standing], metric: str) -> str:
    """leaderboard.csv, best first: a row per snapshot, each score with the ends of its interval. Returns the file."""
    text = io.StringIO()
    rows = [_row(place, one) for place, one in enumerate(ranked(standings, metric), 1)]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    store.write_bytes(LEADERBOARD, text.getvalue().encode())
    return store.join(LEADERBOARD)


def draw_curve(standings: Sequence[Standing], random: Mapping[str, Interval], metric: str, floor: float) -> bytes:
    """A PNG: the probe over the volumes seen, with its interval, next to random weights. `floor`: lowest value."""
    rows = [
        {
            "volumes_seen": one.snapshot.images_seen,
            "probe": one.scores[metric].estimate,
            "low": one.scores[metric].low,
            "high": one.scores[metric].high,
            "random": random[metric].estimate,
        }
        for one in standings
    ]
    name = metric.replace("_", " ")
    panel = Panel(name.capitalize(), (("probe", "linear probe"), ("random", "random weights")), name,
                  band=("low", "high"), low=floor, smooth=False)  # fmt: skip
    return draw_curves(rows, [panel], "Linear probe over pretraining", along="volumes_seen")


def _row(place: int, one: Standing) -> dict[str, Any]:
    row: dict[str, Any] = {"rank": place, "snapshot": one.snapshot.name, "images_seen": one.snapshot.images_seen}
    for name, i in one.scores.items():
        row |= {name: f"{i.estimate:.4f}", f"{name}_low": f"{i.low:.4f}", f"{name}_high": f"{i.high:.4f}"}
    for name, i in one.above_random.items():
        row |= {f"{name}_above_random": f"{i.estimate:.4f}", f"{name}_above_random_low": f"{i.low:.4f}"}
        row |= {f"{name}_above_random_high": f"{i.high:.4f}"}
    return row | {"path": public(one.snapshot.path)}
