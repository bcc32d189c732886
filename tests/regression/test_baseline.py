"""Ridge against scikit-learn, its strength by groups of the training rows; colours; the floors of a real set."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from pathray.errors import UserError
from pathray.features.images import read_image
from pathray.stats.correlation import pearson
from regression.baseline import colour_features, fit_ridge
from regression.tables.spatial import log1p_cp10k, read_counts, read_spots, totals_of


def test_a_fit_is_scikit_learns():
    g = np.random.default_rng(0)
    x, y = g.normal(2, 3, size=(50, 8)), g.normal(size=(50, 3))
    x[:, 5] = 4.0  # tells nothing
    fitted = fit_ridge(x[:40], y[:40], np.arange(40), [0.3])
    scaler = StandardScaler().fit(x[:40])
    expected = SklearnRidge(alpha=0.3 * 40).fit(scaler.transform(x[:40]), y[:40]).predict(scaler.transform(x[40:]))
    assert fitted(x[40:]) == pytest.approx(expected, abs=1e-10)


def chosen_by_hand(x, y, groups, strengths) -> float:
    scores = []
    for strength in strengths:
        each = []
        for group in np.unique(groups):
            held = groups == group
            scaler = StandardScaler().fit(x[~held])
            model = SklearnRidge(alpha=strength * (~held).sum()).fit(scaler.transform(x[~held]), y[~held])
            p = model.predict(scaler.transform(x[held]))
            each.append(np.mean([pearsonr(p[:, k], y[held, k]).statistic for k in range(y.shape[1])]))
        scores.append(np.mean(each))
    return strengths[int(np.argmax(scores))]


def test_the_strength_is_the_one_of_the_best_correlation_in_groups_left_out():
    """Half the features name the group, so that rows of known groups and groups left out want another strength."""
    g, strengths = np.random.default_rng(5), (1e-4, 1e-2, 1e-1, 1.0)
    groups = np.repeat(np.arange(5), 20)
    x = np.hstack([g.normal(size=(5, 20))[groups] + 0.3 * g.normal(size=(100, 20)), g.normal(size=(100, 20))])
    y = x[:, 20:22] + 4 * g.normal(size=(5, 2))[groups] + g.normal(size=(100, 2))
    turns = np.arange(100) % 10
    expected = chosen_by_hand(x, y, groups, strengths), chosen_by_hand(x, y, turns, strengths)
    assert (fit_ridge(x, y, groups, strengths).strength, fit_ridge(x, y, np.zeros(100), strengths).strength) == expected
    assert expected[0] != expected[1]


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="not finite"):
        fit_ridge([[np.nan], [1.0]], [[1.0], [2.0]], [0, 1])


def test_colour_features_are_means_and_deviations_of_light_and_density():
    pixels = np.random.default_rng(0).integers(0, 256, size=(2, 5, 5, 3)).astype(np.uint8)
    got = colour_features(pixels)
    light = pixels[1].reshape(-1, 3) / 255
    density = -np.log(np.maximum(light, 1 / 255))
    expected = [light.mean(0), light.std(0), density.mean(0), density.std(0)]
    assert got.shape == (2, 12) and got[1] == pytest.approx(np.concatenate(expected))


def test_colours_of_a_real_set_predict_what_they_are_known_to(shared_data):
    """Leave one section out: colours carry over between cuts of one tumour, and hardly to the other patient's (B4)."""
    folder = shared_data / "regression" / "her2st"
    if not folder.is_dir():
        pytest.skip(f"no spatial transcriptomics at {folder}")
    spots = read_spots(str(folder / "spots.tsv"), group="section")
    totals = totals_of(spots, "total_counts")
    counts = read_counts(str(folder / "counts_top250.tsv.gz"), totals)
    assert counts.spots == spots.ids
    y, sections = log1p_cp10k(counts)[:, :50], np.array(spots.groups)
    x = np.concatenate([colour_features(read_image(str(folder / p))[None]) for p in spots.sheet.texts("patch")])
    found = {}
    for section in np.unique(sections):
        test = sections == section
        found[section] = pearson(fit_ridge(x[~test], y[~test], sections[~test])(x[test]), y[test]).mean
    known = {"B4": 0.04, "C2": 0.22, "C3": 0.32, "C4": 0.31, "C5": 0.26, "C6": 0.15}
    assert found == pytest.approx(known, abs=0.08), found
