"""The networks of OCT pretraining and how they are applied: context encoder, EMA teacher, predictor. No optimizer.

V-JEPA (arXiv 2404.08471, V-JEPA 2: arXiv 2506.09985) on volumes: the encoder f sees the visible tokens C of a volume,
the teacher f̄ the whole volume, and the predictor g gives the hidden tokens T from f's tokens and T's positions alone.
With h = LN(f̄(x)), LN without affine, the loss compares g(f(x, C), T) with h at T (oct.loss). Several masks of a volume
are passes of their own, whose losses are averaged; the teacher runs once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oct.config import RunConfig
from pathray.device import Gather, keep_local
from pathray.nn.heads import ProjectionHead
from pathray.nn.positions import sincos_table
from pathray.nn.predictor import TokenPredictor
from pathray.nn.regularise import at_least_float32
from pathray.nn.vit import ViT, vit_config
from pathray.optim.ema import Ema
from pathray.train.regulariser import Regulariser


def build_encoder(config: RunConfig, native: Sequence[int] = ()) -> ViT:
    """The 3-D ViT of the run config, for volumes `[B, 1, D, H, W]`. `native`: the size that its positions are made for,
    where it is not that of the volumes, onto which they are then resampled."""
    model = config.model
    return ViT(
        vit_config(
            model.name,
            img_size=tuple(native or config.data.image_size),
            patch_size=tuple(model.patch_size),
            in_channels=1,
            positions=model.positions,
            drop_path=model.drop_path,
            checkpointing=model.checkpointing,
        )
    )


def build_modules(config: RunConfig, gather: Gather = keep_local, native: Sequence[int] = ()) -> nn.ModuleDict:
    """student, predictor, teacher (a frozen copy of the student) and, if configured, regulariser, which gathers the
    rows of all ranks. Initialised from the seed.

    torch's global random state does not change.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.data.seed)
        student = build_encoder(config, native)
        modules = nn.ModuleDict({"student": student, "predictor": build_predictor(config, student.config.dim)})
        if config.model.regulariser != "none":
            dim, seed, key = student.config.dim, config.data.seed, "optimization.micro_batch"
            modules["regulariser"] = Regulariser(config.model, dim, seed, gather, micro_key=key)
    modules["teacher"] = Ema.teacher_of(student)
    return modules


def build_predictor(config: RunConfig, dim: int) -> TokenPredictor | MlpPredictor:
    """The predictor for an encoder of width `dim`."""
    model = config.model
    if model.predictor == "mlp":
        return MlpPredictor(dim, model.mlp_hidden or dim)
    return TokenPredictor(
        dim,
        dim=model.pred_dim,
        depth=model.pred_depth,
        heads=model.predictor_heads,
        axes=3,
        positions="rope" if model.positions == "rope" else "sincos",
        checkpointing=model.checkpointing,
    )


class MlpPredictor(nn.Module):
    """Two layers with batch norm and GELU in place of the transformer: what attention in the predictor is worth.

    Its input at a hidden place is the mean visible token plus the place's sin-cos position. So it knows the volume as a
    whole and where it is asked, and nothing of the neighbours: those are for the encoder to mix in. Batch norm is over
    all tokens of a micro-batch; so losses depend on the micro-batch.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.dim = dim
        self.head = ProjectionHead((dim, hidden, dim), norm="batch")

    def forward(self, context: Tensor, context_index: Tensor, target_index: Tensor, grid: Sequence[int]) -> Tensor:
        """context `[B, K, D]`, context_index `[B, K]` (not used), target_index `[B, M]` -> `[B, M, D]`."""
        positions = sincos_table(tuple(grid), self.dim, device=context.device)[target_index]
        out: Tensor = self.head(context.float().mean(dim=1, keepdim=True) + positions)
        return out


def encode_context(student: ViT, x: Tensor, keep: Tensor) -> Tensor:
    """Tokens `[B, K, D]` of the visible tokens `keep` `[B, K]` int64 of volumes `[B, 1, D, H, W]`; hidden ones are left
    out before the first block."""
    tokens: Tensor = student(x, keep=keep)
    return tokens


@torch.no_grad()
def encode_target(teacher: ViT, x: Tensor) -> Tensor:
    """Teacher tokens `[B, N, D]` in float32 (float64 for such an encoder), layer-normed without affine, of whole
    volumes `[B, 1, D, H, W]`. Eval mode."""
    teacher.eval()
    tokens = at_least_float32(teacher(x))
    return F.layer_norm(tokens, tokens.shape[-1:])


def encode_views(student: ViT, x: Tensor, contexts: Sequence[Tensor], target: Tensor) -> list[Tensor]:
    """Views of each volume for `model.regulariser`, `[B, D]` each: the mean tokens of its `contexts` `[B, K, D]`; of
    one alone, and of the student's tokens of what that one does not see, `target` `[B, M]`."""
    own = [*contexts] if len(contexts) > 1 else [*contexts, encode_context(student, x, target)]
    return [at_least_float32(tokens).mean(dim=1) for tokens in own]
