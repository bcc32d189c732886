"""The pictures of an extraction agree with its bags: QuPath's tiles are the bag's rows, in level-0 pixels."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pathray.device import Device
from pathray.errors import UnreadableUnit
from pathray.features import slides
from pathray.features.encoder import EncoderSpec, load_encoder
from pathray.features.pictures import TILE_COLOUR, PicturePaths
from pathray.features.read_bags import read_bag
from pathray.features.slides import SlideJob, SlideSettings, extract_slide, slide_identity
from pathray.store.storage import Storage, file_state
from pathray.wsi.contours import COLOUR
from pathray.wsi.tiling import TileSpec
from tests.builders.encoders import write_encoder
from tests.builders.slides import write_mask, write_slide

CPU = Device.of("cpu")
SETTINGS = SlideSettings(TileSpec(32, 1.0), batch_size=64)


@pytest.fixture
def job(tmp_path):
    """A slide of 900 x 700 pixels of 0.5 µm; its mask is a rectangle with a hole."""
    path = write_slide(tmp_path / "s.tiff")
    mask = np.zeros((70, 90), np.uint8)
    mask[10:50, 20:80] = 1
    mask[20:30, 30:50] = 0
    write_mask(tmp_path / "mask.png", mask)
    job = SlideJob("s 1", str(path), mask_path=str(tmp_path / "mask.png"), state=file_state(str(path)))
    return replace(job, bags=(("a", str(tmp_path / "out/a/s 1.h5")),), pictures=paths(tmp_path / "out", job))


def paths(output, job, settings=SETTINGS):
    return PicturePaths.of(str(output), job.slide_id, slide_identity(job), settings.tiles)


@pytest.fixture
def extract(tmp_path):
    spec = EncoderSpec.of("a", write_encoder(tmp_path / "a"))
    encoder = load_encoder(spec, CPU)
    return lambda job, settings=SETTINGS: extract_slide(job, {"a": spec}, {"a": encoder}, settings, CPU)


def features(path):
    return json.loads(open(path, encoding="utf-8").read())["features"]


def test_geojson_for_qupath_has_the_bags_tiles_and_the_masks_tissue(job, extract, tmp_path):
    assert extract(job).status == "ok"
    bag = read_bag(job.bags[0][1])
    whole = json.loads((tmp_path / "out/qupath/s 1.geojson").read_text())
    assert whole["type"] == "FeatureCollection"
    tissue = [f for f in whole["features"] if f["properties"]["objectType"] == "annotation"]
    tiles = [f for f in whole["features"] if f["properties"]["objectType"] == "tile"]
    side = bag.tile["patch_size_level0"]
    assert side == 64 and len(tiles) == len(bag.coords) > 20
    for row, (tile, (x, y)) in enumerate(zip(tiles, bag.coords.tolist(), strict=True)):
        corners = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
        assert tile["geometry"] == {"type": "Polygon", "coordinates": [corners]}
        about = tile["properties"]
        assert (about["name"], about["classification"]["name"]) == (f"tile {row}", "Tile")
        assert 0.2 <= about["measurements"]["Tissue fraction"] <= 1
    [one] = tissue
    assert (one["properties"]["name"], one["properties"]["classification"]["name"]) == ("tissue 1", "Tissue")
    outer, hole = (np.array(ring) for ring in one["geometry"]["coordinates"])
    assert (outer.min(0) == [200, 100]).all() and (outer.max(0) == [800, 500]).all(), "level-0 pixels"
    assert (hole.min(0) == [300, 200]).all() and (hole.max(0) == [500, 300]).all()


def test_the_thumbnail_shows_tiles_and_outline_where_they_are(job, extract, tmp_path):
    extract(job)
    picture = np.asarray(Image.open(tmp_path / "out/thumbnails/s 1.png")).astype(int)
    assert picture.shape[1] == 900 and 700 < picture.shape[0] < 800, "never larger than the slide, and a legend"
    near = {name: np.abs(picture - colour).max(-1) < 60 for name, colour in (("tile", TILE_COLOUR), ("edge", COLOUR))}
    x, y = read_bag(job.bags[0][1]).coords[-1].tolist()
    assert near["tile"][y + 8 : y + 56, x : x + 2].any(1).mean() > 0.9
    assert near["edge"][498:503, 220:780].any(0).mean() > 0.95, "the lower edge of the mask"
    assert not near["tile"][:60, :].any() and not near["edge"][:90, :].any()


def test_pictures_are_current_until_slide_or_tiles_change(job, extract, tmp_path):
    assert not job.pictures.current()
    extract(job)
    assert job.pictures.current()
    assert not paths(tmp_path / "out", replace(job, state="other")).current()
    assert not paths(tmp_path / "out", job, replace(SETTINGS, tiles=TileSpec(16, 1.0))).current()
    (tmp_path / "out/thumbnails/s 1.png").write_bytes(b"")
    assert not job.pictures.current()


def test_pictures_alone_are_drawn_without_touching_a_bag(job, extract, tmp_path):
    outcome = extract(replace(job, bags=()))
    assert (outcome.status, outcome.error) == ("skipped", "") and outcome.tiles > 20
    assert job.pictures.current() and not (tmp_path / "out/a").exists()


def test_a_slide_without_tiles_is_drawn_too_so_that_one_sees_why(job, extract, tmp_path):
    write_mask(tmp_path / "mask.png", np.eye(70, 90, dtype=np.uint8))
    outcome = extract(job)
    assert outcome.status == "empty" and features(tmp_path / "out/qupath/s 1.geojson")
    assert {f["properties"]["objectType"] for f in features(tmp_path / "out/qupath/s 1.geojson")} == {"annotation"}


def test_a_slide_that_cannot_be_drawn_keeps_its_features_and_says_so(job, extract, monkeypatch):
    def broken(*_):
        raise UnreadableUnit("decode", "s.tiff", "level 2")

    monkeypatch.setattr(slides, "write_pictures", broken)
    outcome = extract(job)
    assert outcome.status == "ok" and outcome.error == "no thumbnail: decode: s.tiff: level 2"
    assert len(read_bag(job.bags[0][1]).features) == outcome.tiles


def test_pictures_go_to_a_bucket_as_well(job, extract):
    job = replace(job, pictures=paths("memory://bucket/pictures", job))
    extract(job)
    store = Storage.of("memory://bucket/pictures")
    assert job.pictures.current() and json.loads(store.read_bytes("qupath/s 1.geojson"))["features"]
    Image.open(io.BytesIO(store.read_bytes("thumbnails/s 1.png"))).verify()
