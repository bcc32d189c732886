"""RankMe, feature std and the explained variance against NumPy in float64, scikit-learn and known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from pathray.evaluation.metrics.collapse import Newest, explained_variance, feature_std, rankme


def test_rankme_is_the_papers_formula_in_float64():
    x = np.random.default_rng(0).normal(size=(200, 32)) * np.linspace(0.1, 3, 32)
    s = np.linalg.svd(x, compute_uv=False)
    p = s / np.abs(s).sum() + 1e-7
    expected = np.exp(-(p * np.log(p)).sum())
    assert float(rankme(torch.from_numpy(x))) == pytest.approx(expected, rel=1e-12)
    assert float(rankme(torch.from_numpy(x).float())) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_rankme_of_equal_directions_is_their_number(rank):
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(100, rank)))
    basis, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(64, rank)))
    assert float(rankme(torch.from_numpy(q @ basis.T))) == pytest.approx(rank, rel=1e-3)


def test_rankme_of_collapsed_and_broken_features():
    assert float(rankme(torch.ones(50, 8))) == pytest.approx(1, rel=1e-4)
    assert float(rankme(torch.zeros(50, 8))) == 1
    assert np.isnan(float(rankme(torch.full((4, 3), float("nan")))))
    scaled = torch.randn(50, 8)
    assert float(rankme(scaled)) == pytest.approx(float(rankme(scaled * 1e-3)), rel=1e-6)


def test_feature_std_is_the_mean_deviation_of_the_dimensions():
    x = torch.randn(500, 6) * torch.tensor([0.0, 1, 2, 3, 4, 5])
    assert float(feature_std(x)) == pytest.approx(float(np.std(x.numpy(), axis=0, ddof=1).mean()), rel=1e-5)
    assert float(feature_std(torch.ones(9, 4) * 7)) == 0
    assert feature_std(x.bfloat16()).dtype == torch.float32


def test_explained_variance_is_the_mean_over_dimensions_of_numpy_and_scikit_learn():
    rng = np.random.default_rng(3)
    h = rng.normal(size=(64, 9)) * np.linspace(0.05, 3, 9) + rng.normal(size=9)
    z = 0.8 * h + 0.3 * rng.normal(size=h.shape)
    each = 1 - ((h - z) ** 2).sum(axis=0) / ((h - h.mean(axis=0)) ** 2).sum(axis=0)
    assert each.std() > 1  # dimensions differ, so a mean weighted by their variance would be another one
    found = explained_variance(torch.from_numpy(z), torch.from_numpy(h))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(each.mean(), rel=1e-4)
    assert float(found) == pytest.approx(r2_score(h, z, multioutput="uniform_average"), rel=1e-4)


def test_explained_variance_of_known_predictions():
    h = torch.randn(40, 6)
    assert float(explained_variance(h, h)) == 1
    assert float(explained_variance(h.mean(dim=0).expand_as(h), h)) == pytest.approx(0, abs=1e-5)
    assert float(explained_variance(2 * h.mean(dim=0) - h, h)) == pytest.approx(-3, rel=1e-4)


def test_dimensions_in_which_all_targets_are_equal_do_not_count():
    h = torch.randn(40, 6)
    wide, flat = torch.cat([h, torch.full((40, 2), 0.3)], dim=1), torch.full((40, 6), 0.3)
    assert float(explained_variance(wide + 0.1, wide)) == pytest.approx(float(explained_variance(h + 0.1, h)), rel=1e-5)
    assert float(explained_variance(torch.randn(40, 6), flat)) == 0


def test_newest_keeps_the_last_rows_in_order():
    newest = Newest(5, 2)
    assert newest.on_host().shape == (0, 2)
    rows = torch.arange(16.0).view(8, 2)
    newest.add(rows[:3].requires_grad_())
    assert torch.equal(newest.on_host(), rows[:3].detach()) and not newest.features.requires_grad
    newest.add(rows[3:4].bfloat16())
    newest.add(rows[4:])
    assert torch.equal(newest.on_host(), rows[3:].detach()) and newest.seen == 8
    newest.add(torch.full((9, 2), 7.0))
    assert torch.equal(newest.on_host(), torch.full((5, 2), 7.0))
