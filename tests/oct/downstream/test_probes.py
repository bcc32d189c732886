"""Linear and attentive probes: strengths chosen inside, eyes that count alike, no test person in the fit."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from oct.downstream.attentive import AttentiveHead, attentive_predictions, head_loss, pad
from oct.downstream.cohort import read_cohort
from oct.downstream.config import ProbeConfig
from oct.downstream.features import Features
from oct.downstream.folds import splits_of
from oct.downstream.linear import linear_predictions
from oct.downstream.probing import probe_attentive, probe_linear, unit_means, volume_weights
from pathray.evaluation.metrics import probe as probe_module
from tests.builders.oct.labelled import LABELS, NUMBERS


def cohort_of(folder, name=LABELS, task="classification"):
    return read_cohort(f"{folder}/volumes.parquet", f"{folder}/{name}", "label", task)


def rows(n=80, d=6, classes=3, seed=0):
    g = np.random.default_rng(seed)
    y = g.integers(0, classes, n).astype(float)
    x = g.standard_normal((n, d)) * 3 + 5
    x[:, 0] += 3 * y
    x[:, 1] -= 3 * (y == 1)
    return x, y, [f"p{i // 2}" for i in range(n)]


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_are_scikit_learns_at_the_chosen_strength(classes):
    x, y, persons = rows(classes=classes)
    found, c = linear_predictions(x[:60], y[:60], persons[:60], x[60:], classes=classes, inner=4, seed=0)
    mean, std = x[:60].mean(0), x[:60].std(0)
    oracle = LogisticRegression(C=c, max_iter=10_000, tol=1e-8).fit((x[:60] - mean) / std, y[:60])
    np.testing.assert_allclose(found, oracle.predict_proba((x[60:] - mean) / std), atol=5e-3)
    assert c in probe_module.CS


def test_a_class_that_no_training_row_has_gets_no_probability():
    x, y, persons = rows()
    y[:60][y[:60] == 1] = 0
    found, _ = linear_predictions(x[:60], y[:60], persons[:60], x[60:], classes=3, inner=4, seed=0)
    assert (found[:, 1] == 0).all() and np.allclose(found.sum(1), 1)


def test_both_eyes_of_a_person_count_alike_whatever_the_number_of_scans(labelled):
    cohort = cohort_of(labelled)
    first = [{**cohort.volumes[0], "path": f"more{i}"} for i in range(2)]  # three scans of the same eye
    many = cohort.only(np.ones(24, bool))
    many.volumes[:0] = first
    object.__setattr__(many, "unit", np.concatenate([[0, 0], many.unit]))
    weights = volume_weights(many)
    np.testing.assert_allclose(weights[:4], [1 / 6, 1 / 6, 1 / 6, 1 / 2])
    np.testing.assert_allclose(np.bincount(many.unit, weights), 1)
    means = unit_means(many, np.arange(26, dtype=np.float32)[:, None])
    assert means[0, 0] == pytest.approx((0 + 1 + 2) / 6 + 3 / 2)


def fake_features(cohort, strength=3.0, tokens=5, dim=8):
    """Features of which one dimension has the truth; of the tokens one alone has it."""
    g = np.random.default_rng(0)
    truth = cohort.truth[cohort.unit]
    mean = g.standard_normal((len(truth), dim)).astype(np.float32)
    mean[:, 2] += strength * truth
    seen = []
    for t in truth:
        one = g.standard_normal((tokens, dim)).astype(np.float16)
        one[g.integers(tokens), :2] = (8, 8 * (2 * t - 1))  # a marked token, which says the class
        seen.append(one)
    return Features(mean, seen, [])


def test_a_linear_probe_reads_what_is_there_and_nothing_where_nothing_is(labelled):
    for name, task, metric in ((LABELS, "classification", "auc"), (NUMBERS, "regression", "pearson")):
        cohort = cohort_of(labelled, name, task)
        splits = splits_of(cohort, split_file=None, k=4, seed=0, validation=False)
        scores = []
        for strength in (60.0, 0.0):
            found = probe_linear(cohort, fake_features(cohort, strength), splits, ProbeConfig(), 0)
            scores.append(found.judge(cohort, 200, 0)[metric])
        assert scores[0].estimate > 0.8 and scores[1].estimate < scores[0].estimate - 0.2 and scores[0].n == 12
        assert found.units.tolist() == list(range(12)) and len(found.chosen) == 4


def test_a_test_persons_features_do_not_change_the_fit(labelled):
    """With other features of the tested units, the other units' predictions stay as they are."""
    cohort = cohort_of(labelled)
    splits = splits_of(cohort, split_file=None, k=4, seed=0, validation=False)
    features = fake_features(cohort)
    before = probe_linear(cohort, features, splits[:1], ProbeConfig(), 0)
    tested = splits[0].rows("test")
    mean = features.mean.copy()
    changed = np.flatnonzero(cohort.unit == tested[0])
    mean[changed] += 100
    after = probe_linear(cohort, Features(mean, None, []), splits[:1], ProbeConfig(), 0)
    assert before.units.tolist() == tested.tolist()
    np.testing.assert_array_equal(before.values[1:], after.values[1:])


