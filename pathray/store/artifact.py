"""Encoders for inference: weights, architecture and the preprocessing they were trained with, in one folder.

``weights.safetensors`` and ``artifact.json`` (written last). How an encoder passes from one science to another, to
extraction, to evaluation and to serving; nothing of training stays in it. Not here: training state
(pathray.store.checkpoint).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pathray.errors import MissingFile, UserError
from pathray.nn.vit import ViT, ViTConfig
from pathray.store.checkpoint import check_tensors, cpu_copy
from pathray.store.records import SEAL, check_seal, parsed, sealed, text
from pathray.store.storage import Storage, digest_of

if TYPE_CHECKING:
    from pathray.store.committed import CommittedWriter

SCHEMA_VERSION = 1
WEIGHTS, DESCRIPTION = "weights.safetensors", "artifact.json"
LAYOUTS = {2: "NCHW", 3: "NCDHW"}
PREPROCESSING = ("mean", "std", "size", "mpp")
KEYS = frozenset(("schema_version", "architecture", "vit", "preprocessing", "mpp", "science", "sha256", "provenance"))


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
        from safetensors.torch import save_file

        weights = f"{folder}/{WEIGHTS}"
        with directory.local_file(weights) as path:
            save_file(tensors, path)
        provenance = {**self.provenance, **facts}
        sha256 = directory.files[weights]["sha256"]
        description = _describe(self.vit.config, self.preprocessing, self.science, provenance, sha256)
        directory.write_bytes(f"{folder}/{DESCRIPTION}", text(description))


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
        from safetensors.torch import save_file

        store = Storage.of(folder)
        store.remove(DESCRIPTION)  # a half-replaced artifact is no artifact
        with tempfile.TemporaryDirectory(prefix="pathray-") as temporary:
            weights = Path(temporary) / WEIGHTS
            save_file(cpu_copy(vit.state_dict()), weights)
            sha256 = digest_of(weights)
            store.put(weights, WEIGHTS)
        description = _describe(vit.config, preprocessing, science, provenance, sha256)
        store.write_bytes(DESCRIPTION, text(description))
        return dict(json.loads(text(description)))

    @staticmethod
    def load(folder: str) -> tuple[ViT, dict[str, Any]]:
        """The encoder (on the CPU, in evaluation mode, without gradients) and its description.

        MissingFile when there is none; UserError when it was altered, is of a newer version or of another architecture.
        """
        store = Storage.of(folder)
        description = describe(folder)
        tensors = read_weights(store, description["sha256"])
        if description["architecture"] != "vit":
            found = description["architecture"]
            raise UserError("an encoder of another architecture", file=folder, found=found, expected="vit")
        try:
            vit = ViT(ViTConfig(**description["vit"]))
        except TypeError as e:
            raise UserError(f"not a description of a ViT: {e}", file=store.join(DESCRIPTION), key="vit") from e
        check_tensors(tensors, vit.state_dict(), source=store.join(WEIGHTS))
        vit.load_state_dict(tensors)
        return vit.requires_grad_(False).eval(), description


def describe(folder: str) -> dict[str, Any]:
    """The description of an encoder without its weights, checked for being whole. Raises as `EncoderArtifact.load`."""
    return read_description(folder, DESCRIPTION, "encoder", SCHEMA_VERSION, KEYS, always_sealed=True)


def read_description(
    folder: str, name: str, what: str, version: int, keys: frozenset[str], *, always_sealed: bool = False
) -> dict[str, Any]:
    """The description `name` of an artifact in `folder`, whole and unaltered; those of older versions have no seal.

    MissingFile when there is none; UserError when it is damaged, lacks one of `keys` or is of a newer version.
    """
    store = Storage.of(folder)
    where, kind = store.join(name), f"{what}'s description"
    try:
        data = store.read_bytes(name)
    except (MissingFile, NotADirectoryError) as e:
        expected = f"a folder with {name}, as a run exports it"
        raise MissingFile(f"no {what} here", file=folder, expected=expected) from e
    description = parsed(data, where, kind)
    found = description.get("schema_version")
    if isinstance(found, int) and found > version:
        raise UserError("written by a newer version", file=where, found=found, expected=f"at most {version}")
    needed = keys | {SEAL} if always_sealed else keys
    if lacking := sorted(needed - description.keys()):
        raise UserError(f"this is no {kind}, or a damaged one", file=where, key=lacking[0], found=sorted(description))
    check_seal(description, where, kind, keys)
    return description


def read_weights(store: Storage, sha256: str) -> dict[str, Tensor]:
    """The tensors of an artifact's weights, their digest checked before anything looks into them.

    MissingFile when they are not there, UserError when they were altered.
    """
    from safetensors.torch import load_file

    def checked(path: Path) -> dict[str, Tensor]:
        if (found := digest_of(path)) != sha256:
            raise UserError("the weights were altered", file=store.join(WEIGHTS), found=found, expected=sha256)
        return load_file(path)

    return store.read_local(WEIGHTS, checked)


def _describe(
    config: ViTConfig, preprocessing: Mapping[str, Any], science: str, provenance: Mapping[str, Any], sha256: str
) -> dict[str, Any]:
    missing = [key for key in PREPROCESSING if key not in preprocessing]
    assert not missing, f"preprocessing lacks {missing}"
    return sealed(
        {
            "schema_version": SCHEMA_VERSION,
            "architecture": "vit",
            "vit": asdict(config),
            "preprocessing": {"layout": LAYOUTS[len(config.patch_size)], **preprocessing},
            "mpp": preprocessing["mpp"],
            "science": science,
            "sha256": sha256,
            "provenance": dict(provenance),
        }
    )
