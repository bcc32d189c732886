"""Saves and loads trained slide models: weights, architecture, what they predict, and what their features must be.

Artifacts (pathray.store.artifact_kind) of two kinds: `MIL`, one model, described by ``mil.json``, and `ENSEMBLE`,
several that predict together, described by ``ensemble.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from mil.config import LossConfig, ModelConfig, RunConfig, TrainingConfig
from mil.model.build import model_of
from mil.model.ensemble import SlideEnsemble
from mil.model.slide_model import SlideModel
from mil.target import Target
from pathray.errors import UserError
from pathray.store.artifact_kind import WEIGHTS, ArtifactKind
from pathray.store.storage import Storage

__all__ = ["DESCRIPTION", "ENSEMBLE", "MIL", "WEIGHTS", "Trained", "load", "save", "save_copy", "save_ensemble"]

DESCRIPTION, OF_ENSEMBLE = "mil.json", "ensemble.json"
KEYS = frozenset(("model", "loss", "target", "encoder"))


def _build(description: Mapping[str, Any]) -> SlideModel:
    model = ModelConfig(**description["model"])
    return model_of(model, TrainingConfig(loss=LossConfig(**description["loss"])), target_in(description))


def _build_ensemble(description: Mapping[str, Any]) -> SlideEnsemble:
    return SlideEnsemble([_build(one) for one in description["members"]])


MIL: ArtifactKind[SlideModel] = ArtifactKind("slide model", DESCRIPTION, KEYS, _build, always_sealed=True)
ENSEMBLE: ArtifactKind[SlideEnsemble] = ArtifactKind(
    "slide ensemble", OF_ENSEMBLE, frozenset(("members", "target", "encoder")), _build_ensemble, always_sealed=True
)


@dataclass(frozen=True)
class Trained:
    """A network (evaluation mode, on the CPU, without gradients) and what it was built for; an ensemble's `target` is
    that of its first member."""

    net: SlideModel | SlideEnsemble
    target: Target
    description: Mapping[str, Any]


def save(
    folder: str, net: SlideModel, config: RunConfig, target: Target, provenance: Mapping[str, Any], encoder: str = ""
) -> None:
    """Write into `folder` (path or URL) and replace what is there. `encoder`: digest of the encoder's weights."""
    own = {
        "model": asdict(config.model) | {"checkpointing": False},
        "loss": asdict(config.training.loss),
        "target": asdict(target),
        "encoder": encoder,
    }
    MIL.save(folder, net, own, provenance)


def save_copy(folder: str, trained: Trained, **facts: Any) -> None:
    """Write a loaded single model into another folder; `facts` are added to its provenance."""
    own = {key: trained.description[key] for key in KEYS}
    MIL.save(folder, trained.net, own, {**trained.description["provenance"], **facts})


def save_ensemble(folder: str, members: Mapping[str, Trained]) -> None:
    """Write loaded single models, by name, as one that is their mean. UserError for other features or classes than the
    first one's: their mean would mean nothing."""
    first, *others = members.values()
    for name, one in list(members.items())[1:]:
        for key in ("dim", "label", "task", "classes"):
            found, expected = getattr(one.target, key), getattr(first.target, key)
            if found != expected:
                message, where = "models of one ensemble differ", f"{name}.{key}"
                raise UserError(message, file=folder, key=where, found=found, expected=expected)
    nets = [cast(SlideModel, one.net) for one in (first, *others)]
    own = {
        "members": [{key: one.description[key] for key in KEYS} for one in members.values()],
        "target": first.description["target"],
        "encoder": first.description["encoder"],
    }
    of = {name: {key: one.description[key] for key in ("sha256", "provenance")} for name, one in members.items()}
    ENSEMBLE.save(folder, SlideEnsemble(nets), own, {"members": of})


def load(folder: str) -> Trained:
    """The model or ensemble in `folder`. MissingFile if there is none; UserError if it was altered or is from a newer
    version."""
    kind = ENSEMBLE if Storage.of(folder).exists(OF_ENSEMBLE) else MIL
    net, description = kind.load(folder)
    return Trained(net, target_in(description), description)


def target_in(description: Mapping[str, Any]) -> Target:
    given = description["target"]
    mean, std = given["scale"]
    classes, counts = tuple(given["classes"]), tuple(given["counts"])
    return Target(given["dim"], given["label"], given["task"], classes, (mean, std), counts)
