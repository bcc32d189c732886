"""Scanner or disease? Evaluators of the library on generated volumes of two devices."""

import numpy as np
import pytest

from oct.downstream.features import Compute, FeatureSource, load_features
from oct.encoding.judged import JudgedVolumes
from oct.indexing.index_file import read_index
from pathray.device import Device
from pathray.errors import UserError
from pathray.evaluation.judge import Judge
from pathray.evaluation.metrics.robustness_index import robustness_index
from pathray.evaluation.settings import DatasetConfig, PluginConfig
from tests.builders.oct.labelled import LABELS, write_oct_encoder, write_table
from tests.builders.oct.two_devices import DEVICES, write_two_devices

CPU = Device.of("cpu")
PERSONS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_devices")
    write_two_devices(folder, PERSONS)
    write_oct_encoder(folder / "encoder")
    return folder


def dataset(folder, **given) -> DatasetConfig:
    return DatasetConfig(volumes=f"{folder}/volumes.parquet", **given)


def test_a_probe_tells_two_devices_apart_by_person(folder, tmp_path):
    plugin = PluginConfig("probe", datasets={"devices": dataset(folder, label="device")})
    found = Judge([plugin], str(tmp_path), JudgedVolumes()).judge(f"{folder}/encoder", {"probe": ["linear"]}, CPU, 0)
    assert found.metrics == {"probe/devices/linear_id": 1.0} and found.failed == {}
    opened = JudgedVolumes().open("devices", plugin.datasets["devices"])
    rows = opened.rows["ri"]
    assert sorted(set(rows.labels)) == sorted(DEVICES) and sorted(set(rows.slides)) == [
        f"{p:02d}" for p in range(PERSONS)
    ]
    assert len(opened.images) == 2 * PERSONS and opened.notes == ()


def test_devices_that_do_not_differ_are_not_told_apart(tmp_path):
    write_two_devices(tmp_path, PERSONS, gap=0)
    write_oct_encoder(tmp_path / "encoder")
    plugin = PluginConfig("probe", datasets={"devices": dataset(tmp_path)}, embedding="none")
    found = Judge([plugin], str(tmp_path), JudgedVolumes()).judge(f"{tmp_path}/encoder", {"probe": ["linear"]}, CPU, 0)
    assert found.metrics["probe/devices/linear_id"] <= 0.75, "four volumes are tested"


def test_the_robustness_index_weighs_the_label_against_the_device(folder, tmp_path):
    own = {"biology": dataset(folder, labels=f"{folder}/{LABELS}", neighbours=3)}
    plugin = PluginConfig("pathorob", datasets=own, embedding="none")
    found = Judge([plugin], str(tmp_path), JudgedVolumes()).judge(f"{folder}/encoder", {"pathorob": ["ri"]}, CPU, 0)
    index = read_index(f"{folder}/volumes.parquet")
    rows = index.accepted.to_pylist()
    source = FeatureSource(f"{folder}/encoder", "pretrained", 0, None, index.root, str(tmp_path / "features"))
    make = Compute(source, "cpu", 1)()
    assert {make(row) for row in rows} == {""}
    persons = np.array([row["person"] for row in rows])
    kinds = np.array([("thin", "thick")[int(person) % 2] for person in persons])
    devices = np.array([row["device"] for row in rows])
    expected = robustness_index(load_features(source, rows, {}).mean, kinds, devices, persons, k=3)
    assert found.metrics["pathorob/biology/ri"] == pytest.approx(expected.value)
    assert expected.same_class_other_center + expected.other_class_same_center > 0


def test_a_region_is_the_same_whatever_a_device_calls_its_scan(folder):
    rows = JudgedVolumes().open("biology", dataset(folder, label="region")).rows["ri"]
    assert set(rows.labels) == {"Macula"} and set(rows.centers) == set(DEVICES)


def test_volumes_without_a_label_are_counted_and_left_out(folder, tmp_path):
    labels = write_table(tmp_path / "few.csv", [("person_id", "dr"), ("00", "yes"), ("01", "no"), ("99", "no")])
    opened = JudgedVolumes().open("dr", dataset(folder, labels=labels, label="dr"))
    assert len(opened.images) == 4 and opened.rows["ri"].labels.tolist().count("yes") == 2
    assert opened.notes == ("1 labels are of no volume that is judged", "12 of 16 volumes have no label or no device")
    assert len(JudgedVolumes().open("dr", dataset(folder, max_volumes=5)).images) == 5


def test_a_bound_counts_volumes_that_have_a_label(folder, tmp_path):
    labels = write_table(tmp_path / "few.csv", [("person_id", "dr"), ("00", "yes"), ("07", "no")])
    opened = JudgedVolumes().open("dr", dataset(folder, labels=labels, label="dr", max_volumes=3))
    assert len(opened.images) == 3 and set(opened.rows["ri"].labels) == {"yes", "no"}
    assert opened.notes == ("12 of 16 volumes have no label or no device",)


def test_what_cannot_be_judged_is_refused_with_its_key(folder, tmp_path):
    open_ = JudgedVolumes().open
    with pytest.raises(UserError, match=r"no such column.*label.*vendor.*device"):
        open_("x", dataset(folder, label="vendor"))
    with pytest.raises(UserError, match="no index of volumes here"):
        open_("x", DatasetConfig(volumes=str(tmp_path / "nowhere.parquet")))
    with pytest.raises(UserError, match="has no such column"):
        open_("x", dataset(folder, labels=f"{folder}/{LABELS}", label="dr"))
    with pytest.raises(UserError, match="set either manifest_csv or volumes"):
        dataset(folder, manifest_csv="patches.csv")
    with pytest.raises(UserError, match="only volumes have this"):
        DatasetConfig(manifest_csv="patches.csv", labels="labels.csv")


def test_a_volume_that_cannot_be_read_fails_the_evaluation_and_is_named(tmp_path):
    write_two_devices(tmp_path, 2)
    write_oct_encoder(tmp_path / "encoder")
    row = read_index(f"{tmp_path}/volumes.parquet").accepted.to_pylist()[1]
    file = tmp_path / row["path"]
    file.write_bytes(file.read_bytes()[:-4000])
    plugin = PluginConfig("probe", datasets={"devices": dataset(tmp_path)}, embedding="none")
    judge = Judge([plugin], str(tmp_path), JudgedVolumes())
    with pytest.raises(UserError, match=f"a volume cannot be encoded.*{file.name}.*truncated"):
        judge.judge(f"{tmp_path}/encoder", {"probe": ["linear"]}, CPU, 0)
