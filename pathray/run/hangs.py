"""A step that hangs ends its process: the stacks of its threads are logged and noted, and a restart resumes the run.

A hang cannot be interrupted, so nothing is unwound: rows and checkpoints that are on storage stay, and the next start
takes over the run's folder as after a kill. Through Ray the worker's death is a failure like any other: the group
starts again in fresh processes. Not here: what a hang is (pathray.train.step_watch).
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from pathray.errors import UserError
from pathray.run.layout import CHECKPOINTS, HANG, RAY, hang_note
from pathray.store.committed import list_committed
from pathray.store.outages import START, through_outages
from pathray.store.storage import Storage
from pathray.train.settings import LoopSettings
from pathray.train.step_watch import Hang, StepWatch

log = logging.getLogger(__name__)
EXIT_CODE = 1  # as faulthandler's, which ends a process that holds the interpreter lock
NOTE_S = 30.0  # storage may hang, too


def watch_steps(
    settings: LoopSettings, store: Storage, rank: int, fit_id: str, guard: Callable[[], None] = lambda: None
) -> StepWatch:
    """What looks at the steps of one rank of a run, not yet started. `guard` is called before the note is written: it
    raises when another start owns the run."""

    def end(hang: Hang) -> None:
        log.error("%s\nthreads of this process:\n%s", describe(vars(hang)), hang.stacks)
        note = {**vars(hang), "rank": rank, "fit_id": fit_id, "time": time.time()}
        writing = threading.Thread(target=_write, args=(store, rank, note, guard), daemon=True)
        writing.start()
        writing.join(NOTE_S)
        for handler in logging.getLogger().handlers:
            handler.flush()
        os._exit(EXIT_CODE)

    return StepWatch(settings.step_timeout_s, end)


def describe(note: dict[str, Any]) -> str:
    """
    >>> describe({"step": 3, "seconds": 61.2, "limit_s": 60.0})
    'step 3 hangs: it was busy for 61 s (scaling.step_timeout_s allows 60); the process ends, and a restart resumes'
    """
    return (
        f"step {note['step']} hangs: it was busy for {note['seconds']:.0f} s (scaling.step_timeout_s allows "
        f"{note['limit_s']:.0f}); the process ends, and a restart resumes"
    )


def read_notes(store: Storage) -> list[dict[str, Any]]:
    """What each rank noted of its last step that hung."""
    return [json.loads(store.read_bytes(f"{RAY}/{name}")) for name in store.list(RAY) if name.startswith(HANG)]


def log_earlier(store: Storage, step: int) -> None:
    """Say which steps hung before, of those that are still to be taken after `step`."""
    for note in through_outages(lambda: read_notes(store), START):
        if note["step"] > step:
            words = "an earlier attempt ended on rank %d because step %d was busy for %.0f s: %s"
            log.warning(words, note["rank"], note["step"], note["seconds"], store.join(hang_note(note["rank"])))


def hang_error(store: Storage, fit_id: str) -> UserError | None:
    """The error of a job whose attempts were ended by a step that hung; None where none was. A hang that a checkpoint
    has left behind ended an attempt that others continued: it is not what ends the job."""
    reached = max((int(found.meta.get("step", 0)) for found in list_committed(store.join(CHECKPOINTS))), default=0)
    notes = [note for note in read_notes(store) if note["fit_id"] == fit_id and note["step"] > reached]
    if not notes:
        return None
    newest = max(notes, key=lambda note: float(note["time"]))
    return UserError(
        f"step {newest['step']} hangs on rank {newest['rank']}, again after restarts",
        file=store.join(hang_note(newest["rank"])),
        key="scaling.step_timeout_s",
        found=f"busy for {newest['seconds']:.0f} s",
        expected=f"at most {newest['limit_s']:.0f} s; the file has the stacks. Try a smaller micro-batch or model",
    )


def _write(store: Storage, rank: int, note: dict[str, Any], guard: Callable[[], None]) -> None:
    try:
        guard()
        store.without_retries().write_bytes(hang_note(rank), json.dumps(note, indent=1).encode())
    except Exception:  # the process ends whatever storage says
        log.exception("the step that hangs could not be noted")
