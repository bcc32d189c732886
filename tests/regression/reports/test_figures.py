"""What the figures of an evaluation show, and that a missing picture never takes the numbers with it."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from regression.evaluate import Evaluation
from regression.reports.figures import Section, draw_map, figures, pick_genes
from regression.tables.places import Places


def evaluation(image: str = "", n: int = 24, genes: int = 5, mpp: float = np.nan) -> Evaluation:
    g = np.random.default_rng(0)
    measured = g.normal(size=(n, genes))
    noise = np.array([0.1, 3.0, 0.5, 8.0, 1.0])[:genes]
    predicted = measured + noise * g.normal(size=(n, genes))
    x, y = np.meshgrid(np.arange(n // 4) * 10.0 + 20, np.arange(4) * 10.0 + 30)
    places = Places(x.ravel(), y.ravel(), np.full(n, "S1"), np.full(n, image), np.full(n, mpp), np.full(n, np.nan))
    names = np.array([f"{i}.png" for i in range(n)])
    groups = np.array([f"p{i % 3}" for i in range(n)])
    return Evaluation(np.arange(n), names, groups, predicted, measured, tuple("ABCDE"[:genes]), places)


def per_gene(judged: Evaluation) -> pa.Table:
    return judged.per_gene({"spearman": None, "pearson": None})


def test_the_genes_shown_are_the_best_the_median_and_the_worst_that_have_a_correlation():
    judged = evaluation()
    assert [(name, judged.genes[k]) for name, k in pick_genes(judged, "pearson")] == [
        ("best", "A"), ("median", "E"), ("worst", "D")
    ]  # fmt: skip
    judged.predicted[:, 3] = 1.0  # no correlation
    assert [judged.genes[k] for _, k in pick_genes(judged, "pearson")][-1] == "B"
    assert [name for name, _ in pick_genes(evaluation(genes=1), "pearson")] == ["best"]
    assert [name for name, _ in pick_genes(evaluation(genes=2), "pearson")] == ["best", "worst"]
    judged.predicted[:] = 1.0
    assert len(pick_genes(judged, "pearson")) == 3, "a collapsed model has its figures, too"


def test_every_figure_is_a_picture_under_its_own_name():
    judged = evaluation()
    judged.predicted[:, 3] = 1.0
    drawn = dict(figures(judged, per_gene(judged), "test", "spearman"))
    assert set(drawn) == {
        "genes_test.png", "per_gene_test.png", "map_S1_A_test.png", "map_S1_C_test.png", "map_S1_B_test.png"
    }  # fmt: skip
    assert all(Image.open(io.BytesIO(picture)).size[0] > 600 for picture in drawn.values())


def test_names_of_sections_and_genes_cannot_leave_the_folder():
    judged = evaluation(genes=1)
    odd = SimpleNamespace(**vars(judged.places) | {"section": np.full(24, "../S $1$")})
    judged = Evaluation(**vars(judged) | {"places": Places(**vars(odd)), "genes": ("HLA/A",)})
    names = [name for name, _ in figures(judged, per_gene(judged), "val", "pearson")]
    assert names[-1] == "map_..%2FS%20%241%24_HLA%2FA_val.png"


def test_measured_and_predicted_have_one_colour_scale(tmp_path):
    judged = evaluation(genes=1)
    judged.measured[:, 0], judged.predicted[:, 0] = np.linspace(0, 8, 24), np.linspace(3, 4, 24)
    pixels = np.asarray(Image.open(io.BytesIO(draw_map(judged, Section.of(judged, "S1"), 0, "test"))).convert("RGB"))
    left, right = pixels[:, : pixels.shape[1] // 2], pixels[:, pixels.shape[1] // 2 : int(0.88 * pixels.shape[1])]
    yellow, purple = (np.array(c) for c in ([253, 231, 37], [68, 1, 84]))  # the ends of viridis

    def near(part: np.ndarray, colour: np.ndarray) -> int:
        return int((np.abs(part.astype(int) - colour).max(axis=2) < 40).sum())

    assert near(left, yellow) > 50 and near(left, purple) > 50, "measured spans the scale"
    assert near(right, yellow) < 15 and near(right, purple) < 15, "predicted stays in its middle"


def test_spots_lie_on_the_tissue_that_they_were_cut_from(tmp_path):
    tissue = np.full((90, 120, 3), 255, np.uint8)
    tissue[30, 20] = 0  # under the first spot
    Image.fromarray(tissue).save(tmp_path / "s.png")
    section = Section.of(evaluation(str(tmp_path / "s.png"), mpp=2.0), "S1")
    assert section.radius == pytest.approx(4.0) and section.mpp == 2.0
    left, right, bottom, top = section.extent
    assert section.picture.shape[:2] == (bottom - top, right - left)
    assert section.picture[int(30 - top), int(20 - left)].max() == 0


def test_a_section_image_that_cannot_be_read_leaves_the_map_without_tissue(tmp_path, caplog):
    (tmp_path / "s.png").write_bytes(b"no image")
    section = Section.of(evaluation(str(tmp_path / "s.png")), "S1")
    assert section.picture is None and "without their tissue" in caplog.text and "s.png" in caplog.text
