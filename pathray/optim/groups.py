"""Selects the parameters with weight decay. Not here: its strength (pathray.optim.schedules)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

NamedParameters = list[tuple[str, nn.Parameter]]
TOKENS = ("token", "tokens", "pos_embed")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, norms and other 1-D parameters, learned tokens, position tables."""
    return parameter.ndim > 1 and not name.endswith((".bias", *TOKENS)) and name != "bias"


def decay_groups(named_params: Iterable[tuple[str, nn.Parameter]]) -> tuple[NamedParameters, NamedParameters]:
    """The parameters with weight decay and those without, each in the given order."""
    with_decay: NamedParameters = []
    without: NamedParameters = []
    for name, parameter in named_params:
        (with_decay if decays(name, parameter) else without).append((name, parameter))
    return with_decay, without
