"""One evaluation: datasets opened once, features taken once for all plugins, and what cannot be judged said."""

import numpy as np
import pytest

from pathray.device import Device
from pathray.errors import UserError
from pathray.evaluation import judge as job
from pathray.evaluation.judge import Judge, cadences
from pathray.evaluation.projection import load_embeddings
from pathray.evaluation.settings import DatasetConfig, EveryConfig, PluginConfig
from tests.builders.evaluation import cohort

CPU = Device.of("cpu")


@pytest.fixture
def patches(tmp_path, monkeypatch):
    """A manifest, and features for its images that count how often they are asked for."""
    found = cohort(shortcut=0.5)
    asked = []

    def features_of(dataset, encoder, device, settings):
        asked.append((encoder, settings.pooling))
        return found.x

    monkeypatch.setattr(job, "features_of", features_of)
    return found.write(tmp_path / "patches.csv"), asked


def plugins(manifest, **given):
    own = {"hospitals": DatasetConfig(manifest_csv=manifest, **given)}
    return [PluginConfig("pathorob", datasets=own), PluginConfig("probe", datasets=own, embedding="none")]


def test_features_are_taken_once_for_all_plugins_of_a_dataset(patches, tmp_path):
    manifest, asked = patches
    found = Judge(plugins(manifest, neighbours=3), str(tmp_path)).judge(
        "encoder", {"pathorob": ["ri"], "probe": ["linear", "knn"]}, CPU, 64
    )
    assert asked == [("encoder", "auto")]
    assert {"pathorob/hospitals/ri", "probe/hospitals/linear_id", "probe/hospitals/knn_id"} <= found.metrics.keys()
    (saved,) = load_embeddings(str(tmp_path / job.EMBEDDINGS))
    assert saved.embedding.points.shape == (len(saved.labels), 2) and np.isfinite(saved.embedding.points).all()


def test_the_picture_is_drawn_whichever_plugin_asks_for_it(patches, tmp_path):
    manifest, asked = patches
    both = list(reversed(plugins(manifest, neighbours=3)))  # the one without a picture takes the features
    Judge(both, str(tmp_path)).judge("encoder", {"pathorob": ["ri"], "probe": ["knn"]}, CPU, 64)
    assert len(asked) == 1 and len(load_embeddings(str(tmp_path / job.EMBEDDINGS))) == 1


def test_plugins_that_look_at_other_images_of_a_dataset_have_features_of_their_own(patches, tmp_path, monkeypatch):
    manifest, _ = patches
    few = cohort(slides=5, shortcut=0.5)
    folder = tmp_path / "few"
    folder.mkdir()
    sizes = []

    def features_of(dataset, encoder, device, settings):
        sizes.append(len(dataset.images))
        return np.random.default_rng(0).normal(size=(len(dataset.images), 8)).astype(np.float32)

    monkeypatch.setattr(job, "features_of", features_of)
    two = plugins(manifest, neighbours=3)
    two[0].datasets = {"camelyon": DatasetConfig(manifest, reduced_csv=few.write(folder / "reduced.csv"), neighbours=3)}
    two[1].datasets = {"camelyon": DatasetConfig(manifest)}
    Judge(two, str(tmp_path)).judge("encoder", {"pathorob": ["ri"], "probe": ["knn"]}, CPU, 64)
    assert len(sizes) == 2 and sizes[0] > sizes[1]


def test_only_what_is_due_is_judged(patches, tmp_path):
    manifest, _ = patches
    found = Judge(plugins(manifest, neighbours=3), str(tmp_path)).judge("encoder", {"probe": ["knn"]}, CPU, 64)
    assert {key.rpartition("/")[2] for key in found.metrics} == {"knn_id"}


def test_a_neighbourhood_that_auto_chose_once_is_kept(patches, tmp_path):
    manifest, _ = patches
    judge = Judge(plugins(manifest, neighbours="auto"), str(tmp_path))
    first = judge.judge("encoder", {"pathorob": ["ri"]}, CPU, 0).metrics["pathorob/hospitals/ri_k"]
    other = 7 if first != 7 else 9
    kept = judge.judge("encoder", {"pathorob": ["ri"]}, CPU, 64, {"hospitals": other}).metrics
    assert kept["pathorob/hospitals/ri_k"] == other
    fixed = Judge(plugins(manifest, neighbours=3), str(tmp_path))
    assert fixed.judge("e", {"pathorob": ["ri"]}, CPU, 64, {"hospitals": other}).metrics["pathorob/hospitals/ri_k"] == 3


def test_a_metric_that_the_dataset_cannot_carry_is_a_note_and_the_others_are_there(tmp_path, monkeypatch):
    few = cohort(slides=2, patches=4)
    monkeypatch.setattr(job, "features_of", lambda *_: few.x)
    found = Judge(plugins(few.write(tmp_path / "few.csv"), neighbours=3), str(tmp_path)).judge(
        "encoder", {"pathorob": ["ri", "apd"]}, CPU, 0
    )
    assert "pathorob/hospitals/ri" in found.metrics and "pathorob/hospitals/apd_avg" not in found.metrics
    assert any("too few slides" in note for note in found.notes)


def test_a_manifest_that_is_not_there_is_named_before_anything_is_evaluated(tmp_path):
    with pytest.raises(UserError, match="nowhere.csv"):
        Judge(plugins(str(tmp_path / "nowhere.csv")), str(tmp_path)).check()
    with pytest.raises(UserError, match=r"tuning\.plugins\[0\]\.datasets\.hospitals\.manifest_csv"):
        Judge(plugins(None), str(tmp_path)).check()


def test_cadences_are_those_of_the_metrics_that_an_evaluator_has():
    own = PluginConfig("pathorob", apd=EveryConfig(2), clustering=EveryConfig(0), linear=EveryConfig(5))
    assert cadences([own, PluginConfig("probe")]) == {"pathorob": {"ri": 1, "apd": 2}, "probe": {"linear": 1, "knn": 1}}
