"""The API reference has a page for every module, and its shapes are shapes, not links."""

import importlib.util
import re

import pytest

from tests.builders.jobs import ROOT


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("build_reference", ROOT / "docs/build_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_public_face_is_shown_with_its_shapes_and_types(script, tmp_path):
    script.build(["pathray", "pathray.api.slide"], tmp_path)
    page = (tmp_path / "pathray.html").read_text()
    for name in ("open_slide", "Slide.read_region", "Encoder.embed", "load_model", "TissueMask"):
        assert f'id="{name}"' in page
    text = re.sub(r"<[^>]*>", "", page)
    assert "uint8 [h, w, 3]" in text and "features [N, D]" in text and "-> ndarray[uint8]" in text
    assert "numpy.ndarray[tuple" not in text
    docstrings = "".join(re.findall(r'<div class="docstring">(.*?)</div>', page, re.DOTALL))
    links = re.findall(r'<a href="([^"]*)"', docstrings)
    assert links and [link for link in links if not re.match(r"#|[\w/]+\.html", link)] == []


def test_a_numpy_type_is_written_in_short_whether_it_is_coloured_or_not(script):
    plain = "numpy.ndarray[tuple[typing.Any, ...], numpy.dtype[{}]]"
    coloured = re.sub(r"(\w+|[.\[\],]+)", r'<span class="n">\1</span>', plain.format("numpy.int64"))
    assert re.sub("<[^>]*>", "", script.readable(f"a {coloured} | None")) == "a ndarray[int64] | None"
    for kind, short in (("numpy.floating[typing.Any]", "floating"), ("typing.Any", "Any"), ("numpy.bool", "bool")):
        assert script.readable(f"x: {plain.format(kind)}, y") == f"x: ndarray[{short}], y"


def test_every_module_is_told_or_found(script):
    told = script.modules()
    assert {"pathray", "pathray.wsi", "pathray.api", "ijepath"} <= set(told) and len(set(told)) == len(told)
