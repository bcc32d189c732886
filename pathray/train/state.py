"""The whole state of a training run: modules, optimizers, counters, and one integer of data state, `images_seen`.

Everything random is a function of the position, so there is no generator to save. `tensors()` and `meta()` are what a
checkpoint holds; `load` puts them back or raises, and never goes on with fresh weights.
"""

from __future__ import annotations

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

    `notes` is plain JSON data that whoever consumes the ticks wants to find again after a resume (the best metric so
    far …). Every rank builds the recipe from the same seed; rank 0's weights are sent to the others all the same.
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

    @property
    def step(self) -> int:
        """Steps done."""
        return self.images_seen // self.settings.global_batch

    def tensors(self) -> dict[str, Tensor]:
        """Live tensors by name: `model.…`, `optimizer.<phase>.…`, `health.…`. Copy them before the next step (saving
        does). On XLA every host asks for them at the same step, whichever of them saves."""
        out = {f"model.{name}": value for name, value in self.recipe.modules.state_dict().items()}
        for phase, optimizer in self.optimizers.items():
            state = self.device.detached_views(optimizer.state_dict())
            out |= {f"optimizer.{phase}.{name}": value for name, value in state.items()}
        for phase, scale in self.scales.items():
            out |= {f"scale.{phase}.{name}": value for name, value in scale.tensors().items()}
        out |= {f"health.{name}": value for name, value in self.health.tensors().items()}
        assert all(isinstance(value, Tensor) for value in out.values()), "modules keep their state in tensors"
        self.device.mark_step()
        return out

    def meta(self) -> dict[str, Any]:
        """Plain values beside the tensors; where it ran is recorded, not required."""
        settings = self.settings
        return {
            "images_seen": self.images_seen,
            "step": self.step,
            "seed": settings.seed,
            "global_batch": settings.global_batch,
            "total_images": settings.total_images,
            "notes": self.notes,
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
        """Put back what a checkpoint holds. UserError, and nothing changed, when it is another model's or run's."""
        settings = self.settings
        for key, own in (("global_batch", settings.global_batch), ("seed", settings.seed)):
            if meta.get(key) != own:
                expected = f"{own}, or another output folder"
                raise UserError(
                    "the checkpoint belongs to another run", key=key, found=meta.get(key), expected=expected
                )
        seen = int(meta["images_seen"])
        if seen % settings.global_batch:
            raise UserError("the checkpoint is not at a step's end", key="images_seen", found=seen)
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
    """Move a recipe's modules to the device; `recipe.params` follows where moving made new parameters (XLA does)."""
    names = {id(p): name for name, p in recipe.modules.named_parameters(remove_duplicate=False)}
    recipe.modules.to(device.torch_device)
    moved: dict[str, nn.Parameter] = dict(recipe.modules.named_parameters(remove_duplicate=False))
    for phase, params in recipe.params.items():
        unknown = [name for name, p in params if id(p) not in names]
        assert not unknown, f"phase {phase} trains parameters that are not in recipe.modules: {unknown[:5]}"
        params[:] = [(name, moved[names[id(p)]]) for name, p in params]


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
