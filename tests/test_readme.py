"""What the README tells people to type in Python runs as it is printed there."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from regression.assembly import export
from regression.config import resolve
from regression.plan import normaliser
from regression.recipe import RegressionRecipe
from tests.builders.encoders import write_encoder
from tests.builders.expression import made, run_config
from tests.builders.slides import write_slide

ROOT = Path(__file__).parent.parent
STORED = np.arange(15, dtype=np.float32).reshape(5, 3)
PAGES = ("README.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").glob("*.md"))))


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """A folder with the files that the pages name: a slide, an encoder, a bag, a trained regression and its patches."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slides").mkdir()
    (tmp_path / "outputs/features/mine").mkdir(parents=True)
    write_slide("slides/TCGA-01.svs", kind="svs", mpp=0.5)
    write_encoder(tmp_path / "outputs/run/encoder", size=256, dim=24)
    with h5py.File("outputs/features/mine/TCGA-01.h5", "w") as file:
        file["features"], file["coords"] = STORED, np.arange(10).reshape(5, 2)
    plan = made(tmp_path)[2]
    config = resolve(run_config(batch_size=4, grad_accum_steps=1, images=8), 1, plan.rows)
    export(RegressionRecipe(config, normaliser(plan)), "outputs/regression/RUN/encoder", {})
    (tmp_path / "images").rename("patches")
    return tmp_path


def typed(page: str) -> dict[str, object]:
    """The names after all that a page shows in Python was run, in its order."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    return names


def test_the_library_in_python_does_what_the_readme_says(inputs):
    names = typed("README.md")
    assert names["tile"].shape == (256, 256, 3) and names["tile"].dtype == np.uint8
    assert names["tissue"].shape == (44, 56) and names["tissue"].dtype == np.bool_  # 700 x 900 px of 0.5 µm
    assert names["mpp"] == 8.0
    assert np.array_equal(names["features"], STORED) and names["corners"].shape == (5, 2)
    assert names["embedded"].features.shape == (1, 24) and names["embedded"].coords.shape == (1, 2)


def test_the_page_on_the_library_does_what_it_says(inputs):
    names = typed("docs/library.md")
    assert names["region"].shape == (256, 512, 3) and names["small"].shape == (199, 256, 3)
    assert names["bag"].features.shape == (len(names["bag"].coords), 24) and names["level0"] == 512
    assert names["by_file"].shape == names["by_array"].shape == (2, 24)
    assert isinstance(names["by_tensor"], torch.Tensor)
    assert np.array_equal(names["by_tensor"].numpy(), names["by_array"])
    assert names["expression"].shape == (24, 3) and names["genes"] == ("y0", "y1", "y2")


@pytest.mark.parametrize("page", PAGES)
def test_links_between_the_pages_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)#:\s]*)(#[^)\s]*)?\)", text)
    assert page != "README.md" or links
    for target, anchor in links:
        found = (ROOT / page).parent / target if target else ROOT / page
        assert found.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor[1:] in headings(found), f"{page} links to {target}{anchor}"


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in found}
