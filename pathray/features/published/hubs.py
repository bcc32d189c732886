"""Weights by their name at a hub: ``hf:OWNER/NAME`` and ``timm:NAME``, where those packages are installed.

Hugging Face's files are fetched into its own cache and then read like any folder. Not here: access to gated models,
which the packages ask for themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pathray.errors import UserError
from pathray.features.published.files import Weights

if TYPE_CHECKING:
    from torch import Tensor

HF, TIMM = "hf:", "timm:"
PATTERNS = ["*.json", "*.safetensors", "pytorch_model*.bin"]


def fetch_folder(name: str) -> str:
    """The folder with the files of ``hf:OWNER/NAME``. UserError if the package is missing or the hub refuses."""
    hub = _package("huggingface_hub", name)
    repository = name.removeprefix(HF)
    return str(_ask(name, lambda: hub.snapshot_download(repository, allow_patterns=PATTERNS)))


def fetch_timm(name: str) -> Weights:
    """The tensors of ``timm:NAME``, and a digest over their names and bytes. UserError as for `fetch_folder`."""
    timm, model = _package("timm", name), name.removeprefix(TIMM)
    state = _ask(name, lambda: timm.create_model(model, pretrained=True, num_classes=0).state_dict())
    return Weights(state, {name: digest_of_tensors(state)})


def digest_of_tensors(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, types and bytes, in the order of names: for tensors that come without a file."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _package(package: str, name: str) -> Any:
    try:
        return import_module(package)
    except ImportError as e:
        expected = f"pip install {package.replace('_', '-')}, or weights=FOLDER with the downloaded files"
        message = f"this name needs the package {package}"
        raise UserError(message, key="weights", found=f"{name}: {package} is not installed", expected=expected) from e


def _ask(name: str, request: Callable[[], Any]) -> Any:
    try:
        return request()
    except Exception as e:  # each hub has its own exceptions; their texts may hold a token
        expected = "a name at the hub that you have access to, or weights=FOLDER with the downloaded files"
        found = f"{name}: {type(e).__name__}"
        raise UserError("the hub does not give these weights", key="weights", found=found, expected=expected) from None
