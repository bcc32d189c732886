"""Which model a user means by a folder: an artifact, a checkpoint, a fold, or a whole training.

| folder | model |
|---|---|
| an artifact (`fold_0/encoder`, `models/best_fold`, `models/ensemble`, `refit/encoder`) | itself |
| a checkpoint of a fold (`fold_0/checkpoints/NAME`) | its weights |
| a fold or another run (`fold_0`, `refit`) | its `encoder` |
| the output of train_mil | its `models/ensemble` |
"""

from __future__ import annotations

from dataclasses import dataclass

from mil.artifact import DESCRIPTION, Trained, load
from mil.export.checkpoint import load_checkpoint
from pathray.errors import MissingFile
from pathray.run.layout import CHECKPOINTS, ENCODER, RESULTS
from pathray.store.checkpoint import TENSORS
from pathray.store.storage import Storage

DESCRIPTIONS = (DESCRIPTION, "ensemble.json")  # of the kinds of artifact that mil.artifact.load reads
DEFAULT = "models/ensemble"  # of a training
LISTED = 12


@dataclass(frozen=True)
class Found:
    """The folder of the model, its path below the folder that was asked for (`name`, "" for itself), what is in it,
    and the scores of its training, if they are there."""

    folder: str
    name: str
    trained: Trained
    scores: str | None = None


def find_model(folder: str) -> Found:
    """The model of a folder or URL. MissingFile, with the models below it, if it is none of these; UserError for one
    that was altered."""
    store = Storage.of(folder)
    if _is_artifact(store, ""):
        return Found(folder, "", load(folder))
    if store.exists(TENSORS):
        return Found(folder, "", load_checkpoint(folder))
    if _is_artifact(store, ENCODER):
        return Found(store.join(ENCODER), ENCODER, load(store.join(ENCODER)))
    if _is_artifact(store, DEFAULT):
        scores = store.join(RESULTS) if store.exists(RESULTS) else None
        return Found(store.join(DEFAULT), DEFAULT, load(store.join(DEFAULT)), scores)
    message, below = "no model of slides here", models_below(store)
    found = f"models in {', '.join(below[:LISTED])}" if below else "none below it"
    expected = f"one of them: model={store.join(below[0])}" if below else "an artifact, a checkpoint or a training"
    raise MissingFile(message, file=folder, key="model", found=found, expected=expected)


def models_below(store: Storage) -> list[str]:
    """The artifacts and checkpoints in a training's or a fold's folder, as paths below it."""
    places = [""] + [f"{name}/" for name in sorted(store.list())] if store.exists() else []
    out = []
    for place in places:
        artifacts = [f"{place}{ENCODER}", f"{place}best_fold", f"{place}ensemble"]
        out += [name for name in artifacts if _is_artifact(store, name)]
        if not place and store.exists(CHECKPOINTS):
            names = [f"{CHECKPOINTS}/{name}" for name in sorted(store.list(CHECKPOINTS))]
            out += [name for name in names if store.exists(f"{name}/{TENSORS}")]
    return out


def _is_artifact(store: Storage, name: str) -> bool:
    return any(store.exists(f"{name}/{file}" if name else file) for file in DESCRIPTIONS)
