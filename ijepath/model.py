"""The networks of I-JEPATH and its losses: context encoder, EMA teacher, predictor, site head. No optimizer, no data.

I-JEPA (Assran et al., arXiv 2301.08243) across resolutions: the encoder f sees the context's visible tokens at coarse
spacing, the teacher f̄ whole target crops at fine spacing, the predictor g fills the target's tokens T in the context's
grid. With h = LN(f̄(target)), LN without affine, and z = g(f(context), T):
    pooled   L = SmoothL1(mean_T z, mean_tokens h)
    tokens   L = mean over teacher tokens of SmoothL1(z at the context token under it, h)
With `model.regulariser` the student also encodes the targets. Its mean tokens of a context and of its targets are views
of one sample (pathray.train.regulariser).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ijepath.config import RunConfig
from pathray.device import Gather, keep_local
from pathray.nn.predictor import TokenPredictor
from pathray.nn.regularise import at_least_float32
from pathray.nn.vit import ViT, vit_config
from pathray.optim.ema import Ema
from pathray.train.regulariser import Regulariser


def build_encoder(config: RunConfig) -> ViT:
    """The ViT of the run config, for images of any size that is a multiple of the patch."""
    model, patch, side = config.model, config.data.patch_size, config.data.context_px
    return ViT(
        vit_config(
            model.name,
            img_size=(side, side),
            patch_size=(patch, patch),
            positions=model.positions,
            registers=model.registers,
            mlp=model.mlp,
            drop_path=model.drop_path,
            layer_scale=model.layer_scale,
            qk_norm=model.qk_norm,
            checkpointing=model.checkpointing,
        )
    )


def build_modules(config: RunConfig, sites: int = 0, gather: Gather = keep_local) -> nn.ModuleDict:
    """student, predictor, teacher (a frozen copy of the student) and, if configured, site and regulariser, which
    gathers the rows of all ranks. Initialised from the seed.

    torch's global random state does not change.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.data.seed)
        student = build_encoder(config)
        modules = nn.ModuleDict({"student": student, "predictor": build_predictor(config, student)})
        if config.site.adversarial:
            modules["site"] = SiteHead(student.config.dim, config.site.hidden, sites, config.site.weight)
        if config.model.regulariser != "none":
            key = "optimization.micro_batch"
            dim, seed = student.config.dim, config.data.seed
            modules["regulariser"] = Regulariser(config.model, dim, seed, gather, micro_key=key)
    modules["teacher"] = Ema.teacher_of(student)
    return modules


def build_predictor(config: RunConfig, student: ViT) -> TokenPredictor:
    model = config.model
    return TokenPredictor(
        student.config.dim,
        dim=model.pred_emb_dim,
        depth=model.pred_depth,
        heads=model.predictor_heads,
        positions="rope" if model.positions == "rope" else "sincos",
        checkpointing=model.checkpointing,
    )


def encode_context(student: ViT, context: Tensor, keep: Tensor) -> Tensor:
    """Tokens [B, C, D] of the visible patches `keep` [B, C] of context [B, 3, S, S]; hidden ones are left out."""
    tokens: Tensor = student(context, keep=keep)
    return tokens[:, student.num_prefix :]


def encode_views(student: ViT, tokens: Tensor, targets: Tensor, per_context: int) -> list[Tensor]:
    """Views of each sample for `model.regulariser`, [B, D] each: the mean of its context `tokens` [B, C, D], and the
    student's mean tokens of its whole target crops [B·K, 3, h, w]."""
    own: Tensor = student(targets)[:, student.num_prefix :]
    of_targets, of_context = (at_least_float32(t).mean(dim=1) for t in (own, tokens))
    return [of_context, *of_targets.view(-1, per_context, own.shape[-1]).unbind(dim=1)]


@torch.no_grad()
def encode_targets(teacher: ViT, targets: Tensor, per_context: int) -> Tensor:
    """Teacher tokens [B, K, G, D] in float32, layer-normed without affine, of crops [B·K, 3, h, w]. Eval mode."""
    teacher.eval()
    tokens: Tensor = teacher(targets)[:, teacher.num_prefix :].float()
    return F.layer_norm(tokens, tokens.shape[-1:]).view(-1, per_context, *tokens.shape[1:])


def predict(
    predictor: TokenPredictor, tokens: Tensor, context_index: Tensor, target_index: Tensor, side: int, *, joint: bool
) -> Tensor:
    """Predictions [B, K, M, D] on the target tokens `target_index` [B, K, M] of a grid of `side`² tokens.

    joint: one pass over a context and all of its targets, whose queries attend to one another; else one pass per
    target, as in the paper. A query has its position and nothing of the target, so neither leaks.
    """
    count, length = target_index.shape[1:]
    if joint:
        out = predictor(tokens, context_index, target_index.flatten(1), (side, side))
    else:
        repeated = tokens.repeat_interleave(count, dim=0), context_index.repeat_interleave(count, dim=0)
        out = predictor(*repeated, target_index.flatten(0, 1), (side, side))
    tokens = out.reshape(target_index.shape[0], count, length, -1)
    return tokens


def pooled_loss(z: Tensor, h: Tensor) -> Tensor:
    """[B]: SmoothL1 between token means, mean over targets and dimensions; z [B, K, M, D], h [B, K, G, D]."""
    loss = F.smooth_l1_loss(z.float().mean(dim=2), h.mean(dim=2), reduction="none")
    return loss.mean(dim=(1, 2))


def tokens_loss(z: Tensor, h: Tensor, cells: Tensor) -> Tensor:
    """[B]: SmoothL1 at every teacher token whose context token is in T, mean over those; cells [B, K, G], −1 = cut."""
    covered = (cells >= 0).to(torch.float32)
    index = cells.clamp(min=0).unsqueeze(-1).expand(-1, -1, -1, z.shape[-1])
    loss = F.smooth_l1_loss(torch.gather(z.float(), 2, index), h, reduction="none").mean(dim=-1)
    return (loss * covered).sum(dim=(1, 2)) / covered.sum(dim=(1, 2)).clamp(min=1)


class SiteHead(nn.Module):
    """A classifier of the site behind a gradient reversal (Ganin and Lempitsky 2015, arXiv 1409.7495, eq. 4): the head
    learns the site from the feature, the encoder to hide it, with `weight` of the reversed gradient."""

    def __init__(self, dim: int, hidden: int, sites: int, weight: float) -> None:
        super().__init__()
        assert sites >= 2, f"{sites} sites: a classifier needs two or more"
        self.weight = weight
        self.layers = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, sites))

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, D] → logits [B, sites]."""
        reversed_: Tensor = features * -self.weight + features.detach() * (1 + self.weight)
        logits: Tensor = self.layers(reversed_)
        return logits


def site_loss(logits: Tensor, site: Tensor) -> Tensor:
    """[B]: cross-entropy, 0 where the site is unknown (−1)."""
    known = (site >= 0).to(torch.float32)
    return F.cross_entropy(logits.float(), site.clamp(min=0), reduction="none") * known
