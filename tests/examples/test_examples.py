"""The examples run as they are printed, on the inputs that they generate, and say what is true of these."""

import json
import pickle
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import pathray
from pathray.data.plan import Plan
from pathray.device import Device
from pathray.run import RunSettings
from pathray.run.stop import request_stop
from pathray.store.artifact import describe
from pathray.wsi.reader import open_slide
from tests.builders.encoders import plain_features
from tests.builders.jobs import ROOT

EXAMPLES = ROOT / "examples"
LINES = {"new_science": 150, "generated": 110}  # others: a page


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs an example in an empty folder as a script, with arguments; what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "generated", raising=False)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_fits_a_page_and_says_how_it_is_run(path):
    text = path.read_text()
    assert len(text.splitlines()) <= LINES.get(path.stem, 60)
    assert path.stem == "generated" or f"python examples/{path.name} " in text


def test_a_slide_is_embedded(run, tmp_path):
    assert "tiles of 64 µm, 96 numbers each" in run("embed_a_slide")
    found = dict(np.load("features.npz"))
    import generated

    slide, encoder = generated.slide(Path("s.tiff")), generated.encoder(Path("e"))
    run("embed_a_slide", "--slide", slide, "--encoder", encoder, "--output", "same.npz")
    for key, value in np.load("same.npz").items():
        assert np.array_equal(value, found[key])
    level = open_slide(str(slide)).read_level(1, 0, 0, 640, 640)  # of 1 µm per pixel, which the encoder takes
    tiles = [level[y // 2 : y // 2 + 64, x // 2 : x // 2 + 64] for x, y in found["coords"]]
    np.testing.assert_allclose(found["features"], plain_features(str(encoder), tiles), atol=1e-4)
    assert len(tiles) > 30


def test_an_encoder_is_judged(run):
    text = run("judge_an_encoder")
    rows = [line.split() for line in text.splitlines() if line.startswith(("probe/", "pathorob/"))]
    found = {name.rpartition("/")[2]: (float(of), float(colours)) for name, of, colours in rows}
    assert "96 patches" in text and {"linear_id", "knn_id", "ri", "clustering_score"} <= set(found)
    assert min(found["linear_id"]) > 0.6, "classes differ in their nuclei"
    assert max(found["ri"]) < 0.5 and min(found["ari_center"]) > 0.9, "and centres much more in their stain"


def test_a_new_science_learns_and_resumes_to_the_bit(run):
    assert "budget after 1280 tiles" in run("new_science", "--output", "whole")
    rows = metrics("whole")
    import new_science as science

    config, plan = science.ColourConfig(), Plan.open("whole/plan")
    reader = pickle.loads(pickle.dumps(science.ColourReader(config, plan)))  # as it travels to a worker
    tiles = [reader.read({k: v[0] for k, v in plan.take([i]).items()}, i, 0)["image"] for i in range(plan.rows)]
    colours = (np.stack(tiles) / 127.5 - 1).reshape(-1, 4, 16, 4, 16, 3).mean(axis=(2, 4))  # [N, 4, 4, 3]
    of_one_colour = np.square(colours - colours.mean(axis=(0, 1, 2))).mean()
    assert [row["images_seen"] for row in rows] == list(range(64, 1281, 64))
    assert rows[-1]["error"] < 0.8 * of_one_colour, "the best single colour for all patches"

    request_stop("again")
    settings = RunSettings(keep_stop=True)
    stopped = pathray.train(science.assemble(config, plan), plan, "again", Device.of("cpu"), settings=settings)
    assert stopped.end == "stopped" and 0 < stopped.images_seen < 1280 and stopped.artifact is None
    resumed = pathray.train(science.assemble(config, plan), plan, "again", Device.of("cpu"))
    assert resumed.end == "budget" and describe(resumed.artifact)["sha256"] == describe("whole/encoder")["sha256"]
    assert pathray.load_encoder(resumed.artifact, device="cpu").embed(np.stack(tiles[:2])).shape == (2, 96)


def test_ijepath_is_trained_step_by_step(run):
    assert "budget after 48 images" in run("train_ijepath", "--output", "run")
    rows = metrics("run")
    assert [row["images_seen"] for row in rows] == [16, 32, 48] and all(0 < row["loss"] < 5 for row in rows)
    encoder = pathray.load_encoder("run/encoder", device="cpu")
    assert (encoder.size_px, encoder.mpp, encoder.dim) == (64, 0.5, 192)  # 32 µm at the targets' spacing
    assert "budget after 48 images" in run("train_ijepath", "--output", "run"), "a finished run stays as it is"
    assert metrics("run") == rows


def metrics(folder):
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
