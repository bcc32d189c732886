"""What an optimizer around another one passes on: its rate, counters, names and state are those of the inner one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from torch import Tensor

from pathray.optim.optimizer import Optimizer

Inner = TypeVar("Inner", bound="Optimizer | AroundOptimizer[Optimizer]")


class AroundOptimizer(Generic[Inner]):
    """The interface of an optimizer but for `step` and `set`, which a subclass has of its own."""

    def __init__(self, inner: Inner) -> None:
        self.inner = inner

    @property
    def lr(self) -> Tensor:
        return self.inner.lr

    @property
    def steps(self) -> Tensor:
        return self.inner.steps

    @property
    def names(self) -> list[str]:
        return self.inner.names

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def state_dict(self) -> dict[str, Tensor]:
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.inner.load_state_dict(state)
