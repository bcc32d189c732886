"""The student: a ViT with registers and the TME head on its class token, over batches of several image sizes at once.

Pre-norm, SwiGLU, LayerScale by depth, stochastic depth per sample; registers follow the class token and have no
position. Crops of all sizes pass the encoder as one packed sequence. Not here: the loss (adios.loss).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adios.config import RunConfig
from pathray.nn.blocks import layer_scale_init
from pathray.nn.heads import ProjectionHead
from pathray.nn.vit import ViT, ViTConfig, vit_config


class Tokens(NamedTuple):
    """The encoder's output for a batch of images: cls `[B, D]`, registers `[B, R, D]`, patches `[B, N, D]`."""

    cls: Tensor
    registers: Tensor
    patches: Tensor


class Student(nn.Module):
    """Encoder and head. Only the encoder is exported."""

    def __init__(self, config: ViTConfig, head: Sequence[int]) -> None:
        super().__init__()
        assert config.cls_token, "the head needs the class token"
        self.vit = ViT(config)
        self.head = ProjectionHead((config.dim, *head))

    def tokens(self, batches: Sequence[Tensor]) -> list[Tokens]:
        """Images `[B_i, 3, H_i, W_i]`, packed into one sequence -> their tokens, batch by batch."""
        each = [self.vit(batches[0])] if len(batches) == 1 else self.vit.forward_packed(batches)
        prefix = self.vit.num_prefix
        return [Tokens(t[:, 0], t[:, 1:prefix], t[:, prefix:]) for t in each]

    def embed(self, cls: Tensor) -> Tensor:
        """Class tokens `[…, D]` -> unit vectors z `[…, D_z]`, normalised in float32 whatever the autocast."""
        z = self.head(cls)
        return F.normalize(z if z.dtype == torch.float64 else z.float(), dim=-1)


def student_config(config: RunConfig) -> ViTConfig:
    """The encoder of a run config. UserError for keys that do not fit together."""
    student, changes = config.student, {"dim": config.embed_dim, "depth": config.depth, "heads": config.num_heads}
    given = {name: value for name, value in changes.items() if value is not None}
    depth = given.get("depth", vit_config(config.arch).depth)
    return vit_config(
        config.arch,
        **given,
        img_size=(config.data.image_size,) * 2,
        patch_size=(config.patch_size,) * 2,
        cls_token=True,
        registers=student.registers,
        positions=student.positions,
        mlp="swiglu",
        qk_norm=student.qk_norm,
        layer_scale=layer_scale_init(depth),
        drop_path=student.drop_path,
        checkpointing=student.checkpointing,
    )


def build_student(config: RunConfig) -> Student:
    """Initialised from the seed; torch's global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Student(student_config(config), config.student.head)
