"""What runs leave for comparisons, and the table over them."""

import json

import numpy as np
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pathray.data.splits import Split
from pathray.device import Device
from pathray.errors import UserError
from pathray.stats.correlation import spearman
from pathray.store.metrics_log import MetricsLog
from pathray.store.storage import Storage
from regression import artifact
from regression.config import EvalConfig
from regression.plan import build_plan, normaliser, rows_of, targets
from regression.recipe import RegressionRecipe
from regression.reports.report import (
    BASELINES,
    COLUMNS,
    judge,
    judge_baselines,
    last_validation,
    read_results,
    results_table,
    write_results,
)
from tests.builders.expression import made, run_config


def run(name, **given):
    best = {"spearman": 0.3, "pearson": 0.25, "n_undefined": 1.0}
    return {"run_name": name, "end": "budget", "images_seen": 4096, "best": best, "best_primary": 0.3, **given}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_runs_stand_in_one_table_the_best_first_and_those_without_validation_last():
    test = {"spearman": 0.2, "pearson": 0.1, "spearman_low": 0.15, "spearman_high": 0.25}
    found = [
        run("worse", best_primary=0.1),
        run("none", best=None, best_primary=None),
        run(
            "best",
            n_undefined=1.0,
            test=test,
            last={"spearman": 0.28, "pearson": 0.24},
            baselines={"colour": {"test": {"spearman": 0.21}}, "initial": {"best": {"spearman": 0.5}}},
        ),
    ]
    header, _, *lines = results_table(found).strip().splitlines()
    assert cells(header) == list(COLUMNS)
    assert [cells(line)[0] for line in lines] == ["best", "worse", "none"]
    assert cells(lines[0])[:5] == ["best", "0.3000", "0.2500", "0.2800", "0.2400"]
    assert cells(lines[0])[5:] == ["0.2000 [0.150, 0.250]", "0.1000", "0.2100", "", "1", "4,096", "budget"]
    assert cells(lines[2])[1:9] == [""] * 8, "what was not measured is not made up"


def test_a_run_without_validation_is_not_ranked_by_its_test_rows(tmp_path):
    table, split, _ = made(tmp_path)
    of = np.where(split.of == "val", "train", split.of)
    plan = build_plan(table, Split(of, split.meta), str(tmp_path / "unvalidated"))
    config = run_config()
    config.eval.resamples = 20
    recipe = RegressionRecipe(config, normaliser(plan))
    artifact.save(str(tmp_path / "run" / "encoder"), recipe.net, recipe.preprocessing, recipe.normaliser, {})
    found = write_results(str(tmp_path / "run"), plan, config, "budget", Device.of("cpu"), {})
    assert found["best_primary"] is None and "best" not in found
    assert found["test"]["spearman"] is not None and found["n_undefined"] == found["test"]["n_undefined"]
    saved = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {key: saved[key] for key in found} == found and saved.keys() - found.keys() == {"digest"}


def test_results_are_found_at_any_depth_and_damaged_ones_are_named(tmp_path):
    for name in ("a", "deep/er/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.json").write_text(json.dumps(run("fold_0")))
    assert sorted(row["run_name"] for row in read_results(Storage.of(tmp_path))) == ["a", "deep/er/b"]
    (tmp_path / "a" / "metrics.json").write_text('{"run_name"')
    with pytest.raises(UserError, match=r"a/metrics\.json"):
        read_results(Storage.of(tmp_path))


def test_baselines_are_judged_on_the_rows_of_each_part_and_what_they_predict_is_kept(tmp_path):
    _, split, plan = made(tmp_path, groups=12)
    of_all = targets(plan) + np.random.default_rng(0).normal(size=(24, 3))
    given = {"colour": of_all, "initial": np.full((24, 3), 2.0)}
    store = Storage.of(tmp_path / "run")
    found = judge_baselines(store, plan, ["val", "test"], EvalConfig(resamples=50), 0, given)
    rows = rows_of(plan, "test")
    assert found["colour"]["test"]["spearman"] == spearman(of_all[rows], targets(plan)[rows]).mean
    assert found["colour"]["test"]["spearman_low"] <= found["colour"]["test"]["spearman"]
    assert found["initial"]["best"]["spearman"] == 0 and found["initial"]["best"]["n_undefined"] == 3
    kept = pq.read_table(tmp_path / "run" / BASELINES)
    own = kept.filter(pc.field("part") == "test")
    assert own["colour_y1"].to_pylist() == of_all[rows, 1].tolist()
    assert kept.num_rows == (split.of == "val").sum() + (split.of == "test").sum()


def test_all_parts_stand_in_one_file_of_predictions_and_one_of_genes(tmp_path):
    _, _, plan = made(tmp_path, groups=5)  # one of them validates: no intervals there
    config = EvalConfig(resamples=20)
    recipe, store = RegressionRecipe(run_config(), normaliser(plan)), Storage.of(tmp_path / "out")
    found = judge(store, recipe, plan, ["val", "test"], config, 0, Device.of("cpu"))
    predictions = pq.read_table(store.path("predictions.parquet"))
    genes = pyarrow.csv.read_csv(store.path("per_gene.csv")).to_pylist()
    assert [(g["part"], g["gene"]) for g in genes] == [(part, f"y{k}") for part in ("val", "test") for k in range(3)]
    for part in ("val", "test"):
        own = predictions.filter(pc.equal(predictions["part"], part))
        rows = rows_of(plan, part)
        assert own["path"].to_pylist() == [plan.sources["name"][int(r)].as_py() for r in rows]
        assert np.array_equal(own["measured_y2"].to_numpy(), targets(plan)[rows, 2])
        values = [g["spearman"] for g in genes if g["part"] == part]
        assert np.mean(values) == pytest.approx(found[part]["spearman"])
        assert store.exists(f"figures/genes_{part}.png") and store.exists(f"figures/per_gene_{part}.png")


def test_the_last_validation_is_the_newest_row_that_has_one(tmp_path):
    store = Storage.of(tmp_path)
    assert last_validation(store) == {}
    log = MetricsLog(store.join("metrics.jsonl"))
    for seen, more in ((16, {"val/spearman": 0.5}), (32, {"val/spearman": 0.3, "val/mse": 2.0}), (48, {})):
        log.append({"images_seen": seen, "loss": 1.0, **more})
    assert last_validation(store) == {"spearman": 0.3, "mse": 2.0, "images_seen": 32}


@pytest.mark.parametrize(
    "content", [b"\xff{}", b"[]", b"null", b'{"run_name": "a", "best": 3}', b'{"run_name": "a", "best_primary": "0.4"}']
)
def test_what_is_no_runs_metrics_is_named_with_the_remedy(tmp_path, content):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.json").write_bytes(content)
    with pytest.raises(UserError, match=r"not the metrics of a run.*a/metrics\.json.*remove the file"):
        read_results(Storage.of(tmp_path))
