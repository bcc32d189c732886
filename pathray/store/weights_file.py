"""Reads a local file of weights: safetensors, or what torch saved. Only tensors and plain values, never code.

Not here: which files (pathray.features.published.files, mil.model.weights_file), what the tensors mean.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from pathray.errors import UserError


def load_weights(local: Path, where: str) -> Any:
    """The content of the file, on the CPU; `where` is what errors call it, and its ending says the format.

    UserError for a file that is damaged, of another format, or that holds code.
    """
    if where.endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(local))
        except (SafetensorError, OSError, ValueError) as e:
            raise UserError("not a file of weights, or damaged", file=where, found=str(e)[:200]) from e
    import torch

    try:
        return torch.load(local, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as e:
        message, expected = "the file holds more than weights, or is damaged", "a state_dict, or safetensors"
        said = next(iter(str(e).strip().splitlines()), type(e).__name__)[:160]
        raise UserError(message, file=where, found=said, expected=expected) from e
