"""A checkpoint of a training run as a model, of any moment of the run. Not here: the run's artifact (mil.artifact)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from mil.artifact import Trained
from mil.config import LossConfig, ModelConfig, TrainingConfig
from mil.model.build import model_of
from mil.plan import target_of
from mil.settings import SCIENCE
from pathray.data.plan import Plan
from pathray.errors import UserError
from pathray.run.layout import PLAN
from pathray.store import checkpoint
from pathray.store.storage import Storage

NET = "model.net."  # how the names of a recipe's network begin


def load_checkpoint(folder: str) -> Trained:
    """The network of `run`/checkpoints/NAME, in evaluation mode; what it predicts is in the run's plan.

    MissingFile without the plan; UserError for a damaged checkpoint and for one of another science.
    """
    tensors, meta = checkpoint.load(folder)
    if meta.get("science") != SCIENCE:
        message = "not a checkpoint of a slide model"
        raise UserError(message, file=folder, key="science", found=meta.get("science"), expected=SCIENCE)
    run = folder.rstrip("/").rsplit("/", 2)[0]
    target = target_of(Plan.open(Storage.of(run).join(PLAN)))
    values = meta["identity"]["values"]
    model = ModelConfig(values["model.name"], _below(values, "model.arguments."))
    known = {field.name for field in fields(LossConfig)}
    loss = LossConfig(**{key: value for key, value in _below(values, "training.loss.").items() if key in known})
    net = model_of(model, TrainingConfig(loss=loss), target)
    weights = {name.removeprefix(NET): value for name, value in tensors.items() if name.startswith(NET)}
    checkpoint.check_tensors(weights, net.state_dict(), source=folder)
    net.load_state_dict(weights)
    facts = {"images_seen": meta["images_seen"], "checkpoint": folder.rstrip("/").rsplit("/", 1)[-1], "config": values}
    description: dict[str, Any] = {
        "model": asdict(model), "loss": asdict(loss), "target": asdict(target), "encoder": "",
        "sha256": checkpoint_digest(folder), "provenance": facts,
    }  # fmt: skip
    return Trained(net.requires_grad_(False).eval(), target, description)


def checkpoint_digest(folder: str) -> str:
    from pathray.store.committed import read_committed

    return str(read_committed(folder).files[checkpoint.TENSORS]["sha256"])


def _below(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The values of one section of a flat config. Sections of sections stay flat: no model has any."""
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
