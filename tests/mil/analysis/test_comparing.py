"""Models on the same slides: equal to the statistics they are made of, whatever the order; seeds; named mismatches."""

import json
from dataclasses import replace

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from mil.analysis.comparing.comparison import compare_models, score_set
from mil.analysis.comparing.joining import join
from mil.analysis.comparing.output import comparison_page, verdict
from mil.analysis.comparing.reading import models_of, read_models, tables_of
from mil.analysis.comparing.resampling import draw_scores, seed_shares
from mil.analysis.comparing.seed_delong import delong_of_seeds
from mil.judging.predictions import Predictions
from pathray.errors import UserError
from pathray.stats.comparing.delong import auroc_covariance, delong_test
from pathray.stats.comparing.scores import compare_scores
from pathray.stats.estimates import ScoreSet
from pathray.store.sealed_parquet import to_bytes
from ray_jobs import compare_experiments
from ray_jobs.compare_experiments import CompareConfig
from ray_jobs.shell.cli import run_job


def predicted(seed, shift=1.5, n=80, classes=("normal", "tumor"), truth=None):
    truth = np.random.default_rng(7).integers(len(classes), size=n // 2).repeat(2) if truth is None else truth
    logits = np.random.default_rng(seed).normal(size=(n, len(classes)))
    logits = logits + shift * (truth[:, None] == np.arange(len(classes)))
    values = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names, patients = (np.array([f"{letter}{i // by:03d}" for i in range(n)]) for letter, by in (("s", 1), ("p", 2)))
    return Predictions(names, patients, truth.astype(float), values, tuple(classes), f"{seed}.csv")


def write_csv(path, found, order=None, classes=None, patients=True):
    classes = classes or found.classes
    lines = ["slide_id,label," + ("patient_id," if patients else "") + ",".join(f"prob_{c}" for c in classes)]
    for i in order if order is not None else range(len(found)):
        numbers = [repr(float(found.values[i, found.classes.index(c)])) for c in classes]
        lines.append(",".join([found.names[i], found.labels[i], *([found.patients[i]] if patients else []), *numbers]))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def compared(*models, **options):
    named = {f"m{i}": list(one) if isinstance(one, tuple) else [one] for i, one in enumerate(models)}
    return json.loads(json.dumps(compare_models(join(named), resamples=300, **options), allow_nan=False))


def test_one_seed_is_compared_as_by_the_statistics_it_is_made_of():
    a, b = predicted(0), predicted(1, 1.0)
    found = compared(a, b, seed=3)["pairs"][0]
    joined = join({"a": [a], "b": [b]})
    sets = [score_set(joined, joined.values[name][0]) for name in ("a", "b")]
    expected = compare_scores(*sets, joined.patients, resamples=300, seed=3)
    for name, one in expected.items():
        assert found["scores"][name]["difference"] == one.difference.as_json() and name in found["scores"]
        assert found["scores"][name]["p_value"] == one.p_value
    delong = delong_test(a.truth == 1, a.values[:, 1], b.values[:, 1], a.patients)
    assert found["delong"]["tumor"]["p_value"] == pytest.approx(delong.p_value, abs=1e-12)
    assert found["delong"]["tumor"]["difference"]["low"] == pytest.approx(delong.difference.low, abs=1e-12)


def test_mcnemar_and_corrections_are_those_of_statsmodels():
    models = [predicted(seed, shift) for seed, shift in ((0, 2.5), (1, 1.0), (2, 0.6))]
    pairs = compared(*models)["pairs"]
    for pair, (a, b) in zip(pairs, ((0, 1), (0, 2), (1, 2)), strict=True):
        right = [models[i].values.argmax(1) == models[i].truth for i in (a, b)]
        table = [[int(((right[0] == x) & (right[1] == y)).sum()) for y in (True, False)] for x in (True, False)]
        exact = table[0][1] + table[1][0] < 25
        assert pair["mcnemar"]["p_value"] == pytest.approx(reference_mcnemar(table, exact=exact).pvalue, abs=1e-12)
    for test in ("mcnemar", "mcnemar_patients"):
        raw = [pair[test]["p_value"] for pair in pairs]
        for key, method in (("p_holm", "holm"), ("p_bh", "fdr_bh")):
            assert [p[test][key] for p in pairs] == pytest.approx(multipletests(raw, method=method)[1].tolist())


def test_the_order_of_rows_and_of_columns_changes_no_named_number(tmp_path):
    a, b = predicted(0, classes=("c2", "c10", "c0")), predicted(1, 1.0, classes=("c2", "c10", "c0"))
    shuffled = np.random.default_rng(5).permutation(len(b))
    files = [write_csv(tmp_path / "a.csv", a), write_csv(tmp_path / "b.csv", b)]
    other = [files[0], write_csv(tmp_path / "c.csv", b, shuffled, ("c0", "c2", "c10"))]
    one, two = (
        compare_models(join(read_models({"a": [x], "b": [y]}, label="label", patient="patient_id")), resamples=100)
        for x, y in (files, other)
    )
    assert two["pairs"] == one["pairs"] and two["models"]["b"]["scores"] == one["models"]["b"]["scores"]
    assert set(one["pairs"][0]["delong"]) == {"c2", "c10", "c0"} and "auroc/c10" in one["pairs"][0]["scores"]


def test_one_class_is_null_with_its_reason():
    none = np.zeros(80, np.int64)
    found = compared(predicted(0, truth=none), predicted(1, truth=none))
    pair = found["pairs"][0]
    assert pair["delong"]["tumor"]["p_value"] is None and "all rows are negative" in pair["delong"]["tumor"]["reason"]
    difference = pair["scores"]["auroc"]["difference"]
    assert difference["value"] is None and "class 'tumor' has no rows" in difference["reason"]
    assert pair["scores"]["accuracy"]["p_value"] is not None
    assert "not defined" in comparison_page(found, b"") and "cannot be compared" in verdict(pair, found["models"])


def test_equal_models_do_not_differ():
    pair = compared(predicted(0), predicted(0))["pairs"][0]
    assert pair["mcnemar"]["p_value"] == 1 and pair["delong"]["tumor"]["p_value"] is None
    assert pair["scores"]["auroc"]["difference"]["value"] == 0 and pair["scores"]["auroc"]["p_value"] is None


def test_an_interval_of_seeds_has_their_spread_in_it():
    """Seeds that agree on everything add nothing; seeds that differ widen the interval as their variance says."""
    shares = seed_shares(5, 20000, 0, 0)
    offsets = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    assert (shares @ offsets).var() == pytest.approx(offsets.var(ddof=1) / 5, rel=0.03)
    y = np.random.default_rng(0).normal(size=50)

    def shifted(by):
        return ScoreSet(50, lambda w: {"mean": w @ y / w.sum(axis=1) + by})

    sets = {"same": [shifted(0.0)] * 3, "apart": [shifted(x) for x in (-1.0, 0.0, 1.0)]}
    drawn = draw_scores(sets, np.arange(50), resamples=4000, seed=0)
    same, apart = (drawn[name]["mean"] for name in ("same", "apart"))
    assert same.value == pytest.approx(apart.value) and apart.each.tolist() == pytest.approx(
        [y.mean() + x for x in (-1, 0, 1)]
    )
    assert apart.resampled.var() - same.resampled.var() == pytest.approx(1 / 3, rel=0.1)


def test_delong_of_seeds_adds_the_variance_of_seeds_to_that_of_rows():
    truth, patients = predicted(0).truth, predicted(0).patients
    a = np.stack([predicted(s, 2.0).values[:, 1] for s in range(4)])
    b = np.stack([predicted(s, 1.0).values[:, 1] for s in range(10, 13)])
    one = delong_of_seeds(truth, a[:1], b[:1], patients)
    assert one == delong_test(truth, a[0], b[0], patients)
    found = delong_of_seeds(truth, a, b, patients)
    aurocs, covariance = auroc_covariance(truth, np.concatenate([a, b]), patients)
    contrast = np.array([1 / 4] * 4 + [-1 / 3] * 3)
    assert found.difference.value == pytest.approx(aurocs[:4].mean() - aurocs[4:].mean(), abs=1e-12)
    rows = float(contrast @ covariance @ contrast)
    assert (found.difference.value / found.z) ** 2 >= rows - 1e-15
    same = delong_of_seeds(truth, np.repeat(a[:1], 4, 0), np.repeat(b[:1], 3, 0), patients)
    assert same.z == pytest.approx(one.z)


def test_seeds_are_told_with_their_range():
    found = compared(tuple(predicted(s, 2.0) for s in range(3)), tuple(predicted(s, 1.0) for s in range(5, 8)))
    score = found["models"]["m0"]["scores"]["auroc"]
    assert len(score["over_seeds"]["each"]) == 3 and found["models"]["m1"]["seeds"] == 3
    assert score["over_seeds"]["min"] <= score["value"] <= score["over_seeds"]["max"]
    assert "one seed only" not in verdict(found["pairs"][0], found["models"])


def test_numbers_are_compared_by_their_scores_alone():
    draw = np.random.default_rng(0)
    truth = draw.normal(size=60)
    names = np.array([f"s{i:02d}" for i in range(60)])
    models = [
        Predictions(names, names, truth, (truth + noise * draw.normal(size=60))[:, None], ()) for noise in (0.3, 1.0)
    ]
    pair = compared(*models)["pairs"][0]
    assert pair["scores"]["mae"]["difference"]["value"] < 0 and pair["scores"]["mae"]["lower_is_better"]
    assert pair["mcnemar"]["reason"] == "the predictions are numbers" and pair["delong"] == {}


def test_what_does_not_match_is_named():
    a, b = predicted(0), predicted(1)
    fewer = replace(b, names=b.names[2:], patients=b.patients[2:], truth=b.truth[2:], values=b.values[2:])
    with pytest.raises(UserError, match=r"different slides \(file: 1.csv.*2 missing \(such as s000\).*only_common"):
        join({"a": [a], "b": [fewer]})
    found = join({"a": [a], "b": [fewer]}, only_common=True)
    assert len(found.names) == 78 and found.left_out == {"a": 2, "b": 0}
    with pytest.raises(UserError, match="different classes.*1.csv.*normal, other"):
        join({"a": [a], "b": [replace(b, classes=("normal", "other"))]})
    turned = b.truth.copy()
    turned[3] = 1 - turned[3]
    with pytest.raises(UserError, match="1 slides have another label.*1.csv.*s003"):
        join({"a": [a], "b": [replace(b, truth=turned)]})
    with pytest.raises(UserError, match="another patient.*s000.*found: 'p001'"):
        join({"a": [a], "b": [replace(b, patients=np.roll(b.patients, -2))]})
    with pytest.raises(UserError, match="no slide is in all tables"):
        join({"a": [a], "b": [replace(b, names=np.char.add("x", b.names))]}, only_common=True)


def test_patients_are_known_from_the_table_that_has_them(tmp_path):
    files = [write_csv(tmp_path / f"{i}.csv", predicted(i), patients=i == 1) for i in range(2)]
    joined = join(read_models({"a": files[:1], "b": files[1:]}, label="label", patient="patient_id"))
    assert len(set(joined.patients.tolist())) == 40


def test_models_are_named_and_a_seed_counts_once():
    found = models_of(["x=/r/s0", "x=/r/s1"], "/r/b.csv", [])
    assert found == {"x": ["/r/s0", "/r/s1"], "b": ["/r/b.csv"]}
    assert list(models_of("/r/one/oof_predictions.parquet", "/r/two/", [])) == ["one", "two"]
    assert models_of(None, None, ["a=/1", "b=/2", "a=/3"]) == {"a": ["/1", "/3"], "b": ["/2"]}
    for words, said in (
        ((None, None, []), "what is compared"), (("/a", None, []), "what is compared"),
        (("/a", "/b", ["/c"]), "what is compared"), ((None, None, ["a=/1", "a=/2"]), "nothing to compare"),
        ((["/a", "/a"], "/b", []), "a seed is there twice"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            models_of(*words)


def test_a_training_is_read_with_all_its_seeds(tmp_path):
    import pyarrow as pa

    for folder in (".", "seed_1", "seed_2", "other"):
        (tmp_path / folder).mkdir(exist_ok=True)
        table = pa.table({"slide_id": ["a"], "label": ["x"]})
        (tmp_path / folder / "oof_predictions.parquet").write_bytes(to_bytes(table))
    assert [path.removeprefix(str(tmp_path)) for path in tables_of(str(tmp_path))] == [
        "/oof_predictions.parquet", "/seed_1/oof_predictions.parquet", "/seed_2/oof_predictions.parquet",
    ]  # fmt: skip
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="the folder has no predictions"):
        tables_of(str(tmp_path / "empty"))


def test_the_job_writes_json_plot_and_page(tmp_path, capsys):
    files = [write_csv(tmp_path / f"{i}.csv", predicted(i, 2.0 - i)) for i in range(3)]
    words = (f"a={files[0]}", f"b=[{files[1]},{files[2]}]", f"output={tmp_path}/out/significance.json", "resamples=100")
    assert run_job(compare_experiments.main, CompareConfig, words, compare_experiments.CONFIGS_DIR) == 0
    found = json.loads((tmp_path / "out" / "significance.json").read_text())
    assert [model["seeds"] for model in found["models"].values()] == [1, 2] and found["patients"] == 40
    assert (tmp_path / "out" / "significance.png").stat().st_size > 5000
    assert "AUROC" in (tmp_path / "out" / "significance.html").read_text()
    broken = tmp_path / "broken.csv"
    broken.write_text("slide_id,label,prob_normal,prob_tumor\ns000,normal,0.9,0.9\n")
    words = (f"a={files[0]}", f"b={broken}", f"output={tmp_path}/none/x.json")
    assert run_job(compare_experiments.main, CompareConfig, words, compare_experiments.CONFIGS_DIR) == 2
    assert "do not add up" in capsys.readouterr().err and not (tmp_path / "none").exists()
