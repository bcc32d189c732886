"""What folds say together: correlations within each fold, intervals over folds, the model beside its baselines."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pathray.errors import UserError
from pathray.stats.bootstrap import paired_difference
from pathray.stats.correlation import pearson, spearman
from pathray.store.storage import Storage
from regression.reports.cross_validation import as_markdown, draw_folds, per_gene, read_folds, summary, write_summary
from regression.reports.report import BASELINES, PREDICTIONS

GENES = ("A", "B")
NAMES = ("fold_0", "fold_1", "fold_2")


def write_fold(folder, name, seed, shift, *, part="test", baselines=("colour",), constant=False, genes=GENES):
    """A fold whose level of expression is `shift`; its predictions, of the same level, know half of the rest."""
    g = np.random.default_rng(seed)
    measured = g.normal(size=(30, len(genes))) + shift
    predicted = np.full_like(measured, shift) if constant else (measured + g.normal(size=measured.shape))
    rows = {"part": [part] * 30, "path": [f"{name}/{i}" for i in range(30)], "group_id": [f"S{seed}"] * 30}
    columns = {f"predicted_{gene}": predicted[:, k] for k, gene in enumerate(genes)}
    columns |= {f"measured_{gene}": measured[:, k] for k, gene in enumerate(genes)}
    (folder / name).mkdir(parents=True)
    pq.write_table(pa.table(rows | columns), folder / name / PREDICTIONS)
    beside = {f"{kind}_{gene}": g.normal(size=30) for kind in baselines for gene in genes}
    if baselines:
        pq.write_table(pa.table(rows | beside), folder / name / BASELINES)
    return measured, predicted, beside


@pytest.fixture
def three(tmp_path):
    given = [write_fold(tmp_path, name, i, 10.0 * i) for i, name in enumerate(NAMES)]
    return Storage.of(tmp_path), given


def test_a_model_that_only_knows_which_fold_a_row_is_of_scores_nothing(tmp_path):
    for i, name in enumerate(NAMES):
        write_fold(tmp_path, name, i, 10.0 * i, constant=True)
    folds, pooled = read_folds(Storage.of(tmp_path), NAMES)
    assert summary(folds)["pearson"]["model"]["mean"] == 0
    assert folds.undefined["model"] == 6, "each gene of each fold is counted"
    x, y = (pooled[f"{kind}_A"].to_numpy() for kind in ("predicted", "measured"))
    assert np.corrcoef(x, y)[0, 1] > 0.9, "all rows together would have said so"


def test_means_and_intervals_are_over_folds_and_differences_are_paired_by_fold(three):
    root, given = three
    folds, predictions = read_folds(root, NAMES)
    found = summary(folds)
    for method, of in (("pearson", pearson), ("spearman", spearman)):
        model = [of(predicted, measured).mean for measured, predicted, _ in given]
        colour = [of(np.stack([b["colour_A"], b["colour_B"]], 1), m).mean for m, _, b in given]
        assert found[method]["model"]["folds"] == pytest.approx(model)
        less = paired_difference(model, colour)
        assert found[method]["colour"]["model_less_it"] == pytest.approx(
            {"mean": less.estimate, "low": less.low, "high": less.high}
        )
    assert found["held_out"] == ["S0", "S1", "S2"] and found["rows"] == [30, 30, 30]
    assert predictions.num_rows == 90 and set(predictions["fold"].to_pylist()) == set(NAMES)


def test_a_row_per_gene_has_the_model_and_every_baseline_with_intervals_best_first(three):
    root, given = three
    table = per_gene(read_folds(root, NAMES)[0])
    values = {g: [pearson(p, m).values[k] for m, p, _ in given] for k, g in enumerate(GENES)}
    rows = {row["gene"]: row for row in table.to_pylist()}
    assert rows["B"]["model_pearson"] == pytest.approx(np.mean(values["B"]))
    assert rows["B"]["model_pearson_low"] < rows["B"]["model_pearson"] < rows["B"]["model_pearson_high"]
    assert "colour_spearman_high" in table.column_names
    assert table["model_spearman"].to_pylist() == sorted(table["model_spearman"].to_pylist(), reverse=True)


def test_the_table_marks_the_best_of_each_fold_and_the_files_are_written_json_last(three, tmp_path):
    root, _ = three
    text, means = write_summary(root, NAMES, "Three sections")
    assert means["pearson/model"] == json.loads((tmp_path / "folds.json").read_text())["pearson"]["model"]["mean"]
    assert text.startswith("# Three sections") and text.count("**") == 2 * 2 * 3
    assert "| S1 | 30 |" in text and "ridge on colours" in text
    assert json.loads((tmp_path / "folds.json").read_text())["folds"] == list(NAMES)
    assert (tmp_path / "folds.md").read_text() == text
    picture = (tmp_path / "figures" / "folds_spearman.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    folds, _ = read_folds(root, NAMES)
    assert draw_folds(folds, "spearman", "Three sections") == picture


def test_two_folds_that_do_not_belong_together_are_refused(tmp_path):
    root = Storage.of(tmp_path)
    write_fold(tmp_path, "fold_0", 0, 0.0)
    write_fold(tmp_path, "fold_1", 1, 0.0, genes=("A", "C"))
    with pytest.raises(UserError, match="other genes"):
        read_folds(root, ("fold_0", "fold_1"))
    write_fold(tmp_path, "fold_2", 2, 0.0, baselines=())
    with pytest.raises(UserError, match="baselines"):
        read_folds(root, ("fold_0", "fold_2"))
    write_fold(tmp_path, "fold_3", 3, 0.0, part="val")
    with pytest.raises(UserError, match="fold_3"):
        read_folds(root, ("fold_0", "fold_3"))


def test_a_gene_whose_name_ends_like_the_first_is_no_baseline(tmp_path):
    write_fold(tmp_path, "fold_0", 0, 0.0, genes=("DRA", "HLA_DRA", "a/b"), baselines=("colour", "my_probe"))
    folds, _ = read_folds(Storage.of(tmp_path), ("fold_0",))
    assert folds.models == ("model", "colour", "my_probe") and folds.values["pearson"]["colour"].shape == (1, 3)


def test_one_fold_alone_has_no_intervals(tmp_path):
    write_fold(tmp_path, "fold_0", 0, 0.0)
    folds, _ = read_folds(Storage.of(tmp_path), ("fold_0",))
    found = summary(folds)["spearman"]["model"]
    assert found["low"] is None and "[" not in as_markdown(folds, "One").split("In brackets")[0]
