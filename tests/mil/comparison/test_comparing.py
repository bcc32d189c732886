"""Differences, tests and corrections of experiments, held against the library's tests of two models."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import scipy.stats

from mil.comparison import Experiment, compare
from mil.comparison.accuracy import compare_accuracies
from mil.comparison.auroc import compare_aurocs
from mil.comparison.over_seeds import estimate_over_seeds
from mil.comparison.resampling import Resampled
from mil.judging.predictions import Predictions
from mil.results.seeds import main_scores, mean_set
from pathray.errors import UserError
from pathray.stats.comparing.delong import delong_test
from pathray.stats.comparing.mcnemar import mcnemar
from pathray.stats.comparing.multiplicity import benjamini_hochberg, holm
from pathray.stats.comparing.scores import compare_scores
from tests.builders.slide_predictions import experiment, predict_classes, predict_risks


def strict(found):
    return json.loads(json.dumps(found.as_json(), allow_nan=False))


def test_a_difference_is_the_one_of_seed_means_on_shared_resamples_of_patients():
    a, b = experiment("a", 1.5, 3), experiment("b", 1.0, 2, first=9)
    pair = compare([a, b], resamples=300, seed=4).pairs[0]
    sets = [mean_set([main_scores(one)[0] for one in e.seeds]) for e in (a, b)]
    expected = compare_scores(*sets, a.first.patients, resamples=300, seed=4)
    assert set(pair["scores"]) == set(expected) >= {"auroc", "accuracy", "log_loss"}
    for name, one in expected.items():
        assert pair["scores"][name]["difference"] == pytest.approx(one.difference.as_json(), abs=1e-12)
        assert pair["scores"][name]["p_value"] == one.p_value


def test_scores_tell_every_seed_and_their_spread():
    a = experiment("a", 1.5, 3)
    found = compare([a, experiment("b", 1.0)], resamples=50).experiments["a"]["scores"]["auroc"]
    each = [float(main_scores(one)[0].values(np.ones((1, 80)))["auroc"][0]) for one in a.seeds]
    assert found["each"] == pytest.approx(each) and found["value"] == pytest.approx(np.mean(each))
    assert found["std"] == pytest.approx(np.std(each, ddof=1)) and found["max"] == pytest.approx(max(each))


def test_variance_over_patients_and_seeds_is_that_of_readers_and_cases():
    draw, a, b = np.random.default_rng(0), np.array([0.70, 0.74, 0.81]), np.array([0.6, 0.66])
    drawn = draw.normal(size=(500, 5)) * 0.01 + draw.normal(size=(500, 1)) * 0.02 + 0.7
    drawn[:, :3] += draw.normal(size=(500, 1)) * 0.03
    one, two = Resampled({"s": a}, {"s": drawn[:, :3]}, {}, 10), Resampled({"s": b}, {"s": drawn[:, 3:]}, {}, 10)
    c = np.cov(drawn.T)
    own = (c[0, 1] + c[0, 2] + c[1, 2]) / 3 + c[3, 4]
    parts = (a.var(ddof=1) / 3, b.var(ddof=1) / 2)
    variance = sum(parts) + own - 2 * c[:3, 3:].mean()
    df = variance**2 / (parts[0] ** 2 / 2 + parts[1] ** 2)
    found, p = estimate_over_seeds(one, two, "s", 0.95)
    t = (a.mean() - b.mean()) / variance**0.5
    assert found.value == pytest.approx(0.12) and p == pytest.approx(2 * scipy.stats.t.sf(t, df), rel=1e-9)
    assert found.high - found.low == pytest.approx(2 * scipy.stats.t.ppf(0.975, df) * variance**0.5, rel=1e-9)


def test_equal_methods_whose_seeds_vary_are_seldom_told_apart():
    draw, told = np.random.default_rng(0), []
    for i in range(60):
        strengths = 1.2 + 0.6 * draw.normal(size=(2, 3))
        methods = [
            Experiment(n, tuple(predict_classes(s, 50 * k + 7 * j + i) for j, s in enumerate(strengths[k])))
            for k, n in enumerate("ab")
        ]
        one = compare(methods, resamples=100).pairs[0]["scores"]["auroc"]
        told.append((one["p_value"] < 0.05, one["with_seeds"]["p_value"] < 0.05))
    of_models, of_methods = np.mean(told, axis=0)
    assert of_methods <= 0.12 and of_models > 0.3


def test_the_interval_over_seeds_is_wider_where_seeds_differ_and_missing_for_one_seed():
    varied = Experiment("a", tuple(predict_classes(strength) for strength in (0.5, 1.0, 2.0, 2.5)))
    found = compare([varied, experiment("b", 1.0, 4, first=20)], resamples=500)
    one = found.pairs[0]["scores"]["auroc"]
    widths = [d["high"] - d["low"] for d in (one["difference"], one["with_seeds"]["difference"])]
    assert widths[1] > 2 * widths[0]
    single = compare([experiment("a", 1.5, 4), experiment("b", 1.0)], resamples=50)
    assert single.pairs[0]["scores"]["auroc"]["with_seeds"]["reason"] == "one seed of b"
    assert "one seed" in single.notes[0]


def test_the_same_seeds_twice_have_an_interval_over_seeds_alone():
    a = experiment("a", 1.5, 3)
    one = compare([a, replace(a, name="b")], resamples=300).pairs[0]["scores"]["auroc"]
    assert one["difference"]["value"] == 0 and one["difference"]["low"] is None
    assert one["with_seeds"]["difference"]["low"] < 0 < one["with_seeds"]["difference"]["high"]


@pytest.mark.parametrize("classes", [("normal", "tumor"), ("a", "b", "c")])
def test_delong_of_one_seed_is_the_library_s(classes):
    a, b = experiment("a", 1.5, classes=classes), experiment("b", 1.0, first=9, classes=classes)
    found = compare_aurocs(a, b)
    assert list(found) == list(classes if len(classes) > 2 else classes[1:])
    for name, test in found.items():
        k, patients = classes.index(name), a.first.patients
        expected = delong_test(a.first.truth == k, a.first.values[:, k], b.first.values[:, k], patients)
        assert test["p_value"] == pytest.approx(expected.p_value, rel=1e-9)
        assert test["difference"] == pytest.approx(expected.difference.as_json(), abs=1e-12)


def test_equal_seeds_change_no_test():
    a, b = experiment("a", 1.5), experiment("b", 1.0, first=9)
    more_a, more_b = (Experiment(e.name, e.seeds * count) for e, count in ((a, 3), (b, 2)))
    one, more = compare_aurocs(a, b)["tumor"], compare_aurocs(more_a, more_b)["tumor"]
    assert more["p_value"] == pytest.approx(one["p_value"], rel=1e-9)
    few, many = compare_accuracies(a, b)["patients"], compare_accuracies(more_a, more_b)["patients"]
    assert many["p_value"] == pytest.approx(few["p_value"], rel=1e-9)
    assert compare_accuracies(more_a, more_b)["slides"]["p_value"] is None


def test_mcnemar_of_one_seed_is_the_library_s():
    a, b = experiment("a", 1.5), experiment("b", 1.0, first=9)
    right = [e.first.values.argmax(1) == e.first.truth for e in (a, b)]
    assert compare_accuracies(a, b)["slides"] == asdict(mcnemar(*right))


def test_p_values_are_adjusted_over_pairs():
    found = compare([experiment(n, s, first=i) for i, (n, s) in enumerate((("a", 2.0), ("b", 1.2), ("c", 1.0)))])
    tests = [pair["scores"]["auroc"] for pair in found.pairs]
    p = [test["p_value"] for test in tests]
    assert [(pair["a"], pair["b"]) for pair in found.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [test["p_holm"] for test in tests] == holm(p) and [test["p_bh"] for test in tests] == benjamini_hochberg(p)
    assert max(p) < 1 and holm(p) != p


def test_better_is_who_has_the_lower_loss_and_the_higher_score():
    strong, weak = experiment("strong", 2.5), experiment("weak", 0.5, first=9)
    for order in ((strong, weak), (weak, strong)):
        scores = compare(order, resamples=500).pairs[0]["scores"]
        assert scores["auroc"]["better"] == scores["log_loss"]["better"] == "strong"
    same = compare([strong, replace(strong, name="again")], resamples=100)
    one = same.pairs[0]["scores"]["auroc"]
    assert one["better"] is None and one["p_value"] is None and "same value" in one["difference"]["reason"]
    strict(same)


def test_a_missing_class_is_null_with_its_reason():
    tables = [replace(predict_classes(1.0, i), truth=np.zeros(80)) for i in range(2)]
    pair = strict(compare([Experiment("a", (tables[0],)), Experiment("b", (tables[1],))], resamples=50))["pairs"][0]
    assert pair["scores"]["auroc"]["difference"]["value"] is None and pair["delong"]["tumor"]["p_value"] is None
    assert "no slide is of this class" in pair["delong"]["tumor"]["difference"]["reason"]
    assert pair["scores"]["accuracy"]["p_value"] is not None


def test_risks_are_compared_by_concordance_of_patients():
    found = compare([Experiment(n, (predict_risks(s, i),)) for i, (n, s) in enumerate((("a", 3.0), ("b", 0.2)))])
    one = strict(found)["pairs"][0]
    assert found.primary == "c_index" and set(one["scores"]) == {"c_index"} and "delong" not in one
    assert one["scores"]["c_index"]["difference"]["clusters"] == 30 and one["scores"]["c_index"]["better"] == "a"


def test_numbers_are_compared_by_their_errors():
    draw, names = np.random.default_rng(0), np.array([f"s{i}" for i in range(60)])
    truth = draw.normal(size=60)
    tables = [Predictions(names, names, truth, (truth + e * draw.normal(size=60))[:, None], ()) for e in (0.1, 1.0)]
    scores = compare([Experiment(n, (t,)) for n, t in zip("ab", tables, strict=True)]).pairs[0]["scores"]
    assert {name: one["better"] for name, one in scores.items()} == {"r2": "a", "mae": "a", "pearson": "a"}


def test_an_unknown_score_is_refused_and_too_few_resamples_are_told():
    both = [experiment("a", 1.5), experiment("b", 1.0, first=9)]
    with pytest.raises(UserError, match="no such score.*auc.*auroc"):
        compare(both, primary="auc", resamples=10)
    assert any("too few" in note for note in compare(both, resamples=20).notes)
    assert not any("too few" in note for note in compare(both, resamples=200).notes)