def test_the_attentive_probe_finds_the_one_token_that_says_it(labelled):
    cohort = cohort_of(labelled)
    splits = splits_of(cohort, split_file=None, k=3, seed=0, validation=False)
    config = ProbeConfig(min_steps=120, lrs=[3e-3])
    found = probe_attentive(cohort, fake_features(cohort, strength=0.0), splits, config, 0)
    assert found.judge(cohort, 100, 0)["auc"].estimate > 0.9
    again = probe_attentive(cohort, fake_features(cohort, strength=0.0), splits, config, 0)
    np.testing.assert_array_equal(found.values, again.values)


def test_the_learning_rate_is_that_of_the_best_held_out_persons():
    """Three classes: a head that stays as it is initialised cannot tell them apart."""
    g = np.random.default_rng(0)
    y, persons = (np.arange(36) // 2 % 3).astype(float), [f"p{i // 2}" for i in range(36)]
    tokens = [g.standard_normal((3, 8)).astype(np.float32) + 4 * np.eye(8, dtype=np.float32)[int(t)] for t in y]
    config = ProbeConfig(min_steps=60, epochs=1, batch=36, lrs=[1e-12, 1e-2])
    _, rate = attentive_predictions(tokens, y, persons, tokens, classes=3, config=config, seed=0)
    assert rate == 1e-2


def test_attention_is_the_softmax_over_all_tokens_by_hand():
    torch.manual_seed(0)
    head, tokens = AttentiveHead(8, 3, heads=2), torch.randn(2, 5, 8)
    with torch.no_grad():
        for p in head.parameters():
            p.add_(0.3 * torch.randn_like(p))
        x = head.norm1(tokens)
        kv = head.kv(x).view(2, 5, 2, 2, 4)
        q = head.q(head.query_token).view(2, 4)
        weights = torch.einsum("hd,bnhd->bhn", q, kv[:, :, 0]).div(2.0).softmax(-1)
        mixed = torch.einsum("bhn,bnhd->bhd", weights, kv[:, :, 1]).reshape(2, 8)
        y = head.query_token[0] + head.proj(mixed)
        y = y + head.mlp(head.norm2(y))
        torch.testing.assert_close(head(tokens), head.linear(y))


def test_padding_of_shorter_units_changes_nothing():
    torch.manual_seed(0)
    head = AttentiveHead(8, 2)
    units = [np.random.default_rng(i).standard_normal((3 + 2 * i, 8)).astype(np.float32) for i in range(2)]
    with torch.no_grad():
        together, alone = head(*pad(units)), torch.cat([head(*pad([one])) for one in units])
    torch.testing.assert_close(together, alone)
    assert pad(units[:1])[1] is None


def test_losses_are_cross_entropy_and_squared_error():
    z = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    expected = torch.tensor([np.log1p(np.exp(-2.0)), np.log1p(np.exp(1.0))], dtype=torch.float32)
    torch.testing.assert_close(head_loss(z, torch.tensor([0, 0])), expected)
    torch.testing.assert_close(head_loss(z[:, :1], torch.tensor([1.0, 2.0])), torch.tensor([1.0, 4.0]))
