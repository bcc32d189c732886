"""The tensors of a published encoder as the state of Pathray's network: complete, of the right shapes, or refused.

Nothing is loaded partially, and nothing that the file holds is left out unless its layout says that it has no part in
the features. Values are converted to float32, which is exact for halves. Not here: files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pathray.errors import UserError
from pathray.features.published.models import Published
from pathray.features.published.names import IGNORED, rules_of

if TYPE_CHECKING:
    from torch import Tensor, nn

NAMED = 5


def convert(model: Published, given: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """Our names → float32 tensors. UserError naming the parameters that are missing, unexpected, of another shape
    (with both shapes), not floating-point, or not finite."""
    rules = rules_of(model)
    check_names(model, given, file)
    return {rule.target: rule.make(*(given[name].float() for name, _ in rule.sources)).contiguous() for rule in rules}


def check_names(model: Published, given: Mapping[str, Tensor], file: str) -> None:
    """The check of `convert` alone."""
    wanted = {name: shape for rule in rules_of(model) for name, shape in rule.sources}
    if missing := [name for name in wanted if name not in given]:
        raise UserError(f"the weights lack parameters of {model.name}", file=file, key=missing[0], found=_some(missing))
    for name, shape in wanted.items():
        if (found := tuple(given[name].shape)) != shape:
            message = f"a parameter of another shape than {model.name}'s"
            raise UserError(message, file=file, key=name, found=list(found), expected=list(shape))
    known = IGNORED[model.layout]
    if unexpected := [name for name in given if name not in wanted and not name.startswith(known)]:
        message = f"the weights hold parameters that {model.name} does not have"
        raise UserError(message, file=file, key=unexpected[0], found=_some(unexpected))
    for name in wanted:
        tensor = given[name]
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            what = "NaN or Inf" if tensor.is_floating_point() else str(tensor.dtype)
            raise UserError("a parameter is not finite numbers", file=file, key=name, found=what)


def build(model: Published, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network with these tensors (as `convert` gives them), without a copy of them."""
    import torch

    with torch.device("meta"):
        network = empty(model)
    network.load_state_dict(dict(tensors), strict=True, assign=True)
    return network.requires_grad_(False).eval()


def empty(model: Published) -> nn.Module:
    """The network of a row, with any weights."""
    from pathray.nn.attention_pool import PooledViT
    from pathray.nn.vit import ViT, ViTConfig

    if model.pool is None:
        return ViT(ViTConfig(**model.vit()))
    return PooledViT.of({"vit": model.vit(), "pool": model.pool})


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
