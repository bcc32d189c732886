"""What AdamW, SGD and LARS share: named parameters, flat state, scalars on the device, a strict state dict.

Everything that changes between steps (learning rate, weight decay, whether the step counts) is a tensor on the device,
so a step never waits for the host and XLA compiles one graph. State is one flat tensor per moment, in parameter order,
so a few kernels handle any number of parameters.
Not here: clipping, schedules, deciding that a step is bad.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pathray.device import scalar as device_scalar
from pathray.errors import UserError
from pathray.optim.groups import decays


class Optimizer:
    """Base of the optimizers over `named_params`, in this order; `pathray.optim.groups.decays` selects weight decay.

    A missing gradient counts as zero. Parameters must be float32, on one device.
    """

    moments: tuple[str, ...] = ()

    def __init__(
        self, named_params: Iterable[tuple[str, nn.Parameter]], *, lr: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        named = list(named_params)
        self.names = [name for name, _ in named]
        self.params: list[Tensor] = [p for _, p in named]
        assert named and len(set(self.names)) == len(named), "parameter names must be unique"
        assert all(p.dtype == torch.float32 for p in self.params), "parameters must be float32; use autocast"
        self.device = self.params[0].device
        self.sizes = [p.numel() for p in self.params]
        self.decayed = [i for i, (name, p) in enumerate(named) if decays(name, p)]
        self.lr, self.weight_decay = self._scalar(lr), self._scalar(weight_decay)
        self.steps = torch.zeros((), dtype=torch.int64, device=self.device)
        self.flat = {m: torch.zeros(sum(self.sizes), device=self.device) for m in self.moments}
        self.views = {m: self.split(flat) for m, flat in self.flat.items()}

    def set(self, *, lr: float | Tensor | None = None, weight_decay: float | Tensor | None = None) -> None:
        """Set scalars for the following steps; floats are passed to the device as data, without waiting."""
        for scalar, value in ((self.lr, lr), (self.weight_decay, weight_decay)):
            if value is not None:
                scalar.copy_(device_scalar(value, self.device), non_blocking=True)

    @torch.no_grad()
    def step(self, ok: Tensor | None = None, gradient: Tensor | None = None) -> None:
        """One update. If the scalar tensor `ok` is 0, parameters, moments and step count do not change, even if
        gradients are NaN or Inf. `gradient` `[Σ sizes]` replaces the parameters' own gradients."""
        counts = torch.ones((), device=self.device) if ok is None else (ok != 0).to(self.device, torch.float32)
        self.steps += counts.to(torch.int64)
        self._update(gradient, counts)

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """``steps`` and ``<moment>/<parameter name>``: live tensors, which must be copied before the next step."""
        state = {"steps": self.steps}
        for moment, views in self.views.items():
            state |= {f"{moment}/{name}": view for name, view in zip(self.names, views, strict=True)}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the state of an optimizer over the same parameters. UserError, with nothing loaded, naming what is
        missing, unexpected or of a different shape."""
        own = self.state_dict()
        check_same_tensors(own, state, "the optimizer state")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat tensor, shaped like the parameters."""
        return [part.view_as(p) for part, p in zip(torch.split(flat, self.sizes), self.params, strict=True)]

    def _update(self, gradient: Tensor | None, ok: Tensor) -> None:
        """Move the parameters; `gradient` is flat or None for the parameters' own, `ok` is 1.0 or 0.0."""
        raise NotImplementedError

    def _gradients(self, gradient: Tensor | None) -> list[Tensor]:
        """The gradient of each parameter; must not be modified."""
        if gradient is not None:
            return self.split(gradient)
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]

    def _usable(self, gradient: Tensor | None, ok: Tensor) -> Tensor:
        """A flat copy of the gradient, zero if the step does not count."""
        if gradient is None:
            gradient = torch.cat([g.reshape(-1) for g in self._gradients(None)])
        return torch.where(ok > 0, gradient, 0.0)

    def _select_decayed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensors[i] for i in self.decayed]

    def _scalar(self, value: float) -> Tensor:
        return device_scalar(value, self.device)


def check_same_tensors(own: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
    """UserError naming up to five differences if the names or shapes of `found` and `own` differ."""
    missing, extra = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    if missing or extra:
        differing = [f"missing {n}" for n in missing[:5]] + [f"unexpected {n}" for n in extra[:5]]
        raise UserError(
            f"{what} does not match the model",
            key=(missing + extra)[0],
            found=f"{len(missing)} missing, {len(extra)} unexpected: {', '.join(differing)}",
        )
    for name, tensor in own.items():
        if tensor.shape != found[name].shape:
            raise UserError(
                f"{what} does not match the model",
                key=name,
                found=list(found[name].shape),
                expected=list(tensor.shape),
            )
