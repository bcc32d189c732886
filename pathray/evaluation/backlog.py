"""Which snapshot is evaluated next, with which metrics, and which are left out: a decision over what is on storage.

The same snapshots and records give the same decision, so an evaluator that is killed and started again loses nothing
and doubles nothing. Not here: listing snapshots, writing records (pathray.evaluation.results), running (ray_jobs).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Due = dict[str, list[str]]  # by plugin, the metrics


@dataclass(frozen=True)
class Snapshot:
    """A committed snapshot; `index` is its place in the order of evaluations, 0 the baseline, `created` epoch seconds,
    `identity` the hash of its run's."""

    path: str
    images_seen: int
    index: int
    created: float = 0.0
    identity: str = ""


@dataclass(frozen=True)
class Record:
    """What became of a snapshot: `status` ``ok``, ``failed`` or ``dropped``, and the metrics that an evaluation had."""

    images_seen: int
    index: int
    status: str
    due: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Decision:
    """`next` to evaluate (None: nothing waits), the metrics `due` on it, those to `drop`, and how many still wait
    when both is done."""

    next: Snapshot | None
    due: Due
    drop: tuple[Snapshot, ...]
    waiting: int


def decide(
    snapshots: Iterable[Snapshot],
    records: Sequence[Record],
    running: Sequence[Record],
    cadences: Mapping[str, Mapping[str, int]],
    max_pending: int | None,
) -> Decision:
    """The newest snapshot that has no record and is not `running`; beyond `max_pending` waiting ones (None: no limit)
    the oldest are dropped.

    cadences: by plugin and metric, at every how many evaluations it is due (pathray.evaluation.settings). A metric that
    was due on a snapshot whose evaluation was dropped, failed or never came is due on the next newer one.
    """
    seen = {record.images_seen for record in (*records, *running)}
    waiting = sorted((s for s in snapshots if s.images_seen not in seen), key=lambda s: -s.images_seen)
    kept = waiting if max_pending is None else waiting[:max_pending]
    dropped = tuple(waiting[len(kept) :])
    if not kept:
        return Decision(None, {}, dropped, 0)
    chosen, rest = kept[0], kept[1:]
    known = [s.index for s in waiting] + [r.index for r in (*records, *running)]
    done = [*(r for r in records if r.status == "ok"), *running]
    later = {s.index for s in rest}
    due = {
        plugin: [
            metric
            for metric, every in metrics.items()
            if _is_due(chosen.index, every, plugin, metric, done, later, min(known))
        ]
        for plugin, metrics in cadences.items()
    }
    return Decision(chosen, {plugin: metrics for plugin, metrics in due.items() if metrics}, dropped, len(rest))


def _is_due(
    index: int, every: int, plugin: str, metric: str, done: Sequence[Record], later: set[int], first: int
) -> bool:
    """Whether the snapshot's own number says so, or that of one before it which has not been judged by the metric and
    will not be (those in `later` still may)."""
    if index % every == 0:
        return True
    judged = [r.index for r in done if metric in r.due.get(plugin, ())]
    since = max((j for j in judged if j < index), default=first - 1)
    if any(j > index for j in judged):
        return False
    return any(k % every == 0 and k not in later for k in range(since + 1, index))
