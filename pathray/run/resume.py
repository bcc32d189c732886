"""Which checkpoint a run resumes from, and whether it may: asked before anything is built, and by rank 0 of the run.

Importing this module imports torch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pathray.data import crashes
from pathray.data.plan import Plan
from pathray.errors import UserError
from pathray.fingerprint import list_differences
from pathray.run.layout import CHECKPOINTS
from pathray.store import checkpoint
from pathray.store.committed import Committed, read_committed
from pathray.store.storage import Storage

if TYPE_CHECKING:
    from pathray.run.outcome import RunSettings
    from pathray.train.state import TrainState

log = logging.getLogger(__name__)


def find_checkpoint(run_dir: str, tag: str, resume: str = "auto", fit_id: str = "") -> Committed | None:
    """The newest checkpoint in the run folder; before there is one, the one that `resume` names; None: a fresh start.

    With `resume` ``never`` a run resumes only from checkpoints of the fit `fit_id` itself (after a worker died), and
    UserError is raised where there are others. MissingFile when `resume` names what is no committed checkpoint.
    """
    newest = checkpoint.latest(Storage.of(run_dir).join(CHECKPOINTS), tag)
    if newest is None:
        return None if resume in ("auto", "never") else read_committed(resume)
    if resume == "never" and newest.meta.get("fit_id") != fit_id:
        message, expected = "the output folder already holds checkpoints of a run", "auto, or a new output"
        raise UserError(message, file=newest.path, key="checkpoint.resume", found=resume, expected=expected)
    return newest


def check_resumable(found: Committed, identity: Mapping[str, Any], changes: Sequence[str] = ()) -> None:
    """UserError, naming the checkpoint, when it is of a newer version or belongs to a run of another identity.

    `changes`: keys that may differ all the same (those below them, too). Each difference is logged.
    """
    version, known = found.meta.get("checkpoint_schema_version", 0), checkpoint.SCHEMA_VERSION
    if version > known:
        message = "the checkpoint was written by a newer version"
        raise UserError(message, file=found.path, found=version, expected=f"at most {known}")
    with errors_about(found.path):
        checkpoint.check_identity(_apply_allowed_changes(changes, found, identity), identity)


def _apply_allowed_changes(changes: Sequence[str], found: Committed, identity: Mapping[str, Any]) -> Mapping[str, Any]:
    """The checkpoint's meta, with what may differ taken from `identity`."""
    if not changes or "identity" not in found.meta:
        return found.meta
    then, now = dict(found.meta["identity"]["values"]), identity["values"]
    for key, old, new in list_differences(then, now):
        if any(key == change or key.startswith((f"{change}.", f"{change}[")) for change in changes):
            log.info("%s: %r in the checkpoint %s, %r from here on", key, old, found.path, new)
            then.pop(key, None)
            then |= {key: now[key]} if key in now else {}
    return {**found.meta, "identity": {"values": then}}


def load(state: TrainState, path: str, identity: Mapping[str, Any], settings: RunSettings) -> None:
    """Put a checkpoint's tensors into the state. UserError when it belongs to another run."""
    found = read_committed(path)
    check_resumable(found, identity, settings.resume_changes)
    with errors_about(path):
        state.load(*checkpoint.load(path))
    if found.meta.get("fit_id") != settings.fit_id:
        state.health.reset_marks(state.images_seen)  # a new start means that the data were repaired


def read_exclusions(run_dir: str, plan: Plan) -> crashes.Excluded:
    """What has ended decoding processes of this run before, and is read no more."""
    found = crashes.decide_exclusions(crashes.read_notes(run_dir), plan.units_hash)
    for name in (str(plan.sources.column(0)[source]) for source in sorted(found.sources)):
        log.warning("%s is skipped: decoding it crashed the process repeatedly", name)
    if found.rows:
        log.warning("%d units are skipped: decoding them crashed the process twice", len(found.rows))
    return found


@contextmanager
def errors_about(path: str) -> Iterator[None]:
    """A UserError raised in the block says that it is about this checkpoint."""
    try:
        yield
    except UserError as e:
        raise UserError(e.message, **{**e.where, "file": e.where["file"] or path}) from e
