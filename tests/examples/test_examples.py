"""The examples run as they are printed, on the inputs that they generate, and say what is true of these."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

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
