"""Heads, losses and the slide model, against formulas written out and torch's own losses."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mil.aggregators.clam import CLAM
from mil.model.cox import CoxHead, cox_terms
from mil.model.heads import ClassHead, OrdinalHead, RegressionHead
from mil.model.slide_model import build_model
from pathray.errors import UserError

NAMES = ["a", "b", "c"]


def logits_and_labels(rows: int = 11, classes: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return 2 * torch.randn(rows, classes, generator=g), torch.randint(0, classes, (rows,), generator=g)


@pytest.mark.parametrize("weights", [None, [1.0, 0.2, 5.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs_however_the_batch_is_divided(weights: list[float] | None, smoothing: float) -> None:
    logits, labels = logits_and_labels()
    head = ClassHead(4, NAMES, class_weights=weights, smoothing=smoothing)
    tensor = None if weights is None else torch.tensor(weights)
    wanted = F.cross_entropy(logits, labels, tensor, label_smoothing=smoothing)
    for cuts in ([11], [4, 7], [1] * 11):
        parts = [head.loss(*part) for part in zip(logits.split(cuts), labels.split(cuts), strict=True)]
        torch.testing.assert_close(sum(p.sum for p in parts) / sum(p.weight for p in parts), wanted)


def test_focal_weighs_by_the_probability_that_class_weights_do_not_touch() -> None:
    logits, labels = logits_and_labels()
    weights = torch.tensor([1.0, 0.2, 5.0])
    p = logits.double().softmax(1)[range(11), labels]
    wanted = (weights[labels] * (1 - p) ** 2 * -p.log()).sum() / weights[labels].sum()
    loss = ClassHead(4, NAMES, "focal", class_weights=weights.tolist()).loss(logits, labels)
    torch.testing.assert_close((loss.sum / loss.weight).double(), wanted.double(), atol=1e-6, rtol=1e-6)
    plain = ClassHead(4, NAMES, "focal", gamma=0.0).loss(logits, labels)
    torch.testing.assert_close(plain.sum / plain.weight, F.cross_entropy(logits, labels))


def test_bce_has_one_logit_or_two() -> None:
    logits, labels = logits_and_labels(classes=2)
    one = ClassHead(4, ["no", "yes"], "bce", outputs=1)
    loss = one.loss(logits[:, :1], labels)
    torch.testing.assert_close(loss.sum / loss.weight, F.binary_cross_entropy_with_logits(logits[:, 0], labels.float()))
    predicted = one.predict(logits[:, :1])
    torch.testing.assert_close(predicted["prob_yes"], logits[:, 0].sigmoid())
    torch.testing.assert_close(predicted["prob_no"] + predicted["prob_yes"], torch.ones(11))
    two = ClassHead(4, ["no", "yes"], "bce").loss(logits, labels)
    torch.testing.assert_close(
        two.sum / two.weight, F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 2).float())
    )
    for bad in ({"names": NAMES, "loss": "bce"}, {"names": NAMES, "outputs": 1}, {"names": ["a", "a"]}):
        with pytest.raises(UserError):
            ClassHead(4, **bad)  # type: ignore[arg-type]


def test_logits_are_clamped_and_in_float32_under_autocast() -> None:
    head = ClassHead(4, NAMES)
    assert head(1e4 * torch.randn(5, 4)).abs().max() == 100
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(torch.randn(5, 4)).dtype == torch.float32


def test_missing_values_of_a_regression_do_not_count_and_units_come_back() -> None:
    head = RegressionHead(4, ["age", "ki67"], mean=[60.0, 0.2], std=[10.0, 0.1])
    z = torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    target = torch.tensor([[70.0, 0.2], [math.nan, 0.4]])
    loss = head.loss(z, target)
    assert loss.weight == 3
    torch.testing.assert_close(loss.sum, torch.tensor(0.0 + 1.0 + 0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(head.predict(z)["age"], torch.tensor([70.0, 60.0]))
    huber = RegressionHead(4, ["y"], huber_delta=1.0).loss(torch.tensor([[3.0], [0.5]]), torch.tensor([0.0, 0.0]))
    torch.testing.assert_close(huber.sum, torch.tensor(2.5 + 0.125))


def test_grades_have_probabilities_that_are_ordered_cumulative_odds() -> None:
    head = OrdinalHead(4, ["g1", "g2", "g3", "g4"])
    with torch.no_grad():
        head.first.fill_(-1.3)
        head.gaps.copy_(torch.tensor([0.5, -2.0]))
    assert bool((head.thresholds().diff() > 0).all())
    x = torch.randn(9, 4)
    logits, labels = head(x), torch.arange(9) % 4
    above = torch.cat([torch.ones(9, 1), logits.double().sigmoid(), torch.zeros(9, 1)], 1)
    wanted = above[:, :-1] - above[:, 1:]
    predicted = head.predict(logits)
    for i, name in enumerate(head.names):
        torch.testing.assert_close(predicted[f"prob_{name}"].double(), wanted[:, i], atol=1e-6, rtol=1e-5)
    expected = sum(k * predicted[f"prob_{name}"] for k, name in enumerate(head.names))
    torch.testing.assert_close(expected, logits.sigmoid().sum(1), atol=1e-5, rtol=1e-5)
    loss = head.loss(logits, labels)
    torch.testing.assert_close(loss.sum.double(), -wanted[range(9), labels].log().sum(), atol=1e-5, rtol=1e-5)
    extreme = head.loss(torch.tensor([[100.0, 99.0, -100.0]]), torch.tensor([0]))
    assert bool(extreme.sum.isfinite())


def by_hand(r: list[float], t: list[float], e: list[bool], ties: str) -> float:
    """−log of the partial likelihood, time by time (Breslow 1974; Efron 1977)."""
    total = 0.0
    for time in sorted({t[i] for i in range(len(t)) if e[i]}):
        dead = [i for i in range(len(t)) if t[i] == time and e[i]]
        risk = sum(math.exp(r[j]) for j in range(len(t)) if t[j] >= time)
        own = sum(math.exp(r[j]) for j in dead)
        for place, i in enumerate(dead):
            total -= r[i] - math.log(risk - (place / len(dead) * own if ties == "efron" else 0))
    return total


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_the_partial_likelihood_with_ties(ties: str) -> None:
    torch.manual_seed(0)
    r, t = torch.randn(14, dtype=torch.float64), torch.tensor([3, 1, 2, 2, 5, 2, 7, 7, 1, 4, 4, 4, 9, 2]).double()
    e = torch.tensor([1, 1, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 1]).bool()
    found = cox_terms(r, t, e, ties)
    assert not found[~e].any()
    torch.testing.assert_close(float(found.sum()), by_hand(r.tolist(), t.tolist(), e.tolist(), ties))
    shifted = cox_terms(r + 90, t, e, ties)
    torch.testing.assert_close(shifted, found, atol=1e-9, rtol=1e-9)
    assert bool(torch.autograd.gradcheck(lambda x: cox_terms(x, t, e, ties).sum(), r.requires_grad_()))


def test_ranks_together_give_the_cox_loss_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(8, 1), torch.stack([torch.randint(1, 5, (8,)), torch.randint(0, 2, (8,))], 1).float()
    head = CoxHead(4)
    whole = head.loss(logits, target)
    assert whole.weight == target[:, 1].sum()

    def gather(x: Tensor) -> Tensor:
        return logits if x.shape[1] == 1 else target

    parts = [head.loss(logits[i : i + 4], target[i : i + 4], gather, rank) for rank, i in enumerate((0, 4))]
    torch.testing.assert_close(sum(p.sum for p in parts), whole.sum)
    assert sum(p.weight for p in parts) == whole.weight


def test_cox_accepts_a_batch_without_events() -> None:
    loss = CoxHead(4).loss(torch.randn(3, 1), torch.tensor([[1.0, 0.0]] * 3))
    assert loss.sum == 0 and loss.weight == 1


@pytest.mark.parametrize("subtyping", [False, True])
@pytest.mark.parametrize("name", ["clam_sb", "clam_mb"])
def test_the_instance_loss_of_clam_is_that_of_its_picks(name: str, subtyping: bool) -> None:
    torch.manual_seed(0)
    arguments = {"embed_dim": 6, "attention_dim": 4, "k": 3, "subtyping": subtyping, "dropout": 0.0}
    model = build_model(name, 5, "classes", {"names": NAMES}, **arguments).train()
    x, mask, labels = torch.randn(3, 20, 5), torch.ones(3, 20).bool(), torch.tensor([0, 2, 1])
    mask[1, 5:], mask[2, 1:] = False, False
    out = model(x, mask, return_attention=True)
    clam = model.aggregator
    assert isinstance(clam, CLAM)
    found = clam.auxiliary_loss(out.extras, labels)
    wanted = 0.0
    for b, c in itertools.product(range(3), range(3)):
        own = mask[b].nonzero()[:, 0]
        h = clam.embed(x[b, own])
        row = out.extras["attention_logits"][b, c if name == "clam_mb" else 0, own]
        k = min(3, len(own) // 2)
        order = row.argsort(descending=True)
        high, low = order[: max(k, 1)], order[len(order) - k :]
        if c == labels[b]:
            picked, target = h[torch.cat([high, low])], [1] * len(high) + [0] * len(low)
        elif subtyping:
            picked, target = h[high], [0] * len(high)
        else:
            continue
        logits = clam.instance_classifiers[c](picked)
        wanted += F.cross_entropy(logits, torch.tensor(target)).item() / (3 if subtyping else 1)
    assert found[1] == 3
    torch.testing.assert_close(found[0].item(), wanted, atol=1e-5, rtol=1e-5)
    assert "instance_logits" not in model.eval()(x, mask).extras


def test_dtfd_pools_each_pseudo_bag_and_then_their_features() -> None:
    model = build_model("dtfd", 5, "classes", {"names": NAMES}, embed_dim=6, attention_dim=4, pseudo_bags=3).eval()
    x, dtfd = torch.randn(1, 11, 5), model.aggregator
    h = dtfd.get_submodule("embed")(x)
    first, second = dtfd.get_submodule("attention"), dtfd.get_submodule("second_attention")
    pooled = torch.stack([(first(h[:, i::3]).softmax(2) @ h[:, i::3])[0, 0] for i in range(3)])[None]
    torch.testing.assert_close(model(x).slide_embedding, (second(pooled).softmax(2) @ pooled)[:, 0])
    assert set(model(x[:, :2]).extras["pseudo_valid"][0].tolist()) == {True, False}
    for kind in ("maxs", "maxmins"):
        other = build_model("dtfd", 5, embed_dim=6, pseudo_bags=3, distill=kind).eval()
        assert bool(other(x[:, :2]).slide_embedding.isfinite().all())


def test_dtfd_draws_its_division_from_a_given_generator() -> None:
    model = build_model("dtfd", 5, embed_dim=6, dropout=0.0).train()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed + len(results))  # the global generator is not asked
        model.aggregator.generator = torch.Generator().manual_seed(seed)
        results.append(model(torch.ones(1, 30, 5) * torch.arange(30)[:, None]).extras["pseudo_logits"])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", ["abmil", "clam_mb", "clam_sb", "dsmil", "dtfd"])
@pytest.mark.parametrize("head", ["classes", "ordinal", "cox", "regression"])
def test_every_head_goes_on_every_kind_of_aggregator(name: str, head: str) -> None:
    arguments = {"names": NAMES} if head != "cox" else {}
    model = build_model(name, 5, head, arguments, embed_dim=6).train()
    out = model(torch.randn(4, 9, 5), torch.ones(4, 9), return_attention=True)
    width = {"classes": 3, "ordinal": 2, "cox": 1, "regression": 3}[head]
    assert out.logits is not None and out.logits.shape == (4, width)
    out.logits.square().sum().backward()
    assert model.head is not None
    unused = [key for key, p in model.head.named_parameters() if p.grad is None]
    assert unused == []


def test_attention_rows_are_named_by_class_where_they_are_classes() -> None:
    assert build_model("clam_mb", 5, "classes", {"names": NAMES}).attention_names == ("a", "b", "c")
    assert build_model("clam_sb", 5, "classes", {"names": NAMES}).attention_names == ("head_0",)
    assert build_model("multihead_abmil", 5, heads=2).attention_names == ("head_0", "head_1")
    with pytest.raises(UserError, match="differ"):
        build_model("dsmil", 5, "classes", {"names": NAMES}, classes=2)
    with pytest.raises(UserError, match="unknown head"):
        build_model("abmil", 5, "classses")


def test_a_model_without_a_head_gives_embeddings_only() -> None:
    out = build_model("perceiver", 5, embed_dim=8)(torch.randn(2, 4, 5), torch.ones(2, 4))
    assert out.logits is None and out.slide_embedding.shape == (2, 8)
