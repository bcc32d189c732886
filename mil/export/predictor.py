"""A trained slide model as one function of tensors with a fixed list of named outputs, which every format is made of.

Not here: formats (mil.export.formats), where models are (mil.export.finding).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from mil.model.slide_model import SlideModel
from mil.target import REGRESSION, SURVIVAL, Target

INPUTS = ("features", "mask", "coords")
EMBEDDING, ATTENTION = "slide_embedding", "attention_probs"
PROBABILITIES, PREDICTED, RISK = "probabilities", "predicted", "risk"


class Answer(NamedTuple):
    """`values` `[B, K]` of the head, None without one; `embedding` `[B, E]`; `attention` `[B, H, N]`, None without."""

    values: Tensor | None
    embedding: Tensor
    attention: Tensor | None


class Predicts(Protocol):
    """What a model that is no SlideModel needs, such as an ensemble: `values`, `embedding` and `attention`."""

    def predict(self, features: Tensor, mask: Tensor, coords: Tensor, return_attention: bool) -> Answer: ...


def ask(net: nn.Module, features: Tensor, mask: Tensor, coords: Tensor) -> Answer:
    """The answer of any kind of model. Another kind of model than these two is made known here."""
    if not isinstance(net, SlideModel):
        found = cast(Predicts, net).predict(features, mask, coords, True)
        return Answer(found.values, found.embedding, found.attention)
    out, values = net(features, mask, coords, True), None
    if net.head is not None:
        values = torch.stack(list(net.head.predict(out.logits).values()), dim=1)
    return Answer(values, out.slide_embedding, out.extras.get(ATTENTION))


@dataclass(frozen=True)
class Output:
    """One output: `shape` of names of axes and numbers; `columns`: what is along its second axis, where that has
    names; `unit`: in which the differences of an export are counted, None for the largest value of the output."""

    name: str
    shape: tuple[str | int, ...]
    columns: tuple[str, ...] = ()
    unit: float | None = 1.0


class SlidePredictor(nn.Module):
    """features `[B, N, D]` float32, mask `[B, N]` bool, coords `[B, N, 2]` float32 in sides of a tile → a tuple in the
    order of `outputs`:

    - of a model with a head `probabilities` `[B, C]` in the order of the classes, `predicted` `[B]` in the label's
      unit, or `risk` `[B]`, a log-risk; a model without a head, a slide encoder, has none;
    - `slide_embedding` `[B, E]`;
    - of a model with attention `attention_probs` `[B, H or C, N]`, 0 on padding.

    All but the attention of a slide without a real tile is NaN.
    """

    def __init__(self, net: nn.Module, target: Target, with_head: bool = True) -> None:
        super().__init__()
        self.net = net
        with torch.no_grad():
            shapes = ask(net, torch.zeros(1, 1, target.dim), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, 2))
        self.outputs = self._outputs(shapes if with_head else shapes._replace(values=None), target)
        self.with_head = with_head and shapes.values is not None

    def forward(self, features: Tensor, mask: Tensor, coords: Tensor) -> tuple[Tensor, ...]:
        values, embedding, attention = ask(self.net, features, mask, coords)
        out = () if attention is None else (attention,)
        if not self.with_head:
            return (embedding, *out)
        assert values is not None
        return (values if self.outputs[0].name == PROBABILITIES else values[:, 0], embedding, *out)

    @property
    def uses_coords(self) -> bool:
        """Whether positions change what is predicted."""
        return bool(self.net.aggregator.uses_coords if isinstance(self.net, SlideModel) else self.net.uses_coords)

    def _outputs(self, answer: Answer, target: Target) -> tuple[Output, ...]:
        out = []
        if answer.values is not None and target.task == REGRESSION:
            out.append(Output(PREDICTED, ("B",), unit=target.scale[1]))
        elif answer.values is not None and target.task == SURVIVAL:
            out.append(Output(RISK, ("B",)))
        elif answer.values is not None:
            columns = tuple(f"prob_{name}" for name in target.classes)
            assert len(columns) == answer.values.shape[1], (columns, answer.values.shape)
            out.append(Output(PROBABILITIES, ("B", len(columns)), columns))
        out.append(Output(EMBEDDING, ("B", answer.embedding.shape[1]), unit=None))
        if answer.attention is not None:
            rows = cast(SlideModel, self.net).attention_names
            out.append(Output(ATTENTION, ("B", answer.attention.shape[1], "N"), rows))
        return tuple(out)
