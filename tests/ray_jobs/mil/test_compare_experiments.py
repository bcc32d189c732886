"""The command that compares tables of predictions: its three files, and what it refuses before it writes any."""

import json

import pytest

from ray_jobs import compare_experiments
from ray_jobs.compare_experiments import CompareConfig
from ray_jobs.shell.cli import run_job
from tests.builders.slide_predictions import predict_classes, write_table


@pytest.fixture
def tables(tmp_path):
    """Two seeds of each of three models."""
    strengths = {"abmil": 2.5, "clam": 1.0, "<dsmil>": 0.8}
    return {
        name: [write_table(tmp_path / name / f"{s}.csv", predict_classes(strength, 10 * i + s)) for s in range(2)]
        for i, (name, strength) in enumerate(strengths.items())
    }


def run(*words):
    return run_job(compare_experiments.main, CompareConfig, ("resamples=100", *words), compare_experiments.CONFIGS_DIR)


def listed(paths):
    return "[" + ",".join(paths) + "]"


def test_two_tables_give_json_a_figure_and_a_page(tables, tmp_path):
    a, b = tables["abmil"][0], tables["clam"][0]
    assert run(f"a={a}", f"b={b}", "names=[strong,weak]", f"output={tmp_path}/out/result.json") == 0
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert found["pairs"][0]["a"] == "strong" and found["pairs"][0]["scores"]["auroc"]["better"] == "strong"
    assert found["settings"] == {"resamples": 100, "seed": 0, "only_common": False} and len(found["sha256"][a]) == 64
    page = (tmp_path / "out" / "result.html").read_text()
    assert "strong has the better AUROC" in page and "data:image/png" in page and "DeLong" in page
    assert (tmp_path / "out" / "result.png").read_bytes()[:4] == b"\x89PNG"


def test_several_experiments_with_seeds_go_into_a_folder(tables, tmp_path):
    words = "[" + ",".join(map(listed, tables.values())) + "]"
    assert run(f"predictions={words}", f"output={tmp_path}/out", "primary=log_loss") == 0
    found = json.loads((tmp_path / "out" / "significance.json").read_text())
    assert list(found["experiments"]) == list(tables) and len(found["pairs"]) == 3 and found["primary"] == "log_loss"
    assert all(one["seeds"] == 2 for one in found["experiments"].values())
    page = (tmp_path / "out" / "significance.html").read_text()
    assert "&lt;dsmil&gt;" in page and "<dsmil>" not in page and "over patients and seeds" in page


def test_the_same_command_writes_the_same_bytes(tables, tmp_path):
    for out in ("one", "two"):
        assert run(f"a={tables['abmil'][0]}", f"b={tables['clam'][0]}", f"output={tmp_path}/{out}") == 0
    for name in ("significance.json", "significance.png", "significance.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("a=A",), "b is required"),
        (("a=A", "b=3"), "not a path"),
        (("a=A", "b=[]"), "not a path"),
        (("a=A", "b=B", "predictions=[A,B]"), "a and b, or predictions"),
        (("predictions=[A]",), "needs two experiments"),
        (("a=A", "b=B", "names=[x]"), "2 different names"),
        (("a=A", "b=nowhere.csv"), "nowhere.csv"),
        (("a=A", "b=B", "primary=auc"), "no such score"),
        (("a=A", "b=B", "resamples=0"), "must be > 0"),
        (("a=A", "b=B", "level=95"), "between"),
    ],
)
def test_what_cannot_be_compared_is_told_and_nothing_is_written(tables, tmp_path, capsys, words, said):
    paths = {"A": tables["abmil"][0], "B": tables["clam"][0]}
    typed = [word.replace("=A", f"={paths['A']}").replace("=B", f"={paths['B']}") for word in words]
    typed = [word.replace("[A", f"[{paths['A']}").replace(",B", f",{paths['B']}") for word in typed]
    assert run(*typed, f"output={tmp_path}/out") == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
