"""The complete state of a training run: modules, optimizers, counters, and one integer of data state, `images_seen`.

Everything random is a function of the position, so there is no generator to save. A checkpoint holds `tensors()` and
`meta()`; `load` restores them completely or raises.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pathray.device import Device
from pathray.errors import UserError
from pathray.store.checkpoint import check_tensors
from pathray.train.health import Health
from pathray.train.recipe import Recipe
from pathray.train.scaler import LossScale
from pathray.train.settings import LoopSettings


class TrainState:
    """A recipe's modules on the device, with an optimizer per phase.

    `notes` is plain JSON data that a consumer of the ticks keeps over a resume (such as the best metric so far). Every
    rank builds the recipe from the same seed; rank 0's weights are still broadcast to the others.
    """

    def __init__(self, recipe: Recipe, settings: LoopSettings, device: Device) -> None:
        self.recipe, self.settings, self.device = recipe, settings, device
        self.images_seen = 0
        self.notes: dict[str, Any] = {}
        place(recipe, device)
        missing = sorted(set(settings.optim) ^ set(recipe.params))
        assert not missing, f"phases of the recipe and of settings.optim differ: {missing}"
        device.broadcast_([t.detach() for t in recipe.modules.state_dict().values()])
        self.optimizers = {phase: settings.optim[phase].build(params) for phase, params in recipe.params.items()}
        self.scales = {phase: LossScale(settings.precision, device, settings.global_batch) for phase in recipe.params}
        self.health = Health(device)
        device.mark_step()
        self.tensors()  # on XLA the graph of a save is compiled now, not in the middle of a run

    @property
    def step(self) -> int:
        """Steps done."""
        return self.images_seen // self.settings.global_batch

    def tensors(self) -> dict[str, Tensor]:
        """Live tensors by name: `model.…`, `optimizer.<phase>.…`, `health.…`. They must be copied before the next step,
        as saving does. On XLA every host must call this at the same step, even if only one saves."""
        out = {f"model.{name}": value for name, value in self.recipe.modules.state_dict().items()}
        for phase, optimizer in self.optimizers.items():
            state = self.device.detached_views(optimizer.state_dict())
            out |= {f"optimizer.{phase}.{name}": value for name, value in state.items()}
        for phase, scale in self.scales.items():
            out |= {f"scale.{phase}.{name}": value for name, value in scale.tensors().items()}
        out |= {f"health.{name}": value for name, value in self.health.tensors().items()}
        assert all(isinstance(value, Tensor) for value in out.values()), "modules must keep their state in tensors"
        self.device.mark_step()
        return out

    def meta(self) -> dict[str, Any]:
        """The plain values next to the tensors, as they are now: a checkpoint is written while training continues.
        `ran_on` is recorded for information only."""
        settings = self.settings
        return {
            "images_seen": self.images_seen,
            "step": self.step,
            "seed": settings.seed,
            "global_batch": settings.global_batch,
            "total_images": settings.total_images,
            "notes": copy.deepcopy(self.notes),
            "health": self.health.marks(),
            "ran_on": {
                "kind": self.device.kind,
                "world_size": self.device.world_size,
                "micro_batch": settings.micro_batch,
                "precision": settings.precision,
                "grad_sync": settings.grad_sync,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            },
        }

    def load(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore a checkpoint. UserError, with nothing changed, if it belongs to another model or run."""
        settings = self.settings
        for key, own in (("global_batch", settings.global_batch), ("seed", settings.seed)):
            if meta.get(key) != own:
                expected = f"{own}, or another output folder"
                raise UserError(
                    "the checkpoint belongs to another run", key=key, found=meta.get(key), expected=expected
                )
        seen = int(meta["images_seen"])
        if seen % settings.global_batch:
            raise UserError("the checkpoint was not written at the end of a step", key="images_seen", found=seen)
        check_tensors(tensors, self.tensors())
        self.recipe.modules.load_state_dict(_below(tensors, "model."), strict=True)
        for phase, optimizer in self.optimizers.items():
            optimizer.load_state_dict(_below(tensors, f"optimizer.{phase}."))
        for phase, scale in self.scales.items():
            scale.load(_below(tensors, f"scale.{phase}."))
        self.health.load(_below(tensors, "health."), meta.get("health") or {})
        self.device.mark_step()
        self.images_seen = seen
        self.notes = dict(meta.get("notes") or {})


def place(recipe: Recipe, device: Device) -> None:
    """Move a recipe's modules to the device, and update `recipe.params` if this creates new parameters (on XLA)."""
    names = {id(p): name for name, p in recipe.modules.named_parameters(remove_duplicate=False)}
    recipe.modules.to(device.torch_device)
    moved: dict[str, nn.Parameter] = dict(recipe.modules.named_parameters(remove_duplicate=False))
    for phase, params in recipe.params.items():
        unknown = [name for name, p in params if id(p) not in names]
        assert not unknown, f"phase {phase} trains parameters that are not in recipe.modules: {unknown[:5]}"
        params[:] = [(name, moved[names[id(p)]]) for name, p in params]


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
