"""Evaluators by name: a shortcut is seen by every metric, images of any size become features, errors name the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathray.device import Device
from pathray.errors import UserError
from pathray.evaluation.datasets import open_dataset
from pathray.evaluation.early_stopping import EarlyStopping, metric_key
from pathray.evaluation.plugins import EVALUATORS, evaluate, features_of, load_evaluator
from pathray.features.images import ImageSettings
from tests.builders.encoders import plain_features, write_encoder
from tests.builders.evaluation import cohort

RANKED = [("pathorob", name) for name in ("ri", "apd_id", "apd_ood", "apd_avg", "clustering_score")]
RANKED += [("probe", name) for name in ("linear_ood", "knn_ood")]  # in-domain, a probe cannot see a shortcut


def stained(folder: Path, *, sizes=(32, 48)) -> str:
    """Patches whose class is a texture and whose centre is a stain: two slides a cell, of two image sizes."""
    g = np.random.default_rng(0)
    lines = ["image_path,label,medical_center,slide_id"]
    for c, colour in enumerate(([200, 120, 170], [150, 90, 200])):
        for y in range(2):
            for s in range(2):
                for p in range(3):
                    side = sizes[s % len(sizes)]
                    stripes = (np.arange(side) // (2 + 4 * y) % 2)[:, None, None] * 40
                    image = np.array(colour) + stripes + g.integers(0, 20, (side, side, 3))
                    name = f"{c}{y}{s}{p}.png"
                    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / name)
                    lines.append(f"{name},y{y},c{c},s{c}{y}{s}")
    (folder / "patches.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "patches.csv")


def test_an_encoder_with_a_shortcut_ranks_below_one_without_on_every_metric(tmp_path):
    """The same biology; one encoder also shows the centre's colour. Early stopping keeps the other, whatever it
    watches."""
    results = {}
    for shortcut in (0.0, 2.5):
        data = cohort(slides=6, patches=6, biology=0.8, shortcut=shortcut, ood=True)
        dataset = open_dataset("hospitals", data.write(tmp_path / "m.csv"), neighbours=11)
        results[shortcut] = evaluate("pathorob", dataset, data.x).metrics | evaluate("probe", dataset, data.x).metrics
    for plugin, name in RANKED:
        key = metric_key(plugin, "hospitals", name)
        assert results[0.0][key] > results[2.5][key] + 0.02, name
        history = [(0, results[2.5]), (100, results[0.0]), (200, results[2.5])]
        assert EarlyStopping(key, "max").decide(history).best_images == 100
    for key in ("apd_id", "apd_ood", "apd_avg"):
        low, high = (results[2.5][f"pathorob/hospitals/{key}_{end}"] for end in ("low", "high"))
        assert low < results[2.5][f"pathorob/hospitals/{key}"] < high < 0
    v = [results[0.0][f"pathorob/hospitals/cramers_v_{s}"] for s in range(3)]
    assert v == pytest.approx([0, 0.5, 1])


def test_a_metric_that_the_data_cannot_carry_is_left_out_with_its_reason(tmp_path):
    data = cohort(slides=2, patches=4)
    got = evaluate("pathorob", open_dataset("few", data.write(tmp_path / "m.csv"), neighbours=3), data.x)
    assert "pathorob/few/ri" in got.metrics and "pathorob/few/clustering_score" in got.metrics
    assert not any("apd" in key for key in got.metrics)
    assert any(note.startswith("apd: too few slides") for note in got.notes)


def test_only_what_is_due_is_computed(tmp_path):
    data = cohort(slides=2, patches=4)
    dataset = open_dataset("few", data.write(tmp_path / "m.csv"), neighbours=3)
    assert set(evaluate("pathorob", dataset, data.x, due=["ri"]).metrics) == {
        f"pathorob/few/{name}" for name in ("ri", "ri_k", "acc_knn")
    }
    with pytest.raises(UserError, match=r"no such metric.*apdd"):
        evaluate("pathorob", dataset, data.x, due=["apdd"])


def test_in_pairs_neighbours_are_searched_per_pair_of_classes_and_centres(tmp_path):
    from pathray.evaluation.metrics.clustering import pairs
    from pathray.evaluation.metrics.robustness_index import robustness_index

    data = cohort(slides=2, patches=4, classes=3, biology=0.3, shortcut=0.3)
    dataset = open_dataset("tcga", data.write(tmp_path / "m.csv"), neighbours=5)
    got = evaluate("pathorob", dataset, data.x, due=["ri"]).metrics["pathorob/tcga/ri"]
    parts = [rows for _, rows in pairs(data.labels, data.centers)]
    each = [robustness_index(data.x[p], data.labels[p], data.centers[p], data.slides[p], k=5) for p in parts]
    so, os = (sum(getattr(r, n) for r in each) for n in ("same_class_other_center", "other_class_same_center"))
    assert len(parts) == 3 and got == so / (so + os)


def test_the_probe_reads_the_class_of_slides_it_has_not_seen(tmp_path):
    data = cohort(slides=6, patches=6, biology=1.5, ood=True)
    dataset = open_dataset("mine", data.write(tmp_path / "m.csv"))
    got = evaluate("probe", dataset, data.x).metrics
    assert set(got) == {f"probe/mine/{name}" for name in ("linear_id", "knn_id", "linear_ood", "knn_ood")}
    assert min(got.values()) > 0.85
    g = np.random.default_rng(0)
    noise = evaluate("probe", dataset, g.normal(size=data.x.shape)).metrics
    assert all(0.3 < value < 0.7 for value in noise.values())


def test_features_that_are_not_finite_name_the_image(tmp_path):
    data = cohort(slides=2, patches=4)
    dataset = open_dataset("mine", data.write(tmp_path / "m.csv"))
    data.x[9, 0] = np.nan
    for name in EVALUATORS:
        with pytest.raises(UserError, match=r"finite.*9\.png.*row: 9"):
            evaluate(name, dataset, data.x)
    with pytest.raises(UserError, match="do not match"):
        evaluate("probe", dataset, data.x[:-1])


def test_an_evaluator_is_found_by_name():
    for name in EVALUATORS:
        assert load_evaluator(name).metrics
    with pytest.raises(UserError, match=r"no such evaluator.*pathorub.*pathorob"):
        load_evaluator("pathorub")


def test_images_of_several_sizes_become_the_encoders_features(tmp_path):
    dataset = open_dataset("mine", stained(tmp_path))
    encoder = write_encoder(tmp_path / "encoder", size=32, positions="sincos")
    got = features_of(dataset, encoder, Device.of("cpu"))
    images = [np.asarray(Image.open(path)) for path in dataset.images]
    np.testing.assert_allclose(got, plain_features(encoder, images), atol=1e-4)
    result = evaluate("pathorob", dataset, got, due=["ri", "clustering"])
    assert "pathorob/mine/ri" in result.metrics


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    dataset = open_dataset("mine", stained(tmp_path))
    (tmp_path / "0102.png").write_bytes(b"no image")
    encoder = write_encoder(tmp_path / "encoder", size=32)
    with pytest.raises(UserError, match=r"0102\.png.*1 of 24 images"):
        features_of(dataset, encoder, Device.of("cpu"), ImageSettings(batch_size=4))


def test_on_real_patches_the_plan_is_refused_with_the_counts(shared_data, tmp_path):
    import csv

    rows = list(csv.DictReader((shared_data / "patches/tcga_sites/index.tsv").open(), delimiter="\t"))
    root = shared_data / "patches"
    lines = [f"{root / row['path']},{row['organ']},{row['prep']},{row['slide']}" for row in rows]
    (tmp_path / "m.csv").write_text("\n".join(["image_path,label,medical_center,slide_id", *lines]) + "\n")
    dataset = open_dataset("tcga_sites", str(tmp_path / "m.csv"))
    pixels = [np.asarray(Image.open(path).resize((8, 8))).ravel() for path in dataset.images]
    got = evaluate("pathorob", dataset, np.array(pixels, np.float32), due=["ri", "apd"])
    assert 0 <= got.metrics["pathorob/tcga_sites/ri"] <= 1
    assert any("too few slides" in note and "lung at FFPE 6" in note for note in got.notes)
