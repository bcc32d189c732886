"""Heads of a slide model: embedding → logits, their loss, and predictions; Cox's is in `mil.model.cox`.

A loss is Σ over the bags of a micro-batch with the weight to divide it by, so that accumulated micro-batches give the
loss of the whole batch. Not here: aggregators, auxiliary losses of a paper (`Aggregator.auxiliary_loss`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil.aggregators.instances import glorot
from pathray.errors import UserError
from pathray.nn.regularise import at_least_float32
from pathray.train.recipe import Loss

LOGIT_LIMIT = 100.0
CLASS_LOSSES = ("ce", "bce", "focal")


class Head(nn.Module):
    """A linear layer `[B, E]` → `[B, outputs]`, clamped to ±100, in float32 or float64 also under autocast.

    `linear` is None on top of an aggregator that makes logits itself. `compares_bags`: the loss is no sum over bags, so
    that a batch cannot be divided into micro-batches.
    """

    compares_bags = False

    def __init__(self, embed_dim: int, outputs: int, with_linear: bool = True) -> None:
        super().__init__()
        self.outputs = outputs
        self.linear = glorot(nn.Linear(embed_dim, outputs)) if with_linear else None

    def forward(
        self, embedding: Tensor, class_embeddings: Tensor | None = None, logits: Tensor | None = None
    ) -> Tensor:
        """Of `class_embeddings` `[B, C, E]`, each class's row of the weights reads its own. `logits` replace both."""
        if self.linear is None:
            assert logits is not None, "a head without a linear layer needs the aggregator's logits"
            return _clamped(logits)
        if class_embeddings is None:
            return _clamped(self.linear(embedding))
        return _clamped((class_embeddings * self.linear.weight).sum(dim=2) + self.linear.bias)

    def loss(self, logits: Tensor, target: Tensor) -> Loss:
        """Σ over bags and the weight of it."""
        raise NotImplementedError

    def predict(self, logits: Tensor) -> dict[str, Tensor]:
        """What the model says, by name; each `[B]`."""
        raise NotImplementedError

    @property
    def value_names(self) -> tuple[str, ...]:
        """The names of `predict`, in order."""
        names: Sequence[str] = getattr(self, "names", ())
        return tuple(f"prob_{name}" for name in names)


class ClassHead(Head):
    """Classes by name. Targets `[B]` int64 are positions in `names`.

    - `ce`: Σ w_y CE with label smoothing, weight Σ w_y, as torch's mean.
    - `bce`: a logit z_k per class. z_2 and −z_1 estimate the same log-odds, so p_2 = σ((z_2 − z_1)/2). Or a single
      logit (`outputs=1`), of the second class.
    - `focal`: −w_y (1 − p_y)^γ log p_y (Lin et al. 2017, arXiv 1708.02002); p_y is the model's, without class weights.
    """

    weights: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        names: Sequence[str],
        loss: str = "ce",
        outputs: int | None = None,
        class_weights: Sequence[float] | None = None,
        smoothing: float = 0.0,
        gamma: float = 2.0,
        with_linear: bool = True,
    ) -> None:
        super().__init__(embed_dim, outputs or len(names), with_linear)
        self.names, self.kind, self.smoothing, self.gamma = tuple(names), loss, smoothing, gamma
        self._check(class_weights)
        weights = None if class_weights is None else torch.tensor(list(class_weights), dtype=torch.float32)
        self.register_buffer("weights", weights, persistent=False)

    def loss(self, logits: Tensor, target: Tensor) -> Loss:
        weight = torch.ones_like(logits[:, 0]) if self.weights is None else self.weights.to(logits)[target]
        if self.kind == "bce":
            each = self._binary(logits, target)
        elif self.kind == "focal":
            log_p = self._log_probabilities(logits).gather(1, target[:, None]).squeeze(1)
            each = -((1 - log_p.exp()) ** self.gamma) * log_p
        else:
            weights = None if self.weights is None else self.weights.to(logits)
            total = F.cross_entropy(logits, target, weights, reduction="sum", label_smoothing=self.smoothing)
            return Loss(total, weight.sum())
        return Loss((weight * each).sum(), weight.sum())

    def predict(self, logits: Tensor) -> dict[str, Tensor]:
        """`{"prob_<name>": [B]}`; they sum to 1."""
        halved = self.kind == "bce" and self.outputs > 1  # z_2 and −z_1 both estimate the logit: their mean
        probabilities = self._log_probabilities(logits / 2 if halved else logits).exp()
        return {f"prob_{name}": column for name, column in zip(self.names, probabilities.unbind(1), strict=True)}

    def _binary(self, logits: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy per bag, mean over its logits; smoothing moves the targets towards ½."""
        wanted = target[:, None] if self.outputs == 1 else F.one_hot(target, self.outputs)
        wanted = wanted.to(logits) * (1 - self.smoothing) + 0.5 * self.smoothing
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1)

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        if self.outputs == 1:
            return torch.cat([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=1)
        return logits.log_softmax(dim=1)

    def _check(self, class_weights: Sequence[float] | None) -> None:
        if len(self.names) < 2 or len(set(self.names)) < len(self.names):
            raise UserError("class names", key="head.classes", found=self.names, expected="two or more different names")
        if self.kind not in CLASS_LOSSES:
            raise UserError("unknown loss", key="head.loss", found=self.kind, expected=" or ".join(CLASS_LOSSES))
        single = self.outputs == 1 and len(self.names) == 2 and self.kind != "ce"
        if not single and self.outputs != len(self.names):
            expected = f"{len(self.names)}, or 1 with two classes and bce or focal"
            raise UserError("wrong number of logits", key="head.outputs", found=self.outputs, expected=expected)
        if self.kind == "bce" and len(self.names) > 2:
            raise UserError("bce is for two classes", key="head.loss", found=len(self.names), expected="ce or focal")
        if class_weights is not None and (len(class_weights) != len(self.names) or min(class_weights) < 0):
            expected = f"{len(self.names)} numbers, none negative"
            raise UserError("class weights", key="head.class_weights", found=list(class_weights), expected=expected)


class RegressionHead(Head):
    """Values by name. Targets `[B, K]` or `[B]` float in their own unit; NaN is missing and does not count.

    The logits are z = (y − mean) / std. Loss: (ẑ − z)², or Huber's with δ, summed over the values that are there.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        embed_dim: int,
        names: Sequence[str],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        huber_delta: float | None = None,
        with_linear: bool = True,
    ) -> None:
        super().__init__(embed_dim, len(names), with_linear)
        self.names, self.huber_delta = tuple(names), huber_delta
        for key, values, default in (("mean", mean, 0.0), ("std", std, 1.0)):
            given = [default] * len(names) if values is None else list(values)
            if len(given) != len(names) or (key == "std" and min(given) <= 0):
                expected = f"{len(names)} values" + (" > 0" if key == "std" else "")
                raise UserError("one per target", key=f"head.{key}", found=given, expected=expected)
            self.register_buffer(key, torch.tensor(given, dtype=torch.float32))

    def loss(self, logits: Tensor, target: Tensor) -> Loss:
        z = (target.reshape(logits.shape).to(logits) - self.mean) / self.std
        there = ~z.isnan()
        z = z.masked_fill(~there, 0.0)
        if self.huber_delta is None:
            each = (logits - z).square()
        else:
            each = F.huber_loss(logits, z, delta=self.huber_delta, reduction="none")
        return Loss(each.masked_fill(~there, 0.0).sum(), there.sum().to(each.dtype))

    @property
    def value_names(self) -> tuple[str, ...]:
        return self.names

    def predict(self, logits: Tensor) -> dict[str, Tensor]:
        """`{name: value [B]}` in the target's unit."""
        values = logits * self.std + self.mean
        return {name: column for name, column in zip(self.names, values.unbind(1), strict=True)}


