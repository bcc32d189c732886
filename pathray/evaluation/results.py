"""What evaluations leave in a run's folder, and what a restarted evaluator finds there. No Ray.

``robustness.jsonl`` has a row per snapshot (judged, failed or dropped), ``early_stopping.json`` the decision over
them, ``checkpoints/best-robustness-…`` a copy of the snapshot that is best so far, ``robustness/`` pictures and the
evaluator's sign of life. All of it is a function of the rows: that is why an evaluator may be killed at any time.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from operator import eq
from pathlib import Path
from typing import Any

from pathray.errors import MissingFile, UserError
from pathray.evaluation.backlog import Record, Snapshot
from pathray.evaluation.early_stopping import Decision
from pathray.evaluation.settings import EarlyStoppingConfig
from pathray.run.layout import CHECKPOINTS, DECISION, ENCODER, EVALUATION, EVALUATIONS, LIVE_EVALUATOR
from pathray.store.checkpoint import latest
from pathray.store.committed import Committed, committed_dir, list_committed, read_committed, remove_committed
from pathray.store.exclusive import SETTLE_S, content, create, discard, swap
from pathray.store.liveness import is_gone, this_process
from pathray.store.metrics_log import CHECK, MetricsLog, rows_of
from pathray.store.storage import Storage, StorageError

log = logging.getLogger(__name__)

ROWS, FOLDER = EVALUATIONS, EVALUATION
DESCRIPTION = "artifact.json"
BEST = "best-robustness"
ALIVE, ALIVE_EVERY_S, ALIVE_FOR_S = LIVE_EVALUATOR, 10.0, 60.0
COUNTS = ("best_images", "decided_at_images", "trained_to_images")
TUNE_INDEX, TUNE_IMAGES = "tune/tune_index", "tune/tune_images_seen"


class Results:
    """The evaluations of one run. `identity`: the run's (None: of whatever run is there); rows and snapshots of another
    run in the same folder do not count. One writer at a time: see `claim`."""

    def __init__(self, run_dir: str, identity: str | None, stopping: EarlyStoppingConfig | None = None) -> None:
        self.store, self.identity = Storage.of(run_dir), identity
        self.stopping = stopping if stopping is not None and stopping.enable else None
        self._listed: dict[str, Snapshot | None] = {}
        self._who = ""
        self.reload()

    def reload(self) -> None:
        """Read the rows again: whoever was at work on the run until now may have added some."""
        self._log = MetricsLog(self.store.join(ROWS))
        self.rows = [row for row in whole_rows(self._log.read()) if self.identity in (None, row.get("identity"))]

    def cut_back(self, tag: str) -> int:
        """Drop the rows beyond the newest checkpoint of `tag`: the run was set back or begun anew, and comes there
        again. How many there were. Otherwise none can be: the newest is never removed."""
        newest = latest(self.store.join(CHECKPOINTS), tag)
        reached = -1 if newest is None else int(newest.meta["images_seen"])
        beyond = len([row for row in self.rows if row["images_seen"] > reached])
        if beyond:
            log.warning("%d evaluations beyond the newest checkpoint do not count: the run resumes before them", beyond)
            self._log.cut_back(reached)
            self.reload()
        return beyond

    def snapshots(self) -> list[Snapshot]:
        """The committed snapshots that carry an encoder, oldest first. A directory is read once, then known by name."""
        root = Storage.of(self.store.join(CHECKPOINTS))
        names = [name for name in root.list() if "-img" in name]
        for name in names:
            if name not in self._listed:
                try:
                    self._listed[name] = self._read(read_committed(root.join(name)))
                except MissingFile:
                    log.debug("%s is not committed yet", name)
        found = sorted((s for n in names if (s := self._listed.get(n))), key=lambda s: (s.images_seen, s.created))
        newest = {s.images_seen: s for s in found}.values()  # of two with the same images, the later
        # those of a run without tuning have no number: their place in the order is it
        return [s if s.index >= 0 else replace(s, index=place) for place, s in enumerate(newest)]

    def _read(self, found: Committed) -> Snapshot | None:
        if self.identity not in (None, _identity(found)) or f"{ENCODER}/{DESCRIPTION}" not in found.files:
            return None
        meta = found.meta
        index = int(meta.get("tune_index", -1))
        return Snapshot(found.path, int(meta["images_seen"]), index, found.created, _identity(found))

    def records(self) -> list[Record]:
        return [
            Record(row["images_seen"], int(row.get(TUNE_INDEX, 0)), str(row["status"]), dict(row.get("due") or {}))
            for row in self.rows
        ]

    def record(self, snapshot: Snapshot, status: str, due: Mapping[str, list[str]], **more: Any) -> dict[str, Any]:
        """Append the row of a snapshot; `more` are its metrics and what else is known of it."""
        row = {
            "images_seen": snapshot.images_seen,
            TUNE_INDEX: snapshot.index,
            TUNE_IMAGES: snapshot.images_seen,
            "status": status,
            "due": dict(due),
            "snapshot": snapshot.path.rpartition("/")[2],
            "identity": self.identity or snapshot.identity,
            **more,
        }
        try:
            self._log.append(row)
            self._log.flush()
        except OSError:
            self._log = MetricsLog(self.store.join(ROWS))  # the next row neither follows a half one nor brings this one
            raise
        self.rows.append(row)
        return row

    def neighbours(self) -> dict[str, int]:
        """By dataset, the k that the first of its robustness indices was taken with."""
        found: dict[str, int] = {}
        for row in self.rows:
            for key in row:
                if key.startswith("pathorob/") and key.endswith("/ri_k"):
                    found.setdefault(key.split("/", 1)[1].rpartition("/")[0], int(row[key]))
        return found

    def n_dropped(self) -> int:
        return sum(row["status"] == "dropped" for row in self.rows)

    def decision(self) -> Decision | None:
        """None without early stopping."""
        if self.stopping is None:
            return None
        return self.stopping.rule().decide([(row["images_seen"], row) for row in self.rows if row["status"] == "ok"])

    def settle(self) -> Decision | None:
        """Bring decision file and best snapshot up to date with the rows; called after every row and at every start."""
        decision = self.decision()
        if decision is None or self.stopping is None:
            return None
        ok = [row["images_seen"] for row in self.rows if row["status"] == "ok"]
        known = {
            "metric": self.stopping.selection.key,
            "mode": self.stopping.selection.mode,
            "best": decision.best,
            "best_images": decision.best_images,
            "evaluations_since": decision.since,
            "stop": decision.stop and self.stopping.stop_training,
            "decided_at_images": max(ok, default=None),
            "trained_to_images": max((s.images_seen for s in self.snapshots()), default=None),
            "identity": self.identity or "",
        }
        try:
            before = read_decision(self.store.url)
        except UserError as e:  # it is a function of the rows: written anew
            log.warning("%s; it is written anew", e)
            before = None
        if before is not None and before.get("stop") and known["stop"]:  # where it was taken, not what came in after it
            known |= {key: before.get(key) for key in ("decided_at_images", "trained_to_images")}
        unchanged = before is not None and all(before.get(k) == v for k, v in known.items() if k != "trained_to_images")
        if not unchanged:
            known = {**known, "time": time.time()}
            self.store.write_bytes(DECISION, json.dumps({**known, CHECK: _sum(known)}, indent=1).encode())
        if self.stopping.save_best_checkpoint and decision.best_images is not None:
            self._keep_best(decision.best_images, known)
        return decision

    def _keep_best(self, images_seen: int, why: Mapping[str, Any]) -> None:
        root = self.store.join(CHECKPOINTS)
        kept = list_committed(root, BEST)
        if any(self._is_best(found, images_seen) for found in kept):
            return
        source = next((s for s in self.snapshots() if s.images_seen == images_seen), None)
        if source is None:
            log.warning("the best snapshot (%s images) is gone: %s is not brought up to date", images_seen, BEST)
            return
        copy_committed(source.path, root, BEST, {k: why[k] for k in ("metric", "mode", "best")})
        for old in kept:
            remove_committed(old.path)

    def _is_best(self, found: Committed, images_seen: int) -> bool:
        return found.meta["images_seen"] == images_seen and self.identity in (None, _identity(found))

    def prune(self, keep_last_n: int, tag: str | None) -> list[str]:
        """Remove snapshots that were taken for evaluation and have their row, except the newest `keep_last_n`, the one
        that a resumed run would start from, and one that is the best but not copied yet. Returns the paths removed."""
        done = {row["images_seen"] for row in self.rows}
        snapshots = [s for s in self.snapshots() if self._is_numbered(s)]
        newest = latest(self.store.join(CHECKPOINTS), tag) if tag else None
        decision = self.decision()
        best = None if decision is None else decision.best_images
        copied = best is None or any(self._is_best(c, best) for c in list_committed(self.store.join(CHECKPOINTS), BEST))
        removed = []
        for snapshot in snapshots[:-keep_last_n]:
            needed = snapshot.images_seen not in done or (snapshot.images_seen == best and not copied)
            if needed or (newest is not None and snapshot.path == newest.path):
                continue
            try:
                remove_committed(snapshot.path)
            except StorageError as e:
                log.warning("%s cannot be removed now: %s", snapshot.path, e)
                continue
            self._listed.pop(snapshot.path.rpartition("/")[2], None)
            removed.append(snapshot.path)
        return removed

    def _is_numbered(self, snapshot: Snapshot) -> bool:
        """Whether it was taken for evaluations: those of a run without tuning were asked for to be kept."""
        listed = self._listed.get(snapshot.path.rpartition("/")[2])
        return listed is not None and listed.index >= 0

    def claim(self, who: str) -> bool:
        """Say that `who` evaluates this run; False while another does, or may: it gave a sign of life less than a
        minute ago, and is not known to be dead. Of several that claim at once, one does."""
        data = content(self.store, ALIVE)
        other = _sign_in(data)
        own = other is not None and other["who"] == who
        if other is not None and not own and not _is_dead(other):
            return False
        if other is not None and own and time.time() - other["time"] < ALIVE_EVERY_S:
            return True
        self._who = who
        sign = json.dumps({"who": who, "time": time.time(), **this_process()}).encode()
        if data is None:
            return create(self.store, ALIVE, sign)
        return swap(self.store, ALIVE, partial(eq, data), sign, 0.0 if own else SETTLE_S)

    def release(self) -> None:
        """Let others evaluate, if it is still us who do."""
        discard(self.store, ALIVE, self._is_own)

    def _is_own(self, data: bytes | None) -> bool:
        sign = _sign_in(data)
        return sign is not None and sign["who"] == self._who


def copy_committed(source: str, parent: str, name: str, meta: Mapping[str, Any]) -> Committed:
    """A committed directory with the same files, checked on the way, and `meta` beside its own."""
    found = read_committed(source)
    with committed_dir(parent, name, {**found.meta, **meta, "copy_of": found.name}) as directory:
        for file in found.files:

            def into(path: Path, file: str = file) -> None:
                with directory.local_file(file) as target:
                    shutil.copyfile(path, target)

            found.read(file, into)
    return read_committed(directory.path)


def read_decision(run_dir: str) -> dict[str, Any] | None:
    """The newest decision on early stopping, None when there is none."""
    store = Storage.of(run_dir)
    try:
        found: Any = json.loads(store.read_bytes(DECISION))
    except MissingFile:
        return None
    except ValueError as e:
        raise _damage_error(store, str(e)) from e
    if not isinstance(found, dict) or not all(isinstance(found.get(k), int | None) for k in COUNTS):
        raise _damage_error(store, "not a decision")
    said = found.pop(CHECK, None)
    if said is not None and said != _sum(found):
        raise _damage_error(store, "another checksum than it says")
    return found


def _damage_error(store: Storage, found: str) -> UserError:
    expected = f"a decision as it was written; remove the file: it is made anew from {ROWS}"
    return UserError("damaged", file=store.join(DECISION), found=found, expected=expected)


def _sum(known: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(known, sort_keys=True).encode()):08x}"


def whole_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that name their snapshot and its outcome. The others are damaged; they are logged and left out."""
    found = []
    for row in rows:
        if isinstance(row.get("images_seen"), int) and isinstance(row.get("status"), str):
            found.append(row)
        else:
            log.warning("a row of %s is damaged and left out: %.80r", ROWS, row)
    return found


