"""What every aggregator is: instances `[B, N, D]` of B bags in, one embedding `[B, E]` per bag out.

The base class takes care of padding, so that a model sees whole bags only:

- every instance real: one call with the batch as it is, without a copy of the features;
- some padding, and the mask in host memory: one call per bag, with a view of its real instances;
- some padding, and the mask on an accelerator or traced, where looking at it would wait for the device or fix a shape:
  one call with padding set to 0 and the mask; where order matters, real instances are moved to the front first.

Not here: heads and losses (mil.model.heads), both together (mil.model.slide_model), the models (one file per paper).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pathray.errors import UserError
from pathray.nn.tracing import is_traced

PER_INSTANCE = {"attention_logits": -torch.inf, "attention_probs": 0.0}  # extras `[B, H, N]`, and their padding


class Aggregated(NamedTuple):
    """`embedding` `[B, E]`. `extras`: `attention_logits` and `attention_probs` `[B, H or C, N]` if asked for, −inf and
    0 on padding; what the model's own classifier and auxiliary losses need, whose first axis is B."""

    embedding: Tensor
    extras: dict[str, Tensor]


class Aggregator(nn.Module):
    """The base of the aggregators. A subclass defines `_aggregate`.

    `permutes`: a permutation of the instances does not change the embedding in evaluation. `uses_coords`: `coords` are
    needed. `attention_rows`: the length H or C of the attention's second axis, 0 for a model without attention.
    `attends_by_class`: that axis is the classes. `makes_logits`: `extras["logits"]` `[B, C]` replace a linear head.
    """

    permutes: bool = True
    uses_coords: bool = False
    attends_by_class: bool = False
    makes_logits: bool = False
    attention_rows: int = 1

    def __init__(self, in_dim: int, embed_dim: int, checkpointing: bool = False) -> None:
        super().__init__()
        self.in_dim, self.embed_dim, self.checkpointing = in_dim, embed_dim, checkpointing

    def forward_features(
        self,
        features: Tensor,
        mask: Tensor | None = None,
        coords: Tensor | None = None,
        return_attention: bool = False,
    ) -> Aggregated:
        """features `[B, N, D]`; mask `[B, N]` bool or float, nonzero for a real instance, None if all are; coords
        `[B, N, 2]` float, in sides of a tile, upper left corners. What padding holds does not matter.

        UserError for another width D, for missing coords, and for a bag without a real instance, by its index; on an
        accelerator, where looking would wait for the device, the embedding of such a bag is NaN instead.
        """
        self._check(features, mask, coords)
        coords = coords if self.uses_coords else None
        if mask is None:
            return self._aggregate(features, None, coords, return_attention)
        mask = mask if mask.dtype == torch.bool else mask != 0
        if not _is_readable(mask):
            return self._masked(features, mask, coords, return_attention)
        lengths = mask.sum(dim=1).tolist()
        if 0 in lengths:
            raise UserError("a bag has no real instance", row=lengths.index(0), key="mask", expected="at least one")
        if min(lengths) == mask.shape[1]:
            return self._aggregate(features, None, coords, return_attention)
        return self._per_bag(features, mask, lengths, coords, return_attention)

    def forward(
        self,
        features: Tensor,
        mask: Tensor | None = None,
        coords: Tensor | None = None,
        return_attention: bool = False,
    ) -> Aggregated:
        return self.forward_features(features, mask, coords, return_attention)

    def auxiliary_loss(self, extras: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor] | None:
        """(sum, weight) of the loss that the paper adds to the head's, for labels `[B]` of classes; None without one.
        The recipe adds sum / weight, times a factor of its own."""
        return None

    def _aggregate(self, x: Tensor, mask: Tensor | None, coords: Tensor | None, return_attention: bool) -> Aggregated:
        """Whole bags `[B, N, D]`: all instances real where `mask` is None; otherwise padding is 0, and behind the real
        instances if order matters."""
        raise NotImplementedError

    def _run(self, part: Callable[..., Any], *inputs: Any) -> Any:
        """A part of the network; with `checkpointing` it is computed again in the backward pass instead of kept."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(part, *inputs, use_reentrant=False)
        return part(*inputs)

    def _check(self, features: Tensor, mask: Tensor | None, coords: Tensor | None) -> None:
        if features.ndim != 3 or features.shape[2] != self.in_dim:
            expected = f"[B, N, {self.in_dim}]"
            raise UserError("features of another shape", key="features", found=list(features.shape), expected=expected)
        if mask is not None and mask.shape != features.shape[:2]:
            expected = f"[B, N] of features {list(features.shape)}"
            raise UserError("a mask of another shape", key="mask", found=list(mask.shape), expected=expected)
        if self.uses_coords and (coords is None or coords.shape[:2] != features.shape[:2] or coords.shape[2] != 2):
            found = None if coords is None else list(coords.shape)
            raise UserError(
                f"{type(self).__name__} needs coords",
                key="coords",
                found=found,
                expected="[B, N, 2] in sides of a tile",
            )

    def _per_bag(
        self, features: Tensor, mask: Tensor, lengths: list[int], coords: Tensor | None, return_attention: bool
    ) -> Aggregated:
        places = [_places(row, n) for row, n in zip(mask, lengths, strict=True)]
        parts = []
        for i, place in enumerate(places):
            at = None if coords is None else _take(coords, i, place)
            parts.append(self._aggregate(_take(features, i, place), None, at, return_attention))
        N = mask.shape[1]
        extras = {
            name: torch.cat(
                [
                    _spread(part.extras[name], place, N, PER_INSTANCE[name])
                    if name in PER_INSTANCE
                    else part.extras[name]
                    for part, place in zip(parts, places, strict=True)
                ]
            )
            for name in parts[0].extras
        }
        return Aggregated(torch.cat([part.embedding for part in parts]), extras)

    def _masked(self, features: Tensor, mask: Tensor, coords: Tensor | None, return_attention: bool) -> Aggregated:
        rank = None
        if not self.permutes:
            rank = _ranks(mask)
            order = torch.arange(mask.shape[1], device=mask.device).expand_as(rank)
            order = torch.empty_like(rank).scatter(1, rank, order)
            mask = mask.gather(1, order)
            features = features.gather(1, order[..., None].expand(-1, -1, features.shape[2]))
            coords = None if coords is None else coords.gather(1, order[..., None].expand(-1, -1, 2))
        padding = ~mask[..., None]
        features = features.masked_fill(padding, 0.0)
        coords = None if coords is None else coords.masked_fill(padding, 0.0)
        embedding, extras = self._aggregate(features, mask, coords, return_attention)
        for name in PER_INSTANCE.keys() & extras.keys():
            rows = extras[name].masked_fill(~mask[:, None], PER_INSTANCE[name])
            extras[name] = rows if rank is None else rows.gather(2, rank[:, None].expand_as(rows))
        return Aggregated(embedding.masked_fill(~mask.any(dim=1, keepdim=True), torch.nan), extras)


def _is_readable(mask: Tensor) -> bool:
    """Whether reading the mask neither waits for a device nor fixes a traced shape."""
    return mask.is_cpu and not is_traced()


def _ranks(mask: Tensor) -> Tensor:
    """Where each instance of `[B, N]` goes if the real ones move to the front and both keep their order. Not by a
    stable sort, which ONNX lacks."""
    real = mask.to(torch.int64)
    return torch.where(mask, real.cumsum(1) - 1, real.sum(1, keepdim=True) + (1 - real).cumsum(1) - 1)


def _places(row: Tensor, length: int) -> slice | Tensor:
    """Where the real instances of a bag `[N]` are; a slice, hence a view, if they come first."""
    return slice(0, length) if bool(row[:length].all()) else row.nonzero().squeeze(1)


def _take(x: Tensor, i: int, place: slice | Tensor) -> Tensor:
    return x[i : i + 1, place] if isinstance(place, slice) else x[i].index_select(0, place)[None]


def _spread(rows: Tensor, place: slice | Tensor, length: int, fill: float) -> Tensor:
    out = rows.new_full((*rows.shape[:-1], length), fill)
    if isinstance(place, slice):
        place = torch.arange(rows.shape[-1])
    return out.index_copy(-1, place, rows)
