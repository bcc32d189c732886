"""Encoders for inference: how an encoder passes from one science to another, to extraction, evaluation and serving.

An artifact (pathray.store.artifact_kind) described by ``artifact.json``: architecture and the preprocessing it was
trained with. Most are of the kind `ENCODER`, a ViT. `IMPORTED` are networks of another form, which are used as they are
and not trained further. Importing this imports no network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pathray.errors import MissingFile, UserError
from pathray.store.artifact_kind import WEIGHTS, ArtifactKind
from pathray.store.storage import Storage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pathray.nn.vit import ViT, ViTConfig
    from pathray.store.committed import CommittedWriter

__all__ = [
    "DESCRIPTION", "ENCODER", "IMPORTED", "WEIGHTS", "Encoder", "EncoderArtifact", "describe", "describe_vit",
    "kind_of", "load_network",
]  # fmt: skip

DESCRIPTION = "artifact.json"
LAYOUTS = {2: "NCHW", 3: "NCDHW"}
PREPROCESSING = ("mean", "std", "size", "mpp")
KEYS = frozenset(("architecture", "vit", "preprocessing", "mpp", "science"))
POOLED, PROGRAM = "vit+attention", "program"  # architectures of `IMPORTED`


def _build(description: Mapping[str, Any]) -> ViT:
    from pathray.nn.vit import ViT, ViTConfig

    if (found := description["architecture"]) != "vit":
        raise UserError("an encoder of another architecture", key="architecture", found=found, expected="vit")
    return ViT(ViTConfig(**description["vit"]))


def _build_imported(description: Mapping[str, Any]) -> nn.Module:
    from pathray.nn.attention_pool import PooledViT
    from pathray.nn.program import Program

    kinds: dict[str, type[PooledViT | Program]] = {POOLED: PooledViT, PROGRAM: Program}
    if (found := description["architecture"]) not in kinds:
        raise UserError("an encoder of another architecture", key="architecture", found=found, expected=sorted(kinds))
    return kinds[found].of(description["network"])


ENCODER: ArtifactKind[ViT] = ArtifactKind("encoder", DESCRIPTION, KEYS, _build, always_sealed=True)
IMPORTED: ArtifactKind[nn.Module] = ArtifactKind(
    "encoder", DESCRIPTION, KEYS - {"vit"} | {"network"}, _build_imported, always_sealed=True
)


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
        describe_vit(folder)
        return ENCODER.load(folder)


def describe(folder: str) -> dict[str, Any]:
    """The description of an encoder without its weights, checked for being whole: with `vit` or, if it is `IMPORTED`,
    with `network`. Raises as `EncoderArtifact.load`."""
    return kind_of(folder).describe(folder)


def describe_vit(folder: str) -> dict[str, Any]:
    """The same of an encoder that is a ViT and can be trained further; UserError for any other."""
    description = describe(folder)
    if "vit" not in description:
        message = "this imported encoder can only be used as it is"
        expected = "a ViT; or its features, by ray_jobs.extract_features"
        raise UserError(message, file=folder, key="architecture", found=description["architecture"], expected=expected)
    return description


def load_network(folder: str) -> tuple[nn.Module, dict[str, Any]]:
    """The network of any encoder, as `EncoderArtifact.load` gives a ViT, and its description."""
    return kind_of(folder).load(folder)


def kind_of(folder: str) -> ArtifactKind[Any]:
    """`IMPORTED` if the description has a `network`; otherwise `ENCODER`, which also says what is wrong with it."""
    try:
        found = json.loads(Storage.of(folder).read_bytes(DESCRIPTION))
    except (MissingFile, NotADirectoryError, ValueError):
        return ENCODER
    return IMPORTED if isinstance(found, dict) and "network" in found else ENCODER


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
