import json
import os

import numpy as np
import pytest

from pathray.wsi.geojson import GeoJsonWriter


def test_what_is_written_is_a_feature_collection_as_qupath_reads_it(tmp_path):
    path = tmp_path / "out" / "anchors.geojson"
    with GeoJsonWriter(path) as out:
        out.box(10, 20, 512, 256, name="anchor 7", classification="Context", colour=(200, 0, 10))
        out.polygon([(0, 0), (9, 0), (9, 9)], [[(2, 2), (3, 2), (3, 3)]], colour=(1, 2, 3))
        out.point(5, 6, measurements={"tissue": np.float32(0.5), "n": 3})
        out.points([(1, 2), (3, 4)], name="µ-Ω")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["type"] == "FeatureCollection" and len(found["features"]) == 4
    box, polygon, point, points = found["features"]
    assert box["geometry"] == {
        "type": "Polygon",
        "coordinates": [[[10, 20], [522, 20], [522, 276], [10, 276], [10, 20]]],
    }
    assert box["properties"] == {
        "objectType": "annotation",
        "name": "anchor 7",
        "classification": {"name": "Context", "color": [200, 0, 10]},
    }
    assert [len(ring) for ring in polygon["geometry"]["coordinates"]] == [4, 4]
    assert polygon["properties"]["color"] == [1, 2, 3]
    assert point["geometry"] == {"type": "Point", "coordinates": [5, 6]}
    assert point["properties"]["measurements"] == {"tissue": 0.5, "n": 3.0}
    assert points["geometry"]["type"] == "MultiPoint" and points["properties"]["name"] == "µ-Ω"
    assert all(f["type"] == "Feature" for f in found["features"])


def test_an_empty_collection_is_valid_and_tiles_are_named_as_such(tmp_path):
    with GeoJsonWriter(tmp_path / "e.geojson"):
        assert not (tmp_path / "e.geojson").exists()
    assert json.loads((tmp_path / "e.geojson").read_text())["features"] == []
    with GeoJsonWriter(tmp_path / "t.geojson", object_type="tile") as out:
        out.box(0, 0, 1, 1)
    assert json.loads((tmp_path / "t.geojson").read_text())["features"][0]["properties"] == {"objectType": "tile"}


def test_a_failed_write_leaves_the_older_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.geojson"
    with GeoJsonWriter(path) as out:
        out.point(1, 2)
    before = path.read_text()
    for bad in ({"x": float("nan"), "y": 0.0}, {"x": 1.0, "y": 2.0, "measurements": {"m": float("inf")}}):
        with pytest.raises(ValueError), GeoJsonWriter(path) as out:
            out.point(3, 4)
            out.point(**bad)
    assert path.read_text() == before and os.listdir(tmp_path) == ["a.geojson"]


def test_a_hundred_thousand_tiles_are_streamed(tmp_path):
    class Counting:
        def __init__(self, file):
            self.file, self.largest = file, 0

        def write(self, text):
            self.largest = max(self.largest, len(text))
            return self.file.write(text)

        def close(self):
            self.file.close()

    with GeoJsonWriter(tmp_path / "big.geojson") as out:
        out._file = counting = Counting(out._file)
        for i in range(5000):
            out.box(i, i, 256, 256)
    assert out.count == 5000 and counting.largest < 500
    assert len(json.loads((tmp_path / "big.geojson").read_text())["features"]) == 5000
