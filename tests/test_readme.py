"""What the README tells people to type in Python runs as it is printed there."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.builders.encoders import write_encoder
from tests.builders.slides import write_slide

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").glob("*.md"))))


def test_the_library_in_python_does_what_the_readme_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slides").mkdir()
    (tmp_path / "outputs/features/mine").mkdir(parents=True)
    write_slide("slides/TCGA-01.svs", kind="svs", mpp=0.5)
    write_encoder(tmp_path / "outputs/run/encoder", size=256, dim=24)
    stored = np.arange(15, dtype=np.float32).reshape(5, 3)
    with h5py.File("outputs/features/mine/TCGA-01.h5", "w") as file:
        file["features"], file["coords"] = stored, np.arange(10).reshape(5, 2)

    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)

    assert names["tile"].shape == (256, 256, 3) and names["tile"].dtype == np.uint8
    assert names["tissue"].shape == (44, 56) and set(np.unique(names["tissue"])) <= {0, 1}  # 700 x 900 px of 0.5 µm
    assert np.array_equal(names["features"], stored) and names["corners"].shape == (5, 2)
    assert names["embedded"].shape == (1, 24)


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
