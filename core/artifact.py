"""Encoders for inference: weights, architecture and the preprocessing they were trained with, in one folder.

``weights.safetensors`` and ``artifact.json`` (written last). How an encoder passes from one science to another, to
extraction, to evaluation and to serving; nothing of training stays in it. Not here: training state (core.checkpoint).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from core.checkpoint import check_tensors, cpu_copy
from core.errors import MissingFile, UserError
from core.nn.vit import ViT, ViTConfig
from core.storage import Storage, digest_bytes, digest_of

if TYPE_CHECKING:
    from core.committed import CommittedWriter

SCHEMA_VERSION = 1
WEIGHTS, DESCRIPTION = "weights.safetensors", "artifact.json"
LAYOUTS = {2: "NCHW", 3: "NCDHW"}
PREPROCESSING = ("mean", "std", "size", "mpp")


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
        digest = directory.files[weights]["sha256"]
        text = _text(_describe(self.vit.config, self.preprocessing, self.science, provenance, digest))
        directory.write_bytes(f"{folder}/{DESCRIPTION}", text)


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
            digest = digest_of(weights)
            store.put(weights, WEIGHTS)
        text = _text(_describe(vit.config, preprocessing, science, provenance, digest))
        store.write_bytes(DESCRIPTION, text)
        return dict(json.loads(text))

    @staticmethod
    def load(folder: str) -> tuple[ViT, dict[str, Any]]:
        """The encoder (on the CPU, in evaluation mode, without gradients) and its description.

        MissingFile when there is none; UserError when it was altered, is of a newer version or of another architecture.
        """
        from safetensors.torch import load_file

        store = Storage.of(folder)
        description = describe(folder)

        def checked(path: Path) -> dict[str, Tensor]:
            found, expected = digest_of(path), description["sha256"]
            if found != expected:
                where = store.join(WEIGHTS)
                raise UserError("the encoder's weights were altered", file=where, found=found, expected=expected)
            return load_file(path)

        tensors = store.read_local(WEIGHTS, checked)
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
    store = Storage.of(folder)
    where = store.join(DESCRIPTION)
    try:
        description: dict[str, Any] = json.loads(store.read_bytes(DESCRIPTION))
        version, digest = int(description["schema_version"]), description["digest"]
    except MissingFile as e:
        raise MissingFile("no encoder here", file=folder, expected=DESCRIPTION) from e
    except (json.JSONDecodeError, KeyError, TypeError) as e:
        raise UserError(f"not a description of an encoder: {e!r}", file=where) from e
    if version > SCHEMA_VERSION:
        raise UserError("written by a newer version", file=where, found=version, expected=f"at most {SCHEMA_VERSION}")
    if digest != _digest(description):
        raise UserError("the encoder's description was altered", file=where, key="digest")
    return description


def _describe(
    config: ViTConfig, preprocessing: Mapping[str, Any], science: str, provenance: Mapping[str, Any], digest: str
) -> dict[str, Any]:
    missing = [key for key in PREPROCESSING if key not in preprocessing]
    assert not missing, f"preprocessing lacks {missing}"
    description = {
        "schema_version": SCHEMA_VERSION,
        "architecture": "vit",
        "vit": asdict(config),
        "preprocessing": {"layout": LAYOUTS[len(config.patch_size)], **preprocessing},
        "mpp": preprocessing["mpp"],
        "science": science,
        "sha256": digest,
        "provenance": dict(provenance),
    }
    return {**description, "digest": _digest(description)}


def _text(description: Mapping[str, Any]) -> bytes:
    return json.dumps(description, indent=1, sort_keys=True, allow_nan=False).encode()


def _digest(description: Mapping[str, Any]) -> str:
    body = {key: value for key, value in description.items() if key != "digest"}
    return digest_bytes(json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