def is_evaluated(run_dir: str, images_seen: int) -> bool:
    """Whether a snapshot has its row."""
    try:
        rows = whole_rows(rows_of(Storage.of(run_dir).read_bytes(ROWS)))
    except MissingFile:
        return False
    return any(row["images_seen"] == images_seen for row in rows)


def has_live_evaluator(run_dir: str) -> bool:
    """Whether an evaluator of the run has given a sign of life lately."""
    alive = _alive(Storage.of(run_dir))
    return alive is not None and time.time() - alive["time"] < 10 * ALIVE_FOR_S


def _alive(store: Storage) -> dict[str, Any] | None:
    return _sign_in(content(store, ALIVE))


def _sign_in(data: bytes | None) -> dict[str, Any] | None:
    """An evaluator's sign of life; None where there is none, or it is damaged."""
    try:
        found: Any = None if data is None else json.loads(data)
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("time"), int | float):
        return None
    return {"who": "", "host": "", "pid": 0, **found}


def _is_dead(other: Mapping[str, Any]) -> bool:
    """Whether an evaluator has been silent for long, or is a process of this machine that is no more."""
    return time.time() - other["time"] >= ALIVE_FOR_S or bool(is_gone(other))


def _identity(found: Committed) -> str:
    return str(found.meta.get("identity", {}).get("hash", ""))
