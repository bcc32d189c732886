"""The attentive head: one learned query that looks at all tokens of all frames, then a linear layer; and its probe.

The cross-attention block of V-JEPA's attentive probe (arXiv 2404.08471, appendix; V-JEPA 2: arXiv 2506.09985):
q ← q + A(q, LN x), q ← q + MLP(LN q), y = W q. A unit of several volumes is one sequence of all their tokens. Not here:
where tokens come from (oct.downstream.features).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oct.downstream.config import ProbeConfig
from pathray.data.order import rng
from pathray.evaluation.metrics.probe import balanced_accuracy, grouped_split
from pathray.nn.attention import attention
from pathray.nn.blocks import INIT_STD, NORM_EPS, Mlp
from pathray.optim.schedules import cosine

Floats = npt.NDArray[np.float64]
Tokens = Sequence[npt.NDArray[np.floating[Any]]]


class AttentiveHead(nn.Module):
    """Tokens `[B, N, D]` → `[B, outputs]`."""

    def __init__(self, dim: int, outputs: int, heads: int = 0) -> None:
        super().__init__()
        self.heads = heads or max(1, dim // 64)
        assert dim % self.heads == 0, (dim, self.heads)
        self.query_token = nn.Parameter(torch.empty(1, 1, dim))
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS), nn.LayerNorm(dim, eps=NORM_EPS)
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.mlp, self.linear = Mlp(dim, 4 * dim), nn.Linear(dim, outputs)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.query_token, std=INIT_STD)

    def forward(self, tokens: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """`key_mask` `[B, N]` is True for real tokens."""
        B, N, D = tokens.shape
        k, v = self.kv(self.norm1(tokens)).view(B, N, 2, self.heads, D // self.heads).unbind(2)
        query = self.query_token.expand(B, -1, -1)
        q = self.q(query).view(B, 1, self.heads, D // self.heads)
        x = query + self.proj(attention(q, k, v, key_mask=key_mask).reshape(B, 1, D))
        x = x + self.mlp(self.norm2(x))
        out: Tensor = self.linear(x[:, 0])
        return out


def attentive_predictions(
    train: Tokens, train_y: Floats, groups: Sequence[str], test: Tokens, *, classes: int, config: ProbeConfig, seed: int
) -> tuple[Floats, float]:
    """(predictions of the test units, the chosen learning rate), as oct.downstream.linear.linear_predictions gives
    them. Tokens `[n, D]` of each unit. Of several learning rates the best on a fifth of the persons is used."""
    rate = config.lrs[0]
    if len(config.lrs) > 1:
        labels = train_y.astype(np.int64) if classes else np.zeros(len(train_y), np.int64)
        fit, held = grouped_split(labels, np.asarray(groups), 0.2, seed)
        scores = []
        for lr in config.lrs:
            found = _fit_and_predict([train[i] for i in fit], train_y[fit], [train[i] for i in held], classes, config,
                                     lr, seed)  # fmt: skip
            scores.append(_score(train_y[held], found, classes))
        rate = config.lrs[int(np.argmax(scores))]
    return _fit_and_predict(train, train_y, test, classes, config, rate, seed), rate


def pad(tokens: Tokens) -> tuple[Tensor, Tensor | None]:
    """`[B, N, D]` float32 of the longest unit, and which tokens are real `[B, N]`; None: all are."""
    longest = max(len(one) for one in tokens)
    out = np.zeros((len(tokens), longest, tokens[0].shape[1]), np.float32)
    mask = np.zeros((len(tokens), longest), bool)
    for i, one in enumerate(tokens):
        out[i, : len(one)], mask[i, : len(one)] = one, True
    return torch.from_numpy(out), None if mask.all() else torch.from_numpy(mask)


def _fit_and_predict(
    train: Tokens, y: Floats, test: Tokens, classes: int, config: ProbeConfig, lr: float, seed: int
) -> Floats:
    """Train a head, from the seed alone, and apply it."""
    mean, std = (0.0, 1.0) if classes else (float(y.mean()), float(y.std()) or 1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = AttentiveHead(train[0].shape[1], classes or 1)
    truth = torch.from_numpy(y).long() if classes else torch.from_numpy((y - mean) / std).float()
    _train(head, train, truth, config, lr, seed)
    head.eval()
    with torch.no_grad():
        parts = [head(*pad(test[i : i + config.batch])) for i in range(0, len(test), config.batch)]
    out = torch.cat(parts).double()
    predictions: Floats = (out.softmax(dim=1) if classes else out[:, 0] * std + mean).numpy()
    return predictions


def _train(head: AttentiveHead, train: Tokens, truth: Tensor, config: ProbeConfig, lr: float, seed: int) -> None:
    """AdamW with a warm-up of a tenth and a cosine to 0."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=config.weight_decay)
    per_epoch = -(-len(train) // config.batch)
    epochs = max(config.epochs, -(-config.min_steps // per_epoch))
    total, step = epochs * per_epoch, 0
    for epoch in range(epochs):
        order = rng(seed, "attentive", epoch).permutation(len(train))
        for first in range(0, len(train), config.batch):
            rows = order[first : first + config.batch]
            rate = cosine(step, total, lr, 0.0) * min(1.0, (step + 1) / math.ceil(total / 10))
            optimizer.param_groups[0]["lr"] = rate
            predicted = head(*pad([train[i] for i in rows]))
            loss = head_loss(predicted, truth[torch.from_numpy(rows)]).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            step += 1


def head_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """`[B]`: cross-entropy for class numbers (int64), squared error for numbers (float), of outputs `[B, K]`."""
    if truth.dtype == torch.int64:
        return F.cross_entropy(predicted.float(), truth, reduction="none")
    return (predicted.float()[:, 0] - truth).square()


def _score(truth: Floats, predicted: Floats, classes: int) -> float:
    if classes:
        return balanced_accuracy(truth.astype(int), predicted.argmax(axis=1))
    return -float(np.square(truth - predicted).mean())
