"""Exported artifacts: weights and a description in one folder, written and checked in one way.

``weights.safetensors`` and the kind's description, a sealed JSON that is written last: half an artifact is none. Each
kind says which keys describe it and how a module is built from them, by a function of its own: so the library knows no
science, and no network is imported before one is built. Nothing of training stays in an artifact; training state is in
pathray.store.checkpoint.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pathray.errors import MissingFile, UserError
from pathray.store.described import publish_with_description
from pathray.store.records import SEAL, add_seal, check_seal, parse_record, text
from pathray.store.storage import Storage, digest_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pathray.store.committed import CommittedWriter

Module = TypeVar("Module", bound="nn.Module")
SCHEMA_VERSION = 1
WEIGHTS = "weights.safetensors"
SHARED_KEYS = frozenset(("schema_version", "sha256", "provenance"))
REMEDY = "the file as the run wrote it: export or copy it again"


@dataclass(frozen=True)
class ArtifactKind(Generic[Module]):
    """`name` is what errors call it, `file` its description, `keys` what that holds in addition to every kind's keys.

    `build` makes the module, with any weights, from a description; what it cannot use is a ValueError, KeyError,
    TypeError or AttributeError, or a UserError of its own. `always_sealed`: no version wrote it without a seal.
    """

    name: str
    file: str
    keys: frozenset[str]
    build: Callable[[Mapping[str, Any]], Module]
    always_sealed: bool = False

    def save(
        self, folder: str, module: nn.Module, own: Mapping[str, Any], provenance: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write into `folder` (path or URL), replacing what is there; returns the description.

        own: values of `keys`. provenance: where it comes from. Plain values both; ValueError for NaN.
        """
        from safetensors.torch import save_file

        from pathray.store.checkpoint import cpu_copy

        with tempfile.TemporaryDirectory(prefix="pathray-") as temporary:
            weights = Path(temporary) / WEIGHTS
            save_file(cpu_copy(module.state_dict()), weights)
            description = text(self._description(own, provenance, digest_of(weights)))
            publish_with_description(Storage.of(folder), {WEIGHTS: weights}, self.file, description)
        return dict(json.loads(description))

    def write(
        self,
        directory: CommittedWriter,
        folder: str,
        tensors: dict[str, Tensor],
        own: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> None:
        """Write into `folder` of a committed directory, from copies of the module's tensors."""
        from safetensors.torch import save_file

        weights = f"{folder}/{WEIGHTS}"
        with directory.local_file(weights) as path:
            save_file(tensors, path)
        description = self._description(own, provenance, directory.files[weights]["sha256"])
        directory.write_bytes(f"{folder}/{self.file}", text(description))

    def describe(self, folder: str) -> dict[str, Any]:
        """The description, whole and unaltered. MissingFile when there is none, UserError as for `load`."""
        store = Storage.of(folder)
        where, kind = store.join(self.file), f"{self.name}'s description"
        try:
            data = store.read_bytes(self.file)
        except (MissingFile, NotADirectoryError) as e:
            expected = f"a folder with {self.file}, as a run exports it"
            raise MissingFile(f"no {self.name} here", file=folder, expected=expected) from e
        description = parse_record(data, where, kind)
        found = description.get("schema_version")
        if isinstance(found, int) and found > SCHEMA_VERSION:
            raise UserError("written by a newer version", file=where, found=found, expected=f"at most {SCHEMA_VERSION}")
        known = self.keys | SHARED_KEYS
        needed = known | {SEAL} if self.always_sealed else known
        if lacking := sorted(needed - description.keys()):
            message = f"invalid or damaged {kind}"
            raise UserError(message, file=where, key=lacking[0], found=sorted(description))
        check_seal(description, where, kind, known)
        return description

    def load(self, folder: str) -> tuple[Module, dict[str, Any]]:
        """The module (on the CPU, in evaluation mode, without gradients) and its description.

        MissingFile when there is none; UserError when it was altered, is of a newer version or cannot be built.
        """
        from pathray.store.checkpoint import check_tensors

        store, description = Storage.of(folder), self.describe(folder)
        tensors = read_weights(store, description["sha256"])
        where = store.join(self.file)
        try:
            module = self.build(description)
        except UserError as e:
            raise UserError(e.message, **{**e.where, "file": e.where["file"] or where}) from e
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            message, found = f"this description of a {self.name} cannot be used", f"{type(e).__name__}: {e}"[:200]
            raise UserError(message, file=where, found=found, expected=REMEDY) from e
        check_tensors(tensors, module.state_dict(), source=store.join(WEIGHTS))
        module.load_state_dict(tensors)
        return module.requires_grad_(False).eval(), description

    def _description(self, own: Mapping[str, Any], provenance: Mapping[str, Any], sha256: str) -> dict[str, Any]:
        assert own.keys() == self.keys, sorted(own.keys() ^ self.keys)
        shared = {"schema_version": SCHEMA_VERSION, "sha256": sha256, "provenance": dict(provenance)}
        return add_seal({**own, **shared})


def read_weights(store: Storage, sha256: str) -> dict[str, Tensor]:
    """The tensors of an artifact's weights, their digest checked before anything looks into them.

    MissingFile when they are not there, UserError when they were altered.
    """
    from safetensors.torch import load_file

    def load_verified(path: Path) -> dict[str, Tensor]:
        if (found := digest_of(path)) != sha256:
            raise UserError("the weights were altered", file=store.join(WEIGHTS), found=found, expected=sha256)
        return load_file(path)

    return store.read_local(WEIGHTS, load_verified)
