"""What a caller hands over as images: paths, or an array of NumPy or torch. Checked here, read elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pathray.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Path = str | os.PathLike[str]
EXPECTED = "a path, a list of paths, or uint8 [N, H, W, 3] of NumPy or torch"


def paths_in(images: object) -> list[str] | None:
    """The paths in one path or a sequence of paths; None for anything else."""
    if isinstance(images, str | os.PathLike):
        return [os.fspath(images)]
    if isinstance(images, Sequence) and all(isinstance(image, str | os.PathLike) for image in images):
        return [os.fspath(image) for image in images]
    return None


def array_in(images: object) -> npt.NDArray[np.uint8]:
    """uint8 ``[N, H, W, 3]`` of NumPy, of an array or a tensor on any device. UserError for anything else."""
    if is_tensor(images):
        images = images.detach().cpu().numpy()  # type: ignore[attr-defined]
    if not isinstance(images, np.ndarray):
        raise UserError("not images", found=type(images).__name__, expected=EXPECTED)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UserError("not images", found=f"{images.dtype}{list(images.shape)}", expected=EXPECTED)
    return images


def match_input(result: npt.NDArray[Any], images: object) -> npt.NDArray[Any] | Tensor:
    """`result` as a tensor on the device of `images` where these are a tensor, else as it is."""
    if not is_tensor(images):
        return result
    import torch

    return torch.from_numpy(result).to(images.device)  # type: ignore[attr-defined]


def is_tensor(value: object) -> bool:
    """Whether a value is a torch tensor. Does not import torch: without it nothing can be one."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
