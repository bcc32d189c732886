"""Tables of predictions, what is judged of them, and the page; also where a class or a threshold is missing."""

import json

import numpy as np
import pytest

from mil.judging.output import write_judgement
from mil.judging.page import in_words, report_page
from mil.judging.predictions import Predictions, read_predictions
from mil.judging.scores import judge
from pathray.errors import UserError
from pathray.store.storage import Storage


def predictions(n=60, classes=("normal", "tumor"), seed=0, truth=None):
    draw = np.random.default_rng(seed)
    truth = draw.integers(len(classes), size=n) if truth is None else truth
    logits = draw.normal(size=(n, len(classes))) + 1.5 * (truth[:, None] == np.arange(len(classes)))
    values = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = np.array([f"s{i:03d}" for i in range(n)])
    patients = np.array([f"p{i // 2}" for i in range(n)])
    return Predictions(names, patients, truth.astype(float), values, tuple(classes))


def strict(judged):
    return json.loads(json.dumps(judged, allow_nan=False))


def write_csv(path, found, classes=None, rows=None):
    classes = classes or found.classes
    lines = ["slide_id,patient_id,label," + ",".join(f"prob_{c}" for c in classes)]
    for i in rows if rows is not None else range(len(found)):
        probabilities = [repr(float(found.values[i, found.classes.index(c)])) for c in classes]
        lines.append(",".join([found.names[i], found.patients[i], found.labels[i], *probabilities]))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_the_order_of_rows_and_columns_changes_no_named_score(tmp_path):
    found = predictions(classes=("c2", "c10", "c0"))
    one = judge(read_predictions(write_csv(tmp_path / "a.csv", found)), resamples=0)
    order = np.random.default_rng(1).permutation(len(found))
    two = judge(read_predictions(write_csv(tmp_path / "b.csv", found, ("c10", "c0", "c2"), order)), resamples=0)
    for name in found.classes:
        for score, value in one["slides_as_units"]["per_class"][name].items():
            assert two["slides_as_units"]["per_class"][name][score]["value"] == pytest.approx(value["value"], abs=1e-12)


def test_a_class_without_slides_is_null_with_its_reason(tmp_path):
    found = predictions(n=20, truth=np.zeros(20, np.int64))
    judged = strict(judge(found, resamples=50))
    auroc = judged["slides_as_units"]["overall"]["auroc"]
    assert (
        auroc["value"] is None
        and "all rows are of class 'normal'" in judged["slides_as_units"]["overall"]["mcc"]["reason"]
    )
    assert judged["operating_points"][0]["threshold"] is None
    assert "not defined" in report_page("t", judged, {})
    assert write_judgement(Storage.of(str(tmp_path)), found, None, title="t", resamples=50)["report"]


def test_thresholds_are_chosen_on_the_validation_slides():
    test, val = predictions(seed=0), predictions(seed=1)
    judged = judge(test, val, resamples=0)
    own = judge(val, resamples=0)
    thresholds = [[p["threshold"] for p in j["operating_points"]] for j in (judged, own)]
    assert thresholds[0] == thresholds[1] and all(np.isfinite(t) for t in thresholds[0])
    assert judged["thresholds_chosen_on"] == "validation slides" and "optimistic" in own["thresholds_chosen_on"]


def test_patients_are_judged_as_units_unless_their_slides_differ_in_class():
    truth = np.repeat(np.random.default_rng(0).integers(2, size=30), 2)
    judged = judge(predictions(truth=truth), resamples=0)
    assert judged["patients_as_units"]["patients"] == 30 and judged["patients"] == 30
    mixed = judge(predictions(), resamples=0)
    assert "different classes" in mixed["patients_as_units"]["reason"]
    assert "no scores with patients as units" in report_page("t", mixed, {})


def test_numbers_are_judged_as_a_regression(tmp_path):
    path = tmp_path / "p.csv"
    rows = "".join(f"s{i},p{i // 2},{i},{i + (-1) ** i}\n" for i in range(20))
    path.write_text("slide_id,patient_id,label,predicted\n" + rows)
    judged = strict(judge(read_predictions(str(path)), resamples=50))
    assert judged["regression"]["mae"]["value"] == pytest.approx(1.0)
    files = write_judgement(
        Storage.of(str(tmp_path / "out")), read_predictions(str(path)), None, title="t", resamples=20
    )
    assert (tmp_path / "out" / "regression.png").stat().st_size > 1000 and "report" in files


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slide_id,label,prob_a,prob_b\ns,a,0.4,0.7\nt,b,0.5,0.5\n", "do not add up.*row: 2"),
        ("slide_id,label,prob_a,prob_b\ns,a,0.5,0.5\nt,b,1.5,-0.5\n", "not a probability.*row: 3"),
        ("slide_id,label,prob_a,prob_b\ns,a,0.5,0.5\nt,c,0.5,0.5\n", r"without a column.*row: 3.*a \| b"),
        ("slide_id,label,prob_a,prob_b\ns,a,0.5,0.5\ns,b,0.5,0.5\n", "there twice.*row: 3.*in row 2"),
        ("slide_id,label,score\ns,a,1\n", "no such column.*predicted"),
    ],
)
def test_what_is_no_table_of_predictions_is_refused(tmp_path, text, said):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        read_predictions(str(tmp_path / "p.csv"))


def test_a_missing_interval_is_told_once():
    reasons = ("no interval: all resamples give the same value", "an interval needs at least two clusters, found 1")
    told = [in_words({"value": 1.0, "low": None, "high": None, "reason": reason}) for reason in reasons]
    assert told[0] == "1.000 (no interval: all resamples give the same value)"
    assert told[1] == "1.000 (no interval: an interval needs at least two clusters, found 1)"


def test_the_page_says_what_was_left_out_and_escapes_names():
    judged = judge(predictions(classes=("<b>", "tumor")), resamples=20)
    page = report_page("T & U", judged, {}, left_out=[("s9", "no label"), ("s8", "no label")])
    assert "2 slides: no label" in page and "&lt;b&gt;" in page and "<b>" not in page and "T &amp; U" in page
