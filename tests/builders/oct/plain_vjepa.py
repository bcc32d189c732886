"""V-JEPA 2's loss once more, in float64 NumPy, as plain as the paper (arXiv 2506.09985, section 2.1): an oracle.

    min ‖P(Δ_y, E(x)) − sg(Ē(y))‖₁: E sees the visible tokens x, the teacher Ē all of y, the predictor P the encoded
    visible tokens and a learned mask token Δ at each hidden place. Targets are layer-normed, as in the published code.
Weights come from the project's modules, by name; nothing else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import erf
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Weights = dict[str, Array]


def weights_of(module: Any) -> Weights:
    return {name: p.detach().double().numpy() for name, p in module.named_parameters()}


def positions(grid: Sequence[int], dim: int) -> Array:
    """[N, dim]: a third of the dimensions per axis, sines before cosines of frequencies 10000^(−i/n); then zeros."""
    n = dim // 6
    table = np.zeros((int(np.prod(grid)), dim))
    for token, place in enumerate(np.ndindex(*grid)):
        for axis, x in enumerate(place):
            for i in range(n):
                table[token, 2 * n * axis + i] = np.sin(x * 10000 ** (-i / n))
                table[token, 2 * n * axis + n + i] = np.cos(x * 10000 ** (-i / n))
    return table


def patches(volume: Array, patch: Sequence[int]) -> Array:
    """[N, voxels] of a volume [D, H, W], raster order."""
    d, h, w = patch
    grid = [s // p for s, p in zip(volume.shape, patch, strict=True)]
    rows = [volume[z * d : z * d + d, y * h : y * h + h, x * w : x * w + w].ravel() for z, y, x in np.ndindex(*grid)]
    return np.stack(rows)


def layer_norm(x: Array, weight: Array | float = 1.0, bias: Array | float = 0.0, eps: float = 1e-6) -> Array:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * weight + bias


def block(w: Weights, x: Array, heads: int) -> Array:
    """Pre-norm attention and MLP on tokens [N, D]."""
    n, dim = x.shape
    qkv = layer_norm(x, w["norm1.weight"], w["norm1.bias"]) @ w["attn.qkv.weight"].T + w["attn.qkv.bias"]
    q, k, v = (part.reshape(n, heads, -1) for part in np.split(qkv, 3, axis=1))
    mixed = np.empty((n, dim))
    for head in range(heads):
        scores = q[:, head] @ k[:, head].T / np.sqrt(dim // heads)
        share = np.exp(scores - scores.max(1, keepdims=True))
        at = slice(head * (dim // heads), (head + 1) * (dim // heads))
        mixed[:, at] = share / share.sum(1, keepdims=True) @ v[:, head]
    x = x + mixed @ w["attn.proj.weight"].T + w["attn.proj.bias"]
    hidden = layer_norm(x, w["norm2.weight"], w["norm2.bias"]) @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
    hidden = hidden * (1 + np.vectorize(erf)(hidden / np.sqrt(2))) / 2
    return x + hidden @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]


def run_blocks(w: Weights, x: Array, heads: int) -> Array:
    number = 0
    while f"blocks.{number}.norm1.weight" in w:
        start = f"blocks.{number}."
        x = block({k.removeprefix(start): v for k, v in w.items() if k.startswith(start)}, x, heads)
        number += 1
    return layer_norm(x, w["norm.weight"], w["norm.bias"])


def encode(w: Weights, volume: Array, patch: Sequence[int], heads: int, keep: Array | None = None) -> Array:
    """Tokens of a volume [D, H, W]; of the patches `keep` alone, which then see one another alone."""
    grid = [s // p for s, p in zip(volume.shape, patch, strict=True)]
    x = patches(volume, patch) @ w["patch_embed.proj.weight"].T + w["patch_embed.proj.bias"]
    x = x + positions(grid, x.shape[1])
    return run_blocks(w, x if keep is None else x[keep], heads)


def predict(w: Weights, context: Array, visible: Array, hidden: Array, grid: Sequence[int], heads: int) -> Array:
    """Predictions at all places, the visible ones first."""
    seen = context @ w["embed.weight"].T + w["embed.bias"]
    masks = np.repeat(w["mask_token"][0], len(hidden), axis=0)
    table = positions(grid, seen.shape[1])
    x = np.concatenate([seen + table[visible], masks + table[hidden]])
    return run_blocks(w, x, heads) @ w["proj.weight"].T + w["proj.bias"]


def compare(
    kind: str, z: Array, h: Array, visible: Array, hidden: Array, grid: Sequence[int], strength: float
) -> float:
    """The loss of one volume and mask, from predictions z (visible, then hidden places) and targets h of all tokens."""
    seen, wanted = z[: len(visible)], z[len(visible) :]
    if kind == "normalized_mse":
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (wanted, h[hidden])]
        return float(((unit[0] - unit[1]) ** 2).sum(1).mean())
    loss = float(np.abs(wanted - h[hidden]).mean())
    if kind == "dense":
        place = np.array(list(np.ndindex(*grid)), float)
        nearest = [min(np.linalg.norm(place[i] - place[j]) for j in hidden) for i in visible]
        loss += float(np.mean(strength / np.sqrt(nearest) * np.abs(seen - h[visible]).mean(1)))
    return loss
