"""The end of a run on rank 0: the state that validation found best, where the science selects one, and the artifact."""

from __future__ import annotations

from pathray.run.layout import CHECKPOINTS, ENCODER
from pathray.run.saves import provenance
from pathray.store import checkpoint
from pathray.store.committed import list_committed
from pathray.store.storage import Storage
from pathray.train.assembly import Assembly
from pathray.train.state import TrainState
from pathray.train.supervised import selection_state


def export(parts: Assembly, state: TrainState, store: Storage) -> str:
    """Write the final artifact of the state, or of the best one; where it is."""
    _load_best(parts, state, store)
    artifact = store.join(ENCODER)
    parts.export(parts.recipe, artifact, provenance(parts, state))
    return artifact


def _load_best(parts: Assembly, state: TrainState, store: Storage) -> None:
    """Not simply the newest: a run that resumed from before an older best may have found it elsewhere since."""
    if parts.selection is None:
        return
    kept = list_committed(store.join(CHECKPOINTS), f"{parts.tag}-best")
    at = selection_state(state).best_images_seen
    if kept:
        best = max(kept, key=lambda c: (int(c.meta["images_seen"]) == at, int(c.meta["images_seen"])))
        state.load(*checkpoint.load(best.path))
