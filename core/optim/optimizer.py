"""What AdamW, SGD and LARS share: named parameters, flat state, scalars on the device, a strict state dict.

Everything that changes from step to step (learning rate, weight decay, whether the step counts) is a tensor on the
device, so a step never waits for the host and a compiled XLA graph is built once. State is one flat tensor per moment,
in the order of the parameters; gradients are made flat, so that a handful of kernels serves any number of parameters.
Not here: clipping, schedules, and who decides that a step is bad.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from core.device import scalar as device_scalar
from core.errors import UserError
from core.optim.groups import decays


class Optimizer:
    """Base of the optimizers over `named_params`, in that order; weight decay applies where `core.optim.groups.decays`.

    A parameter without a gradient counts as one whose gradient is zero. Parameters are float32, on one device.
    """

    moments: tuple[str, ...] = ()

    def __init__(
        self, named_params: Iterable[tuple[str, nn.Parameter]], *, lr: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        named = list(named_params)
        self.names = [name for name, _ in named]
        self.params: list[Tensor] = [p for _, p in named]
        assert named and len(set(self.names)) == len(named), "parameters have unique names"
        assert all(p.dtype == torch.float32 for p in self.params), "parameters are float32; autocast does the rest"
        self.device = self.params[0].device
        self.sizes = [p.numel() for p in self.params]
        self.decayed = [i for i, (name, p) in enumerate(named) if decays(name, p)]
        self.lr, self.weight_decay = self._scalar(lr), self._scalar(weight_decay)
        self.steps = torch.zeros((), dtype=torch.int64, device=self.device)
        self.flat = {m: torch.zeros(sum(self.sizes), device=self.device) for m in self.moments}

    def set(self, *, lr: float | Tensor | None = None, weight_decay: float | Tensor | None = None) -> None:
        """New scalars for the steps to come; floats travel to the device as data, without a wait."""
        for scalar, value in ((self.lr, lr), (self.weight_decay, weight_decay)):
            if value is not None:
                scalar.copy_(device_scalar(value, self.device), non_blocking=True)

    @torch.no_grad()
    def step(self, ok: Tensor | None = None, gradient: Tensor | None = None) -> None:
        """One update. Where the scalar tensor `ok` is 0 nothing changes: neither parameters, nor moments, nor the step
        count, whatever NaN or Inf the gradients hold. `gradient` `[Σ sizes]` stands in for the parameters' own."""
        flat = self._flat_gradient() if gradient is None else gradient
        counts = torch.ones((), device=self.device) if ok is None else (ok != 0).to(self.device, torch.float32)
        if ok is not None:
            flat = torch.where(counts > 0, flat, 0.0)
        elif gradient is not None:
            flat = flat.clone()
        self.steps += counts.to(torch.int64)
        self._update(flat, counts)

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """``steps`` and ``<moment>/<parameter name>``; live tensors, to be copied before the next step."""
        state = {"steps": self.steps}
        for moment, flat in self.flat.items():
            state |= {f"{moment}/{name}": view for name, view in zip(self.names, self.split(flat), strict=True)}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The state of an optimizer over the same parameters. UserError naming what is missing, extra or of another
        shape; then nothing has been loaded."""
        own = self.state_dict()
        check_same_tensors(own, state, "the optimizer state")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat tensor, shaped like the parameters."""
        return [part.view_as(p) for part, p in zip(torch.split(flat, self.sizes), self.params, strict=True)]

    def _update(self, gradient: Tensor, ok: Tensor) -> None:
        """Move the parameters; `gradient` is finite and may be overwritten, `ok` is 1.0 or 0.0."""
        raise NotImplementedError

    def _flat_gradient(self) -> Tensor:
        return torch.cat([torch.zeros_like(p).view(-1) if p.grad is None else p.grad.reshape(-1) for p in self.params])

    def _decayed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensors[i] for i in self.decayed]

    def _scalar(self, value: float) -> Tensor:
        return device_scalar(value, self.device)


def check_same_tensors(own: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
    """UserError when `found` has other names or shapes than `own`, naming up to five of them."""
    missing, extra = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    if missing or extra:
        differing = [f"missing {n}" for n in missing[:5]] + [f"unexpected {n}" for n in extra[:5]]
        raise UserError(
            f"{what} is that of another model",
            key=(missing + extra)[0],
            found=f"{len(missing)} missing, {len(extra)} unexpected: {', '.join(differing)}",
        )
    for name, tensor in own.items():
        if tensor.shape != found[name].shape:
            raise UserError(
                f"{what} is that of another model",
                key=name,
                found=list(found[name].shape),
                expected=list(tensor.shape),
            )
