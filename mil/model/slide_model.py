"""The whole network for slides: an aggregator and a head. Not here: its training (the recipe), weights in files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mil.aggregators import Aggregator, build_aggregator
from mil.model.cox import CoxHead
from mil.model.heads import ClassHead, Head, OrdinalHead, RegressionHead
from pathray.errors import UserError

HEADS = ("classes", "regression", "ordinal", "cox")


class MILOutput(NamedTuple):
    """`slide_embedding` `[B, E]`; `logits` `[B, C]` of the head, None without one; the aggregator's `extras`."""

    slide_embedding: Tensor
    logits: Tensor | None
    extras: dict[str, Tensor]


class SlidePrediction(NamedTuple):
    """`values` `[B, K]` as `value_names` says; `embedding` `[B, E]`; `attention` `[B, H or C, N]` where asked for and
    there."""

    values: Tensor
    embedding: Tensor
    attention: Tensor | None


class SlideModel(nn.Module):
    """An aggregator with a head, or with none (pretraining, slide encoders)."""

    def __init__(self, aggregator: Aggregator, head: Head | None = None) -> None:
        super().__init__()
        self.aggregator, self.head = aggregator, head

    def forward(
        self,
        features: Tensor,
        mask: Tensor | None = None,
        coords: Tensor | None = None,
        return_attention: bool = False,
    ) -> MILOutput:
        """features `[B, N, D]`, mask `[B, N]`, coords `[B, N, 2]`, as for `Aggregator.forward_features`."""
        embedding, extras = self.aggregator.forward_features(features, mask, coords, return_attention)
        if self.head is None:
            return MILOutput(embedding, None, extras)
        logits = self.head(embedding, extras.get("class_embeddings"), extras.get("logits"))
        return MILOutput(embedding, logits, extras)

    def predict(
        self,
        features: Tensor,
        mask: Tensor | None = None,
        coords: Tensor | None = None,
        return_attention: bool = False,
    ) -> SlidePrediction:
        """What the head says of bags, in the order of `value_names`: probabilities, numbers or log-risks."""
        assert self.head is not None, "a model without a head predicts nothing"
        out = self(features, mask, coords, return_attention)
        values = torch.stack(list(self.head.predict(out.logits).values()), dim=1)
        return SlidePrediction(values, out.slide_embedding, out.extras.get("attention_probs"))

    @property
    def value_names(self) -> tuple[str, ...]:
        """`prob_<class>` …, the label of a regression, or `risk`."""
        assert self.head is not None, "a model without a head predicts nothing"
        return self.head.value_names

    @property
    def uses_coords(self) -> bool:
        return self.aggregator.uses_coords

    @property
    def attention_names(self) -> tuple[str, ...]:
        """Names of the attention's rows: the classes' if it has one per class of the head, else `head_0` …."""
        rows = self.aggregator.attention_rows
        names = getattr(self.head, "names", ())
        if self.aggregator.attends_by_class and len(names) == rows:
            return tuple(names)
        return tuple(f"head_{i}" for i in range(rows))


def build_model(
    name: str, in_dim: int, head: str | None = None, head_arguments: dict[str, Any] | None = None, **arguments: Any
) -> SlideModel:
    """An aggregator by name with a head of `HEADS` by name, or none. An aggregator that knows classes gets the head's
    number of outputs as its `classes`. UserError for unknown names and arguments."""
    if head is None:
        return SlideModel(build_aggregator(name, in_dim, **arguments))
    if head not in HEADS:
        raise UserError("unknown head", key="head.kind", found=head, expected=" or ".join(HEADS))
    options = dict(head_arguments or {})
    outputs = _outputs(head, options)
    aggregator = build_aggregator(name, in_dim, **{**_classes_of(name, head, options, outputs), **arguments})
    options["with_linear"] = not aggregator.makes_logits
    made = getattr(aggregator, "classes", outputs)
    if (aggregator.makes_logits or aggregator.attends_by_class) and made != outputs:
        raise UserError("the model and its head differ", key="model.classes", found=made, expected=outputs)
    return SlideModel(aggregator, _head(head, aggregator.embed_dim, options))


def _outputs(head: str, options: dict[str, Any]) -> int:
    if head in ("ordinal", "cox"):
        return 1
    names: Sequence[str] = options.get("names", ())
    return int(options.get("outputs") or len(names))


def _classes_of(name: str, head: str, options: dict[str, Any], outputs: int) -> dict[str, int]:
    """CLAM with one branch and DTFD count the classes of labels, the others the head's logits."""
    from mil.aggregators.registry import aggregator_arguments, aggregator_names

    if name not in aggregator_names() or "classes" not in aggregator_arguments(name):
        return {}
    labelled = name in ("clam_sb", "dtfd") and head in ("classes", "ordinal")
    return {"classes": len(options.get("names", ())) if labelled else outputs}


def _head(head: str, embed_dim: int, options: dict[str, Any]) -> Head:
    kinds: dict[str, type[Head]] = {
        "classes": ClassHead,
        "regression": RegressionHead,
        "ordinal": OrdinalHead,
        "cox": CoxHead,
    }
    return kinds[head](embed_dim, **options)
