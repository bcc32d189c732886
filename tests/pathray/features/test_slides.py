"""One slide to bags, against a plain loop: another library's pixels, one tile at a time, preprocessing in numpy."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from pathray.device import Device
from pathray.errors import UnreadableUnit, UserError
from pathray.features.bags import read_summary
from pathray.features.encoder import EncoderSpec, load_encoder
from pathray.features.publish import sweep
from pathray.features.read_bags import read_bag
from pathray.features.slides import SlideJob, SlideSettings, bag_fingerprint, extract_slide
from pathray.features.tables import read_table
from pathray.store.storage import file_state
from pathray.wsi.tiling import TileSpec
from tests.builders.encoders import MEAN, plain_features, write_encoder
from tests.builders.jobs import ROOT, job_environment
from tests.builders.slides import truncate_tile, write_mask, write_slide

CPU = Device.of("cpu")
SETTINGS = SlideSettings(TileSpec(32, 1.0), batch_size=16)


@pytest.fixture
def encoders(tmp_path):
    specs = {
        "a": EncoderSpec.of("a", write_encoder(tmp_path / "a")),
        "b": EncoderSpec.of("b", write_encoder(tmp_path / "b", seed=1, dim=16, cls=True)),
    }
    return specs, {name: load_encoder(spec, CPU) for name, spec in specs.items()}


def extract(path, folder, encoders, settings=SETTINGS, names=("a", "b"), **job):
    specs, loaded = encoders
    bags = tuple((name, str(folder / name / "s.h5")) for name in names)
    whole = SlideJob("s", str(path), bags=bags, state=file_state(str(path)), **job)
    return extract_slide(whole, specs, loaded, settings, CPU), {name: read_bag(path) for name, path in bags}


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs"])
def test_a_real_slides_features_are_those_of_a_plain_loop_over_another_library(shared_data, tmp_path, name):
    import tiffslide

    path = shared_data / "wsi" / name
    artifact = write_encoder(tmp_path / "e", size=112, mpp=0.5)
    specs = {"e": EncoderSpec.of("e", artifact)}
    loaded = {"e": load_encoder(specs["e"], CPU)}
    settings = SlideSettings(TileSpec(112, 0.5, min_tissue_fraction=0.9), batch_size=64)
    outcome, bags = extract(path, tmp_path, (specs, loaded), settings, ("e",), fallback_mpp=0.5)
    slide = tiffslide.TiffSlide(str(path))
    coords = bags["e"].coords
    assert outcome.status == "ok" and len(coords) == outcome.tiles > 80
    assert coords.tolist() == sorted(coords.tolist(), key=lambda c: (c[1], c[0])), "raster order"
    assert (coords % 112 == 0).all() and bags["e"].tile["patch_size_level0"] == 112
    some = np.unique(np.linspace(0, len(coords) - 1, 40).astype(int))
    tiles = [np.asarray(slide.read_region(tuple(coords[i]), 0, (112, 112)))[..., :3] for i in some]
    np.testing.assert_allclose(bags["e"].features[some], plain_features(artifact, tiles), atol=1e-5)


def test_resampled_tiles_are_means_of_the_slides_pixels(tmp_path, encoders):
    path = write_slide(tmp_path / "s.tiff", codec="none", downsamples=(1,), mpp=0.5, width=640, height=512)
    outcome, bags = extract(path, tmp_path, encoders)
    import tifffile

    base = tifffile.imread(path, key=0)
    blocks = [base[y : y + 64, x : x + 64].reshape(32, 2, 32, 2, 3).mean((1, 3)) for x, y in bags["a"].coords]
    tiles = np.floor(np.array(blocks) + 0.5).astype(np.uint8)
    assert outcome.tiles == len(tiles) > 15
    for name in "ab":
        np.testing.assert_allclose(bags[name].features, plain_features(str(tmp_path / name), tiles), atol=1e-5)
    assert bags["b"].features.shape[1] == 16 and (bags["a"].coords == bags["b"].coords).all()


def test_features_do_not_depend_on_batches_and_threads(tmp_path, encoders):
    path = write_slide(tmp_path / "s.tiff")
    _, expected = extract(path, tmp_path / "0", encoders)
    for number, (batch, threads) in enumerate([(1, 1), (7, 3), (512, 2)], 1):
        settings = replace(SETTINGS, batch_size=batch, read_threads=threads)
        _, found = extract(path, tmp_path / str(number), encoders, settings)
        for name in "ab":
            np.testing.assert_array_equal(found[name].coords, expected[name].coords)
            np.testing.assert_allclose(found[name].features, expected[name].features, atol=1e-5)


def test_the_same_run_twice_gives_the_same_bytes(tmp_path, encoders):
    path = write_slide(tmp_path / "s.tiff")
    for folder in "12":
        extract(path, tmp_path / folder, encoders)
    assert (tmp_path / "1/a/s.h5").read_bytes() == (tmp_path / "2/a/s.h5").read_bytes()


def test_pixels_are_read_once_for_all_encoders(tmp_path, encoders, monkeypatch):
    import pathray.features.slides as slides

    read = []
    real = slides.read_regions
    monkeypatch.setattr(slides, "read_regions", lambda r, part, *a, **k: read.extend(part) or real(r, part, *a, **k))
    outcome, _ = extract(write_slide(tmp_path / "s.tiff"), tmp_path, encoders)
    assert len(read) == len(set(read)) == outcome.tiles


def test_a_slide_of_many_tiles_holds_a_few_batches_of_pixels(tmp_path, encoders, monkeypatch):
    import weakref

    import pathray.features.slides as slides

    alive, most = weakref.WeakSet(), []
    real = slides.PixelBatch

    class Tracked(real):
        def __init__(self, *args):
            super().__init__(*args)
            alive.add(self)
            most.append(len(alive))

    Tracked.__hash__ = object.__hash__
    Tracked.__eq__ = object.__eq__
    monkeypatch.setattr(slides, "PixelBatch", Tracked)
    settings = replace(SETTINGS, batch_size=2, read_threads=2)
    extract(write_slide(tmp_path / "s.tiff"), tmp_path, encoders, settings)
    assert len(most) > 25 and max(most) <= 8


def test_resizing_brings_tiles_to_each_encoders_own_size(tmp_path, encoders):
    path = write_slide(tmp_path / "s.tiff", codec="none", downsamples=(1,), mpp=0.5)
    settings = replace(SETTINGS, tiles=TileSpec(64, 0.5), resize=True)
    _, bags = extract(path, tmp_path / "1", encoders, settings)
    _, expected = extract(path, tmp_path / "2", encoders)  # 32 pixels at 1.0 show the same
    np.testing.assert_array_equal(bags["a"].coords, expected["a"].coords)
    np.testing.assert_allclose(bags["a"].features, expected["a"].features, atol=1e-5)


def test_a_bag_says_what_it_is(tmp_path, encoders):
    mask = np.zeros((175, 225), np.uint8)
    mask[40:120, 60:160] = 1
    mask_path = str(write_mask(tmp_path / "mask.png", mask))
    path = write_slide(tmp_path / "s.tiff")
    outcome, bags = extract(path, tmp_path, encoders, replace(SETTINGS, pooling="mean"), mask_path=mask_path)
    tile, said = bags["b"].tile, bags["b"].provenance
    assert tile["patch_size"] == 32 and tile["patch_size_level0"] == 64 and tile["mpp"] == 1.0 and tile["tile_um"] == 32
    assert (tile["level0_width"], tile["level0_height"], tile["level0_magnification"]) == (900, 700, 20)
    assert tile["encoder_sha256"] == encoders[0]["b"].description["sha256"] == said["encoder"]["sha256"]
    assert said["encoder"]["preprocessing"]["mean"] == MEAN and said["encoder_name"] == "b"
    assert said["source"] == {
        "wsi_path": str(path),
        "mask_path": mask_path,
        "mpp0": 0.5,
        "spacing_source": "tags",
        "backend": "tiff",
        "source_mpp": 1.0,
    }
    first, last = bags["b"].coords.min(axis=0), bags["b"].coords.max(axis=0) + 64
    assert (first >= (240 - 52, 160 - 52)).all() and (last <= (640 + 52, 480 + 52)).all(), "a fifth of a tile at least"
    assert outcome.tiles == len(bags["b"].coords) > 20


def test_a_fingerprint_changes_with_all_that_features_depend_on_and_nothing_else(tmp_path, encoders):
    spec, job = encoders[0]["a"], SlideJob("s", "/x/s.svs", state="10:1")
    first = bag_fingerprint(job, spec, SETTINGS)
    others = [
        bag_fingerprint(replace(job, state="10:2"), spec, SETTINGS),
        bag_fingerprint(replace(job, mask_state="1:1"), spec, SETTINGS),
        bag_fingerprint(replace(job, mpp=0.25), spec, SETTINGS),
        bag_fingerprint(replace(job, slide_id="t"), spec, SETTINGS),
        bag_fingerprint(job, encoders[0]["b"], SETTINGS),
        bag_fingerprint(job, spec, replace(SETTINGS, pooling="cls")),
        bag_fingerprint(job, spec, replace(SETTINGS, dtype="float16")),
        bag_fingerprint(job, spec, replace(SETTINGS, tiles=TileSpec(32, 1.0, overlap_px=1))),
    ]
    assert len({first, *others}) == 1 + len(others)
    moved = replace(job, wsi_path="/y/s.svs", bags=(("a", "/z"),))
    same = replace(SETTINGS, batch_size=1, read_threads=5, cache_bytes=1, parquet=True)
    assert bag_fingerprint(moved, spec, same) == first


def test_a_table_beside_a_bag_holds_the_same(tmp_path, encoders):
    path = write_slide(tmp_path / "s.tiff")
    _, bags = extract(path, tmp_path, encoders, replace(SETTINGS, parquet=True, dtype="float16"))
    table = read_table(str(tmp_path / "a" / "s.parquet"))
    np.testing.assert_array_equal(table.features, bags["a"].features)
    assert table.features.dtype == np.float16
    np.testing.assert_array_equal(np.stack([table.columns["x"], table.columns["y"]], 1), bags["a"].coords)
    assert table.meta["fingerprint"] == read_summary(str(tmp_path / "a" / "s.h5")).fingerprint
    assert pq.read_table(tmp_path / "a" / "s.parquet").column_names == ["x", "y", "features"]


def test_a_slide_without_tissue_gives_no_bag_and_no_failure(tmp_path, encoders):
    path = write_slide(tmp_path / "s.tiff", image=np.full((300, 400, 3), 244, np.uint8))
    outcome = extract_slide(SlideJob("s", str(path), bags=(("a", str(tmp_path / "s.h5")),)), *encoders, SETTINGS, CPU)
    assert (outcome.status, outcome.tiles) == ("empty", 0) and not (tmp_path / "s.h5").exists()


def test_a_slide_without_spacing_needs_one_and_the_manifests_wins(tmp_path, encoders):
    path = write_slide(tmp_path / "s.tiff", mpp=None)
    with pytest.raises(UserError, match=r"add an `mpp` column.*slide_mpp"):
        extract(path, tmp_path, encoders)
    outcome, _ = extract(path, tmp_path, encoders, fallback_mpp=0.5)
    assert (outcome.mpp0, outcome.spacing_source) == (0.5, "config")
    outcome, bags = extract(path, tmp_path, encoders, fallback_mpp=0.5, mpp=0.25)
    assert (outcome.mpp0, outcome.spacing_source, bags["a"].tile["patch_size_level0"]) == (0.25, "manifest", 128)
    outcome, _ = extract(path, tmp_path, encoders, mpp=1.5)
    assert outcome.status == "ok" and outcome.error.startswith("enlarged: the finest level has 1.500")


def test_a_damaged_tile_fails_the_slide_and_leaves_no_bag(tmp_path, encoders):
    path = write_slide(tmp_path / "s.tiff", downsamples=(1, 4))
    truncate_tile(path, 0, 6)
    with pytest.raises(UnreadableUnit, match="level 0, tile 6"):
        extract(path, tmp_path, encoders, replace(SETTINGS, tiles=TileSpec(64, 0.5)))
    assert os.listdir(tmp_path / "a") == ["artifact.json", "weights.safetensors"]


DIES = """
import os, sys
import pathray.features.inference as encoding
from pathray.device import Device
from pathray.features.encoder import EncoderSpec, load_encoder
from pathray.features.slides import SlideJob, SlideSettings, extract_slide
from pathray.wsi.tiling import TileSpec
slide, artifact, bag = sys.argv[1:]
device, spec = Device.of("cpu"), EncoderSpec.of("a", artifact)
encoder, calls = load_encoder(spec, device), []
def dies(pixels):
    calls.append(0)
    if len(calls) == 3:
        os.kill(os.getpid(), 9)
    return encoder(pixels)
settings = SlideSettings(TileSpec(32, 1.0), batch_size=8)
extract_slide(SlideJob("s", slide, bags=(("a", bag),)), {"a": spec}, {"a": dies}, settings, device)
"""


def test_a_killed_extraction_leaves_no_bag_and_the_next_one_makes_it_whole(tmp_path, encoders):
    path, bag = write_slide(tmp_path / "s.tiff"), tmp_path / "out" / "s.h5"
    words = [sys.executable, "-c", DIES, str(path), str(tmp_path / "a"), str(bag)]
    assert subprocess.run(words, cwd=ROOT, env=job_environment()).returncode == -9
    (left,) = os.listdir(bag.parent)
    assert left.endswith(".partial") and read_summary(str(bag)) is None
    assert sweep(str(bag.parent)) == [str(bag.parent / left)]
    outcome = extract_slide(SlideJob("s", str(path), bags=(("a", str(bag)),)), *encoders, SETTINGS, CPU)
    assert read_summary(str(bag)).rows == outcome.tiles and os.listdir(bag.parent) == ["s.h5"]
