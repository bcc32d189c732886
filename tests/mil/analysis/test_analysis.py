"""A finished training analysed: its own numbers, each slide by the model that tested it; what is missing is a row."""

import csv
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from mil.analysis.attention import attend_slide
from mil.analysis.choosing import choose_slides
from mil.analysis.embeddings import FEATURES, spaces_of
from mil.analysis.heatmap import words_of
from mil.analysis.slide_files import find_slides
from mil.analysis.trained_run import JudgedSlide, open_run
from mil.sections import CONFIGS_DIR, GROUPS
from mil.store.reading import Store
from pathray.errors import UserError
from ray_jobs import analyze_mil, train_mil
from ray_jobs.analyze_mil import AnalyzeMILConfig
from ray_jobs.shell.cli import run_job
from ray_jobs.train_mil import TrainMILConfig
from tests.builders.mil import write_cohort
from tests.builders.slides import write_slide

KEYS = (
    "data.threads=1", "splits.folds=3", "training.max_epochs=1", "training.global_batch=4",
    "training.batch_size_per_gpu=4", "eval.resamples=50", "logging.mlflow=false", "scaling.accelerator=cpu",
    "scaling.workers=0", "model.arguments.embed_dim=16", "model.arguments.attention_dim=8",
)  # fmt: skip
SHOWN = "p00_s0"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A cohort with a trained run (CLAM with a branch per class), and the file of one of its slides."""
    root = write_cohort(tmp_path_factory.mktemp("cohort"), patients=8, tiles=12)
    rows = (root / "slides.csv").read_text().splitlines()
    hospitals = [("hospital",), *((("north", "south")[i % 2],) for i in range(len(rows) - 1))]
    (root / "slides.csv").write_text("".join(f"{r},{h[0]}\n" for r, h in zip(rows, hospitals, strict=True)))
    words = (f"data.csv={root}/slides.csv", f"data.store={root}/store", "model=clam_mb", f"output={root}/run", *KEYS)
    assert run_job(train_mil.main, TrainMILConfig, words, CONFIGS_DIR, GROUPS) == 0
    (root / "wsi").mkdir()
    write_slide(root / "wsi" / f"{SHOWN}.tif", width=4600, height=4600, codec="deflate", downsamples=(1, 8))
    return root


@pytest.fixture(scope="module")
def analysed(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("analysed")
    assert analyse(root, out, f"slides={root}/wsi", f"ids=[{SHOWN}]", "worst=1", "best=1", "color_by=[hospital]") == 0
    return out


def analyse(root, out, *words):
    words = (f"run={root}/run", f"output={out}", "max_px=200", *words)
    return run_job(analyze_mil.main, AnalyzeMILConfig, words, analyze_mil.CONFIGS_DIR)


def rows_of(out):
    return {row["slide_id"]: row for row in csv.DictReader((out / "slides.csv").open())}


def test_the_probability_is_that_of_the_table_of_predictions(root, analysed):
    table = {row["slide_id"]: row for row in pq.read_table(root / "run" / "oof_predictions.parquet").to_pylist()}
    run, store = open_run(f"{root}/run"), Store(f"{root}/store")
    for name, slide in run.slides.items():
        assert slide.split == f"fold_{table[name]['fold']}" and slide.truth == table[name]["label"]
        found = attend_slide(run.model(slide.split), store, store.index[name])
        for column in ("prob_normal", "prob_tumor"):
            assert slide.values[column] == table[name][column]
            assert found.values[column] == pytest.approx(table[name][column], abs=1e-6)
        np.testing.assert_allclose(found.weights.sum(axis=1), 1, atol=1e-5)
        assert f"probability {max(table[name]['prob_normal'], table[name]['prob_tumor']):.6f}" in words_of(slide)
    for name, row in rows_of(analysed).items():
        assert float(row["prob_tumor"]) == pytest.approx(table[name]["prob_tumor"], abs=1e-6)


def test_everything_is_written_and_what_is_missing_is_said(root, analysed):
    rows = rows_of(analysed)
    assert len(rows) >= 2 and all(row["status"] == "ok" for row in rows.values())
    assert "blank" not in rows[SHOWN]["notes"]
    assert all("no slide file" in row["notes"] for name, row in rows.items() if name != SHOWN)
    for name, row in rows.items():
        assert (analysed / row["heatmap"]).stat().st_size > 5000
        features = json.loads((analysed / row["geojson"]).read_text())["features"]
        assert len(features) == int(row["tiles"]) and "attention tumor" in features[0]["properties"]["measurements"]
        store = Store(f"{root}/store")
        stored = store.stored_coords(store.index[name])
        assert [f["geometry"]["coordinates"][0][0] for f in features] == stored.tolist()
    page = (analysed / "report.html").read_text()
    assert "Attention says which tiles the model weighed" in page and "different axes" in page
    assert page.count("data:image/jpeg") == len(rows) and SHOWN in (analysed / "summary.md").read_text()


def test_embeddings_of_different_splits_are_never_in_one_space(root, analysed):
    table = pq.read_table(analysed / "embeddings.parquet").to_pylist()
    run = open_run(f"{root}/run")
    assert {(r["space"], r["fold"]) for r in table if r["space"] != FEATURES} == {(s, s) for s in run.splits}
    assert all(row["hospital"] in ("north", "south") for row in table) and len(table) == 2 * len(run.slides)
    store, shown = Store(f"{root}/store"), [row for row in table if row["slide_id"] == SHOWN]
    own = attend_slide(run.model(run.slides[SHOWN].split), store, store.index[SHOWN])
    np.testing.assert_allclose(shown[0]["embedding"], own.embedding, atol=1e-5)
    np.testing.assert_allclose(shown[1]["embedding"], store.means[store.index[SHOWN]], atol=1e-6)


def test_changed_features_and_lost_slides_are_rows(root, tmp_path):
    other = write_cohort(tmp_path / "other", patients=3, tiles=12, seed=5)
    words = (f"store={other}/store", "ids=[p00_s0,p07_s0]", "worst=0", "best=0", "projection=none")
    assert analyse(root, tmp_path / "out", *words) == 0
    rows = rows_of(tmp_path / "out")
    assert rows["p00_s0"]["status"] == rows["p07_s0"]["status"] == "failed"
    assert "features or weights have changed" in rows["p00_s0"]["error"]
    assert "not in the store" in rows["p07_s0"]["error"] and not list((tmp_path / "out").rglob("*.geojson"))
    assert "not in the store" in (tmp_path / "out" / "report.html").read_text()


def test_a_file_of_another_slide_is_not_drawn_under_the_tiles(root, tmp_path):
    write_slide(tmp_path / "small.tif", width=300, height=300)
    (tmp_path / "slides.csv").write_text(f"slide_id,wsi_path,mpp\n{SHOWN},small.tif,0.5\n")
    words = (f"slides={tmp_path}/slides.csv", f"ids=[{SHOWN}]", "worst=0", "best=0", "projection=none")
    assert analyse(root, tmp_path / "out", *words) == 0
    row = rows_of(tmp_path / "out")[SHOWN]
    assert row["status"] == "ok" and "blank canvas: tiles are outside of the slide" in row["notes"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ids=[p00_s9]",), "no such tested slide.*p00_s0"),
        (("run=nowhere",), "no finished training here"),
        (("store=nowhere",), "no feature store"),
        (("slides=nowhere",), "no such folder"),
        (("color_by=[scanner]",), "no such column.*scanner"),
        (("projection=tsne",), "projection"),
        (("projection=umap",), "too few slides for UMAP"),
        (("object_type=cell",), "object_type"),
    ],
)
def test_what_cannot_be_analysed_is_named_before_anything_is_written(root, tmp_path, capsys, words, said):
    import re

    assert analyse(root, tmp_path / "out", *words) == 2
    err = capsys.readouterr().err
    assert re.search(said, err) and "Traceback" not in err and not (tmp_path / "out").exists()


def test_umap_without_its_package_names_the_command(root, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    monkeypatch.setattr("mil.analysis.embeddings.NEIGHBOURS", 1)
    with pytest.raises(UserError, match=r"pip install 'pathray\[umap\]'"):
        spaces_of(open_run(f"{root}/run"), None, "umap")


def test_embeddings_that_were_cut_short_are_refused(root, tmp_path):
    shutil.copytree(root / "run", tmp_path / "run")
    np.save(tmp_path / "run" / "fold_1" / "embeddings.npy", np.ones((1, 16), np.float32))
    with pytest.raises(UserError, match="embeddings are of other slides.*fold_1"):
        open_run(f"{tmp_path}/run").embeddings("fold_1")


def test_worst_and_best_are_by_the_probability_of_the_true_class():
    slides = {
        name: JudgedSlide(name, name, truth, "fold_0", {"prob_a": p, "prob_b": 1 - p})
        for name, truth, p in (("s1", "a", 0.9), ("s2", "b", 0.8), ("s3", "a", 0.4), ("s4", "b", 0.3))
    }
    found = choose_slides(slides, ids=["s4"], worst=2, best=1)
    assert found == {"s4": "asked for", "s2": "worst 1", "s3": "worst 2", "s1": "best 1"}
    assert list(choose_slides(slides, everything=True)) == ["s1", "s2", "s3", "s4"]
    numbers = {n: JudgedSlide(n, n, "2", "fold_0", {"predicted": p}) for n, p in (("x", 2.5), ("y", 1.0))}
    assert list(choose_slides(numbers, worst=1)) == ["y"]
    with pytest.raises(UserError, match="cannot be ranked"):
        choose_slides({"s": JudgedSlide("s", "s", "12 (observed)", "fold_0", {"risk": 0.1})}, worst=1)


def test_slide_files_are_found_by_id(tmp_path):
    for name in ("a/one.tif", "two.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_slides(str(tmp_path))
    assert {name: one.path.removeprefix(f"{tmp_path}/") for name, one in found.items()} == {
        "a__one": "a/one.tif", "one": "a/one.tif", "two": "two.tif",
    }  # fmt: skip
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.tif").write_bytes(b"")
    with pytest.raises(UserError, match=r"two slides of one name.*one"):
        find_slides(str(tmp_path))
    table = tmp_path / "slides.csv"
    table.write_text("slide_id,wsi_path,mpp\ns1,a/one.tif,\ns2,two.tif,0.25\n")
    found = find_slides(str(table))
    assert found["s1"].path == f"{tmp_path}/a/one.tif" and found["s1"].mpp is None and found["s2"].mpp == 0.25
    table.write_text("slide_id,wsi_path,mpp\ns1,a/one.tif,zero\n")
    with pytest.raises(UserError, match="not a spacing.*row: 2.*mpp.*zero"):
        find_slides(str(table))