class OrdinalHead(Head):
    """Ordered grades by name. Targets `[B]` int64. One score s per bag and thresholds θ_1 < … < θ_{K−1}:

        P(y > k) = sigmoid(s − θ_k), the proportional-odds model (McCullagh 1980)

    Thresholds are ordered by construction, so that every grade has a probability ≥ 0; the loss is −log P(y). Logits are
    s − θ_k, `[B, K − 1]`.
    """

    def __init__(self, embed_dim: int, names: Sequence[str], with_linear: bool = True) -> None:
        super().__init__(embed_dim, 1, with_linear)
        if len(names) < 2 or len(set(names)) < len(names):
            raise UserError("grades", key="head.grades", found=list(names), expected="two or more different names")
        self.names, steps = tuple(names), len(names) - 2
        self.first = nn.Parameter(torch.full((), -0.5 * steps))
        self.gaps = nn.Parameter(torch.full((steps,), 1.0).expm1().log())  # softplus of it is 1

    def forward(
        self, embedding: Tensor, class_embeddings: Tensor | None = None, logits: Tensor | None = None
    ) -> Tensor:
        score = super().forward(embedding, class_embeddings, logits)
        return _clamped(score - self.thresholds())

    def thresholds(self) -> Tensor:
        """θ `[K − 1]`, ascending."""
        return torch.cat([self.first[None], self.first + F.softplus(self.gaps).cumsum(dim=0)])

    def loss(self, logits: Tensor, target: Tensor) -> Loss:
        log_p = self._log_probabilities(logits).gather(1, target[:, None])
        return Loss(-log_p.sum(), torch.full((), float(len(target)), device=logits.device))

    def predict(self, logits: Tensor) -> dict[str, Tensor]:
        """`{"prob_<name>": [B]}`, which sum to 1."""
        probabilities = self._log_probabilities(logits).exp()
        return {f"prob_{name}": column for name, column in zip(self.names, probabilities.unbind(1), strict=True)}

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        """log(σ(a) − σ(b)) of neighbours a > b is log σ(a) + log σ(−b) + log(1 − exp(b − a)): no cancellation."""
        above, below = F.logsigmoid(logits), F.logsigmoid(-logits)
        middle = (
            above[:, :-1] + below[:, 1:] + torch.log(-torch.expm1((logits[:, 1:] - logits[:, :-1]).clamp(max=-1e-6)))
        )
        return torch.cat([below[:, :1], middle, above[:, -1:]], dim=1)


def _clamped(logits: Tensor) -> Tensor:
    return at_least_float32(logits).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
