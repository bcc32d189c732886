"""Encoders for inference: how an encoder passes from one science to another, to extraction, evaluation and serving.

An artifact of the kind `ENCODER` (pathray.store.artifact_kind), described by ``artifact.json``: architecture and the
preprocessing it was trained with. Importing this imports no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pathray.errors import UserError
from pathray.store.artifact_kind import WEIGHTS, ArtifactKind

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pathray.nn.vit import ViT, ViTConfig
    from pathray.store.committed import CommittedWriter

__all__ = ["DESCRIPTION", "ENCODER", "WEIGHTS", "Encoder", "EncoderArtifact", "describe"]

DESCRIPTION = "artifact.json"
LAYOUTS = {2: "NCHW", 3: "NCDHW"}
PREPROCESSING = ("mean", "std", "size", "mpp")
KEYS = frozenset(("architecture", "vit", "preprocessing", "mpp", "science"))


def _build(description: Mapping[str, Any]) -> ViT:
    from pathray.nn.vit import ViT, ViTConfig

    if (found := description["architecture"]) != "vit":
        raise UserError("an encoder of another architecture", key="architecture", found=found, expected="vit")
    return ViT(ViTConfig(**description["vit"]))


ENCODER: ArtifactKind[ViT] = ArtifactKind("encoder", DESCRIPTION, KEYS, _build, always_sealed=True)


@dataclass(frozen=True)
class Encoder:
    """What a recipe exports: a ViT among its modules, and what `EncoderArtifact.save` wants to know of it."""

    vit: ViT
    preprocessing: Mapping[str, Any]
    science: str
    provenance: Mapping[str, Any]

    def save(self, folder: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """As an artifact of its own; `facts` (images seen …) are added to the provenance."""
        provenance = {**self.provenance, **facts}
        return EncoderArtifact.save(
            folder, self.vit, preprocessing=self.preprocessing, science=self.science, provenance=provenance
        )

    def names_in(self, modules: nn.Module) -> dict[str, str]:
        """Names of the ViT's tensors → their names in the state of `modules`, which it is one of."""
        prefix = next(name for name, module in modules.named_modules() if module is self.vit)
        return {name: f"{prefix}.{name}" if prefix else name for name in self.vit.state_dict()}

    def write(
        self, directory: CommittedWriter, folder: str, tensors: dict[str, Tensor], facts: Mapping[str, Any]
    ) -> None:
        """As an artifact in `folder` of a committed directory, from copies of its tensors."""
        own = _encoder_facts(self.vit.config, self.preprocessing, self.science)
        ENCODER.write(directory, folder, tensors, own, {**self.provenance, **facts})


class EncoderArtifact:
    """`save` and `load`; the description is a plain dict with `vit`, `preprocessing`, `science`, `mpp`, `sha256`,
    `provenance` and `schema_version`."""

    @staticmethod
    def save(
        folder: str, vit: ViT, *, preprocessing: Mapping[str, Any], science: str, provenance: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write an encoder into `folder` (path or URL), replacing one that is there; returns the description.

        preprocessing: `mean` and `std` per channel (of values in 0 … 1), `size` in pixels, `mpp` (None where a spacing
        says it), and whatever else is needed to repeat it; `layout` of the input is NCHW or NCDHW unless given.
        provenance: plain values; NaN is refused.
        """
        return ENCODER.save(folder, vit, _encoder_facts(vit.config, preprocessing, science), provenance)

    @staticmethod
    def load(folder: str) -> tuple[ViT, dict[str, Any]]:
        """The encoder (on the CPU, in evaluation mode, without gradients) and its description.

        MissingFile when there is none; UserError when it was altered, is of a newer version or of another architecture.
        """
        return ENCODER.load(folder)


def describe(folder: str) -> dict[str, Any]:
    """The description of an encoder without its weights, checked for being whole. Raises as `EncoderArtifact.load`."""
    return ENCODER.describe(folder)


def _encoder_facts(config: ViTConfig, preprocessing: Mapping[str, Any], science: str) -> dict[str, Any]:
    missing = [key for key in PREPROCESSING if key not in preprocessing]
    assert not missing, f"preprocessing lacks {missing}"
    return {
        "architecture": "vit",
        "vit": asdict(config),
        "preprocessing": {"layout": LAYOUTS[len(config.patch_size)], **preprocessing},
        "mpp": preprocessing["mpp"],
        "science": science,
    }
