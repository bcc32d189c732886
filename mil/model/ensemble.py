"""Several slide models that predict together. Not here: which ones (mil.results.models), files (mil.artifact)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mil.model.slide_model import SlideModel, SlidePrediction


class SlideEnsemble(nn.Module):
    """M models of one target. Values are their mean (probabilities, numbers, log-risks), attention too; embeddings are
    joined, `[B, M · E]`."""

    def __init__(self, members: Sequence[SlideModel]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def predict(
        self, features: Tensor, mask: Tensor | None = None, coords: Tensor | None = None, return_attention: bool = False
    ) -> SlidePrediction:
        """As SlideModel.predict."""
        found = [cast(SlideModel, one).predict(features, mask, coords, return_attention) for one in self.members]
        attention = [one.attention for one in found if one.attention is not None]
        return SlidePrediction(
            torch.stack([one.values for one in found]).mean(dim=0),
            torch.cat([one.embedding for one in found], dim=1),
            torch.stack(attention).mean(dim=0) if len(attention) == len(found) else None,
        )

    @property
    def value_names(self) -> tuple[str, ...]:
        return cast(SlideModel, self.members[0]).value_names

    @property
    def attention_names(self) -> tuple[str, ...]:
        return cast(SlideModel, self.members[0]).attention_names

    @property
    def uses_coords(self) -> bool:
        return cast(SlideModel, self.members[0]).uses_coords
