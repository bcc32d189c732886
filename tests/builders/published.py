"""Small files with the parameter names of published encoders, and what such an encoder gives, from torch's functions.

The forward passes read the published names themselves, in float64, and share nothing with the code under test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from pathray.features.published import identify, models
from pathray.features.published.models import Published

Tensors = dict[str, torch.Tensor]
TINY = {"dim": 24, "depth": 2, "heads": 2}
SIDES = {14: 56, 16: 64}


def tiny_row(name: str) -> Published:
    """The row of a published model, but small: two blocks of width 24, images of 4 x 4 patches."""
    row = models.model_of(name)
    pool = {"dim": 16, "heads": 4, "queries": 1} if row.pool else None
    return replace(row, **TINY, size=SIDES[row.patch], pool=pool)


def shrink(monkeypatch) -> None:
    """Make all rows small, for whoever looks them up."""
    rows = tuple(tiny_row(row.name) for row in models.MODELS)
    monkeypatch.setattr(models, "MODELS", rows)
    monkeypatch.setattr(identify, "MODELS", rows)


def random_weights(row: Published, seed: int = 0) -> Tensors:
    """A state_dict as that model's file holds it; values are as large as a trained encoder's."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"timm": timm_shapes, "dinov2": dinov2_shapes, "conch": conch_shapes}[row.layout](row)
    return {name: 0.3 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def timm_shapes(row: Published) -> dict[str, tuple[int, ...]]:
    D, p, out = row.dim, row.patch, dict[str, tuple[int, ...]]()
    hidden = 4 * D if row.mlp == "gelu" else (int(4 * D * 2 / 3) + 7) // 8 * 8
    out |= {"cls_token": (1, 1, D), "pos_embed": (1, (row.size // p) ** 2 + row.prefix_positions, D)}
    out |= {"reg_token": (1, row.registers, D)} if row.registers else {}
    out |= {"patch_embed.proj.weight": (D, 3, p, p), "patch_embed.proj.bias": (D,)}
    for i in range(row.depth):
        b = f"blocks.{i}."
        for norm in ("norm1", "norm2"):
            out |= {f"{b}{norm}.weight": (D,), f"{b}{norm}.bias": (D,)}
        out |= {f"{b}attn.qkv.weight": (3 * D, D), f"{b}attn.qkv.bias": (3 * D,)}
        out |= {f"{b}attn.proj.weight": (D, D), f"{b}attn.proj.bias": (D,)}
        out |= {f"{b}ls1.gamma": (D,), f"{b}ls2.gamma": (D,)} if row.layer_scale else {}
        first = hidden * (2 if row.mlp == "swiglu" else 1)
        out |= {f"{b}mlp.fc1.weight": (first, D), f"{b}mlp.fc1.bias": (first,)}
        out |= {f"{b}mlp.fc2.weight": (D, hidden), f"{b}mlp.fc2.bias": (D,)}
    return out | {"norm.weight": (D,), "norm.bias": (D,)}


def dinov2_shapes(row: Published) -> dict[str, tuple[int, ...]]:
    D, p, e, out = row.dim, row.patch, "embeddings.", dict[str, tuple[int, ...]]()
    out |= {f"{e}cls_token": (1, 1, D), f"{e}mask_token": (1, D), f"{e}position_embeddings": (1, 17, D)}
    out |= {f"{e}patch_embeddings.projection.weight": (D, 3, p, p), f"{e}patch_embeddings.projection.bias": (D,)}
    for i in range(row.depth):
        b = f"encoder.layer.{i}."
        layers = {f"attention.attention.{part}": (D, D) for part in ("query", "key", "value")}
        layers |= {"attention.output.dense": (D, D), "mlp.fc1": (4 * D, D), "mlp.fc2": (D, 4 * D)}
        for name, shape in layers.items():
            out |= {f"{b}{name}.weight": shape, f"{b}{name}.bias": shape[:1]}
        for n in (1, 2):
            out |= {f"{b}norm{n}.weight": (D,), f"{b}norm{n}.bias": (D,), f"{b}layer_scale{n}.lambda1": (D,)}
    return out | {"layernorm.weight": (D,), "layernorm.bias": (D,)}


def conch_shapes(row: Published) -> dict[str, tuple[int, ...]]:
    C, E, at = row.dim, row.pool["dim"], "visual.attn_pool_contrast."
    out = {f"visual.trunk.{name}": shape for name, shape in timm_shapes(row).items()}
    out |= {f"{at}query": (1, E), f"{at}attn.q_proj_weight": (E, E), f"{at}attn.in_proj_bias": (3 * E,)}
    out |= {f"{at}attn.k_proj_weight": (E, C), f"{at}attn.v_proj_weight": (E, C)}
    out |= {f"{at}attn.out_proj.weight": (E, E), f"{at}attn.out_proj.bias": (E,)}
    for name, width in ((f"{at}ln_q", E), (f"{at}ln_k", C), ("visual.ln_contrast", E)):
        out |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    text = {
        "text.token_embedding.weight": (5, 4),
        "text_decoder.x": (2,),
        "logit_scale": (),
        "visual.ln_caption.bias": (3,),
    }
    return out | text | {"visual.proj_contrast": (E, E)}


def plain_features(row: Published, given: Mapping[str, torch.Tensor], images: np.ndarray) -> np.ndarray:
    """The model's own feature `[N, E]` of uint8 images `[N, H, W, 3]` of its size, in float64."""
    w = {name: value.double() for name, value in given.items()}
    x = (torch.from_numpy(images).double() / 255 - torch.tensor(row.mean)) / torch.tensor(row.std)
    tokens = (_dinov2_tokens if row.layout == "dinov2" else _timm_tokens)(row, w, x.permute(0, 3, 1, 2))
    if row.layout == "conch":
        return _contrast(w, tokens, row.pool["heads"]).numpy()
    mean = tokens[:, 1 + row.registers :].mean(1)
    return {"cls": tokens[:, 0], "cls+mean": torch.cat([tokens[:, 0], mean], 1)}[row.pooling].numpy()


def _timm_tokens(row: Published, w: Tensors, x: torch.Tensor) -> torch.Tensor:
    at = "visual.trunk." if row.layout == "conch" else ""
    w = {name.removeprefix(at): value for name, value in w.items() if name.startswith(at)}
    x = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=row.patch).flatten(2).mT
    before = [w["cls_token"]] + ([w["reg_token"]] if row.registers else [])
    before = [token.expand(len(x), -1, -1) for token in before]
    if row.prefix_positions == 0:
        x = torch.cat([*before, x + w["pos_embed"]], 1)
    elif row.prefix_positions == 1 and row.registers == 0 or row.prefix_positions == 1 + row.registers:
        x = torch.cat([*before, x], 1) + w["pos_embed"]
    for i in range(row.depth):
        b = f"blocks.{i}."
        h = F.layer_norm(x, (row.dim,), w[f"{b}norm1.weight"], w[f"{b}norm1.bias"], 1e-6)
        qkv = F.linear(h, w[f"{b}attn.qkv.weight"], w[f"{b}attn.qkv.bias"])
        h = _attend(*qkv.chunk(3, -1), row.heads)
        h = F.linear(h, w[f"{b}attn.proj.weight"], w[f"{b}attn.proj.bias"])
        x = x + (h * w[f"{b}ls1.gamma"] if row.layer_scale else h)
        h = F.layer_norm(x, (row.dim,), w[f"{b}norm2.weight"], w[f"{b}norm2.bias"], 1e-6)
        h = F.linear(h, w[f"{b}mlp.fc1.weight"], w[f"{b}mlp.fc1.bias"])
        half = h.shape[-1] // 2
        h = F.silu(h[..., :half]) * h[..., half:] if row.mlp == "swiglu" else F.gelu(h)
        h = F.linear(h, w[f"{b}mlp.fc2.weight"], w[f"{b}mlp.fc2.bias"])
        x = x + (h * w[f"{b}ls2.gamma"] if row.layer_scale else h)
    return F.layer_norm(x, (row.dim,), w["norm.weight"], w["norm.bias"], 1e-6)


def _dinov2_tokens(row: Published, w: Tensors, x: torch.Tensor) -> torch.Tensor:
    e, a = "embeddings.", "attention.attention."
    patch = f"{e}patch_embeddings.projection"
    x = F.conv2d(x, w[f"{patch}.weight"], w[f"{patch}.bias"], stride=row.patch).flatten(2).mT
    x = torch.cat([w[f"{e}cls_token"].expand(len(x), -1, -1), x], 1) + w[f"{e}position_embeddings"]
    for i in range(row.depth):
        b = f"encoder.layer.{i}."
        h = F.layer_norm(x, (row.dim,), w[f"{b}norm1.weight"], w[f"{b}norm1.bias"], 1e-6)
        parts = (F.linear(h, w[f"{b}{a}{p}.weight"], w[f"{b}{a}{p}.bias"]) for p in ("query", "key", "value"))
        dense = f"{b}attention.output.dense"
        h = F.linear(_attend(*parts, row.heads), w[f"{dense}.weight"], w[f"{dense}.bias"])
        x = x + h * w[f"{b}layer_scale1.lambda1"]
        h = F.layer_norm(x, (row.dim,), w[f"{b}norm2.weight"], w[f"{b}norm2.bias"], 1e-6)
        h = F.gelu(F.linear(h, w[f"{b}mlp.fc1.weight"], w[f"{b}mlp.fc1.bias"]))
        x = x + F.linear(h, w[f"{b}mlp.fc2.weight"], w[f"{b}mlp.fc2.bias"]) * w[f"{b}layer_scale2.lambda1"]
    return F.layer_norm(x, (row.dim,), w["layernorm.weight"], w["layernorm.bias"], 1e-6)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    B, N, D = q.shape
    q, k, v = (t.reshape(B, N, heads, D // heads).transpose(1, 2) for t in (q, k, v))
    weights = torch.softmax(q @ k.mT / (D // heads) ** 0.5, -1)
    return (weights @ v).transpose(1, 2).reshape(B, N, D)


def _contrast(w: Tensors, tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """torch's own attention with keys of another width, loaded by its own names."""
    at = "visual.attn_pool_contrast."
    E, C = w[f"{at}attn.k_proj_weight"].shape
    module = torch.nn.MultiheadAttention(E, heads, kdim=C, vdim=C, batch_first=True).double()
    module.load_state_dict({n.removeprefix(f"{at}attn."): t for n, t in w.items() if n.startswith(f"{at}attn.")})
    context = F.layer_norm(tokens, (C,), w[f"{at}ln_k.weight"], w[f"{at}ln_k.bias"], 1e-5)
    query = F.layer_norm(w[f"{at}query"], (E,), w[f"{at}ln_q.weight"], w[f"{at}ln_q.bias"], 1e-5)
    pooled = module(query.expand(len(tokens), 1, E), context, context, need_weights=False)[0][:, 0]
    out: torch.Tensor = F.layer_norm(
        pooled, (E,), w["visual.ln_contrast.weight"], w["visual.ln_contrast.bias"], 1e-5
    ).detach()
    return out


def pixels(row: Published, count: int = 3, seed: int = 1) -> np.ndarray:
    side = row.size
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def write_program(path: Path) -> None:
    """A TorchScript program that gives the mean of each channel."""
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    torch.jit.trace(net, torch.zeros(1, 3, 32, 32)).save(str(path))
