"""Embeddings against numpy's SVD, and kept and read back."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from pathray.errors import MissingFile, UserError
from pathray.evaluation.datasets import open_dataset
from pathray.evaluation.projection import (
    Embedding,
    embed,
    list_embeddings,
    load_embedding,
    load_embeddings,
    save_embedding,
)
from tests.builders.evaluation import cohort


@pytest.mark.parametrize("shape", [(60, 8), (20, 50)])
def test_pca_is_the_svd_of_the_normalised_centred_features(shape):
    x = np.random.default_rng(0).normal(size=shape) * np.linspace(1, 5, shape[1])
    got = embed(x)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    u, s, v = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    largest = np.abs(v[:2]).argmax(axis=1)
    sign = np.sign(v[[0, 1], largest])
    np.testing.assert_allclose(got.points, (u * s)[:, :2] * sign, atol=1e-6)
    assert got.explained == pytest.approx(tuple(s[:2] ** 2 / (s**2).sum()))
    assert got.points.dtype == np.float32 and got.method == "pca"


def test_equal_features_give_equal_pictures_in_any_order_of_rows():
    x = np.random.default_rng(1).normal(size=(50, 6))
    order = np.random.default_rng(2).permutation(50)
    np.testing.assert_allclose(embed(x[order]).points, embed(x).points[order], atol=1e-6)
    assert np.array_equal(embed(x).points, embed(x).points)
    np.testing.assert_allclose(embed(7 * x).points, embed(x).points, atol=1e-6)


def test_a_collapsed_encoder_still_has_a_picture():
    got = embed(np.ones((9, 4)))
    assert not got.points.any() and got.explained == (0.0, 0.0)
    line = embed(np.array([[1.0], [-1.0], [2.0]]))
    assert not line.points[:, 1].any() and line.explained == pytest.approx((1.0, 0.0))


def test_features_that_are_not_finite_are_refused_by_row():
    x = np.ones((5, 3))
    x[3, 1] = np.nan
    for method in ("pca", "umap"):
        with pytest.raises(UserError, match=r"finite.*row: 3"):
            embed(x, method)


def test_an_unknown_method_is_refused():
    with pytest.raises(UserError, match=r"tsne.*pca \| umap"):
        embed(np.ones((5, 3)), "tsne")


def test_umap_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r"not installed.*pathray\[umap\]"):
        embed(np.random.default_rng(0).normal(size=(30, 4)), "umap")


def test_umap_is_seeded_and_sees_normalised_features(monkeypatch):
    asked = {}

    class Stand:
        def __init__(self, **settings):
            asked.update(settings)

        def fit_transform(self, x):
            asked["x"] = x
            return x[:, :2].astype(np.float64)

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Stand))
    x = np.random.default_rng(0).normal(size=(30, 4))
    got = embed(x, "umap")
    assert asked["random_state"] == 0 and asked["n_components"] == 2
    np.testing.assert_allclose(np.linalg.norm(asked["x"], axis=1), 1, atol=1e-6)
    assert got.points.dtype == np.float32 and got.explained is None
    with pytest.raises(UserError, match=r"too few.*15 patches"):
        embed(x[:15], "umap")


def test_what_is_kept_comes_back(tmp_path):
    data = cohort(slides=2, patches=3, ood=True)
    dataset = open_dataset("two/hospitals", data.write(tmp_path / "m.csv"))
    folder = f"{tmp_path}/embeddings"
    embedding = embed(data.x)
    path = save_embedding(folder, dataset, embedding, 1_500)
    assert path == f"{folder}/two%2Fhospitals-img000000001500.parquet"
    (got,) = load_embeddings(folder)
    assert (got.dataset, got.images_seen) == ("two/hospitals", 1_500)
    assert np.array_equal(got.embedding.points, embedding.points)
    assert got.embedding.explained == pytest.approx(embedding.explained) and got.embedding.method == "pca"
    assert got.labels.tolist() == data.labels.tolist() and got.centers.tolist() == data.centers.tolist()
    assert got.slides.tolist() == data.slides.tolist()
    assert got.subset.tolist() == np.where(data.ood, "OOD", "ID").tolist()


def test_points_stand_beside_the_class_of_their_own_image_whatever_the_lists_order(tmp_path):
    """The reduced list is a part in another order; images of both are embedded."""
    header = "image_path,label,medical_center,slide_id\n"
    rows = [f"{i}.png,{'tn'[i % 2]},{'RU'[i // 2 % 2]},s{i}\n" for i in range(8)]
    (tmp_path / "m.csv").write_text(header + "".join(rows))
    (tmp_path / "m_reduced.csv").write_text(header + "".join(rows[::-3]))
    dataset = open_dataset("camelyon", str(tmp_path / "m.csv"))
    save_embedding(str(tmp_path), dataset, embed(np.random.default_rng(0).normal(size=(8, 3))), 0)
    got = load_embedding(str(tmp_path), "camelyon", 0)
    assert got.slides.tolist() == [f"s{i}" for i in range(8)]
    assert got.labels.tolist() == list("tntntntn") and got.centers.tolist() == list("RRUURRUU")


def test_embeddings_are_listed_in_order_and_other_files_are_not(tmp_path):
    data = cohort(slides=1, patches=2)
    embedding = embed(data.x)
    for name, images in (("b", 30), ("a", 2_000), ("a", 100)):
        save_embedding(str(tmp_path), open_dataset(name, data.write(tmp_path / "m.csv")), embedding, images)
    assert list_embeddings(str(tmp_path)) == [("a", 100), ("a", 2_000), ("b", 30)]
    assert list_embeddings(str(tmp_path / "absent")) == [] and load_embeddings(str(tmp_path / "absent")) == []


def test_points_of_other_images_are_refused(tmp_path):
    data = cohort(slides=1, patches=2)
    dataset = open_dataset("mine", data.write(tmp_path / "m.csv"))
    with pytest.raises(UserError, match=r"do not match.*7 points"):
        save_embedding(str(tmp_path), dataset, Embedding(np.zeros((7, 2), np.float32), "pca", None), 0)


def test_a_damaged_or_missing_embedding_is_named(tmp_path):
    with pytest.raises(MissingFile, match="a-img000000000001"):
        load_embedding(str(tmp_path), "a", 1)
    (tmp_path / "a-img000000000001.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"damaged embedding.*a-img000000000001"):
        load_embedding(str(tmp_path), "a", 1)
