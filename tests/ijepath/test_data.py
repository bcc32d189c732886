"""The reader: right pixels, right places, the same for the same position, and honest about what it cannot read."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from ijepath.config import (
    DataConfig,
    MaskConfig,
    ModelConfig,
    OptimizationConfig,
    RunConfig,
    ScalesConfig,
    resolve_global_batch,
)
from ijepath.data import AnchorReader, ReaderConfig, locate, read_pixels
from ijepath.indexing.tissue import TissueCache
from pathray.data.stream import decode
from pathray.errors import UnreachableUnit, UnreadableUnit
from pathray.store.outages import through_outages
from pathray.store.storage import file_state, write_atomic
from pathray.wsi.regions import resize
from tests.builders.bucket import BucketFileSystem, Outage
from tests.builders.runs.bucket_run import register
from tests.builders.slides import write_mask as write_levels

WIDTH, HEIGHT = 2048, 1536  # 0.5 mpp: 1024 x 768 µm


def painted(width=WIDTH, height=HEIGHT):
    """Pixels that name their place."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x // 8 % 256, y // 8 % 256, (x * 7 + y * 13) % 256], axis=-1).astype(np.uint8)


def write_slide(path, pixels, levels=(1, 2), mpp=0.5):
    description = f"Aperio |MPP = {mpp}"
    with tifffile.TiffWriter(path) as f:
        for down in levels:
            h, w = pixels.shape[0] // down, pixels.shape[1] // down
            level = pixels[: h * down, : w * down].reshape(h, down, w, down, 3).mean((1, 3)).round().astype(np.uint8)
            f.write(level, tile=(256, 256), compression="deflate", photometric="rgb", description=description)
    return str(path)


def write_mask(path, tissue):
    tifffile.imwrite(path, tissue.astype(np.uint8) * 255, tile=(128, 128), compression="deflate")
    return str(path)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Two slides: tissue everywhere on the first, only in the left half of the second."""
    folder = tmp_path_factory.mktemp("cohort")
    whole = np.ones((HEIGHT // 8, WIDTH // 8))
    half = whole.copy()
    half[:, WIDTH // 16 :] = 0
    return {
        "wsi_path": [write_slide(folder / f"{i}.tif", painted() if i == 0 else 255 - painted()) for i in range(2)],
        "mask_path": [write_mask(folder / "m0.tif", whole), write_mask(folder / "m1.tif", half)],
        "wsi_level0_spacing_mpp": [0.5, 0.5],
    }


def run_config(**sections) -> RunConfig:
    sections.setdefault("data", DataConfig(batch_size_per_gpu=4, context_fov_um=256, target_fov_um=64))
    config = RunConfig(optimization=OptimizationConfig(total_images_budget=64), **sections)
    return resolve_global_batch(config, 1)


def reader(cohort, **sections) -> AnchorReader:
    return AnchorReader(ReaderConfig.of(run_config(**sections)), cohort)


def unit(source=0, x=1024, y=768):
    return {"source": np.int32(source), "x": np.int32(x), "y": np.int32(y), "row": 0, "position": 0}


def test_context_and_targets_are_the_slides_own_pixels(cohort):
    sample = reader(cohort).read(unit(x=900, y=700), 5, 0)
    level0 = tifffile.imread(cohort["wsi_path"][0], series=None, key=0)
    level1 = tifffile.imread(cohort["wsi_path"][0], key=1)
    x0, y0 = 900 - 256, 700 - 256
    assert np.array_equal(sample["context"], level1[y0 // 2 : y0 // 2 + 256, x0 // 2 : x0 // 2 + 256])
    assert sample["targets"].shape == (4, 128, 128, 3)
    for box, target in zip(sample["boxes"], sample["targets"], strict=True):
        left, top = x0 + 2 * box[0], y0 + 2 * box[1]
        assert np.array_equal(target, level0[top : top + 128, left : left + 128])


def test_one_level_slides_give_the_context_by_area_and_the_targets_as_they_are(cohort, tmp_path):
    one = {**cohort, "wsi_path": [write_slide(tmp_path / "one.tif", painted(), levels=(1,))] * 2}
    sample, both = reader(one).read(unit(), 5, 0), reader(cohort).read(unit(), 5, 0)
    assert np.array_equal(sample["targets"], both["targets"]) and np.array_equal(sample["boxes"], both["boxes"])
    assert np.abs(sample["context"].astype(int) - both["context"].astype(int)).max() <= 1


def counted(monkeypatch, method):
    """The arguments of every call of a method of TiffReader from now on."""
    from pathray.wsi.backends.tiff import TiffReader

    calls, original = [], getattr(TiffReader, method)
    monkeypatch.setattr(TiffReader, method, lambda self, *args: calls.append(args) or original(self, *args))
    return calls


@pytest.mark.parametrize("levels", [(1,), (1, 2)])
def test_tiles_that_context_and_targets_share_are_decoded_once(cohort, tmp_path, monkeypatch, levels):
    slides = {**cohort, "wsi_path": [write_slide(tmp_path / "s.tif", painted(), levels)] * 2}
    config = replace(ReaderConfig.of(run_config()), tile_cache_bytes=0)  # so that no cache can make up for it
    decodes = counted(monkeypatch, "_decode")
    AnchorReader(config, slides).read(unit(x=1024, y=768), 5, 0)  # level-0 pixels 768…1279 x 512…1023
    decoded = [(level, index) for level, at, index, *_ in decodes if at.samples == 3]
    of_context = {(0, 19), (0, 20), (0, 27), (0, 28)} if levels == (1,) else {(1, 5), (1, 6)}
    assert len(decoded) == len(set(decoded)) and of_context <= set(decoded)
    assert set(decoded) <= of_context | {(0, 19), (0, 20), (0, 27), (0, 28)}


def test_a_library_is_asked_for_one_region_that_holds_context_and_targets():
    class Library:
        path, level_shapes, level_downsamples, reads = "s.mrxs", ((WIDTH, HEIGHT),), (1.0,), 0

        def read_level(self, level, x, y, width, height):
            self.reads += 1
            return painted()[y : y + height, x : x + width]

    slide, geometry = Library(), ReaderConfig.of(run_config()).kinds[0].geometry
    boxes = np.array([[i * 40, i * 50, i * 40 + 64, i * 50 + 64] for i in range(4)], np.int32)
    place = locate(1024, 768, geometry, 1.0, 0.5)
    context, targets = read_pixels(slide, place, boxes, geometry, 1.0, 0.5, 0.05)
    assert slide.reads == 1 and context.shape == (256, 256, 3)
    for (x, y, _, _), target in zip(boxes.tolist(), targets, strict=True):
        assert np.array_equal(target, painted()[512 + 2 * y :, 768 + 2 * x :][:128, :128])


def test_a_sample_is_a_function_of_seed_position_and_attempt(cohort):
    a, b = reader(cohort), reader(cohort)
    for position, attempt in ((0, 0), (9, 0), (9, 1)):
        first, second = a.read(unit(), position, attempt), b.read(unit(), position, attempt)
        assert all(np.array_equal(first[k], second[k]) for k in first)
    boxes = {a.read(unit(), p, 0)["boxes"].tobytes() for p in range(20)} | {a.read(unit(), 9, 1)["boxes"].tobytes()}
    assert len(boxes) == 21  # the same anchor met again at another position shows other targets


def test_a_reader_travels_and_works_in_threads(cohort):
    original = reader(cohort)
    travelled = pickle.loads(pickle.dumps(original))
    with ThreadPoolExecutor(4) as pool:
        samples = list(pool.map(lambda p: travelled.read(unit(source=p % 2, x=600), p, 0), range(16)))
    for position, sample in enumerate(samples):
        alone = original.read(unit(source=position % 2, x=600), position, 0)
        assert all(np.array_equal(sample[k], alone[k]) for k in alone)


def test_a_batch_has_one_shape_and_the_pixels_stay_uint8(cohort):
    r = reader(cohort)
    batch = r.collate([r.read(unit(source=p % 2, x=600), p, 0) for p in range(4)])
    assert batch["context"].shape == (4, 256, 256, 3) and batch["context"].dtype == np.uint8
    assert batch["targets"].shape == (4, 4, 128, 128, 3) and batch["targets"].dtype == np.uint8
    assert batch["boxes"].shape == batch["footprints"].shape == (4, 4, 4)
    assert batch["context_keep"].shape == batch["context_index"].shape == (4, 256 - 4 * 25)
    assert batch["target_predict"].shape == (4, 4, 16) and batch["draws"].shape == (4, 2, 16)
    assert all(isinstance(v, np.ndarray) for v in batch.values())


def test_targets_lie_on_tissue(cohort):
    r = reader(cohort)
    for position in range(30):
        sample = r.read(unit(source=1, x=1024), position, 0)
        right = 1024 - 256 + 2 * sample["boxes"][:, 2]
        left = 1024 - 256 + 2 * sample["boxes"][:, 0]
        share = np.clip((1024 - left) / (right - left), 0, 1)
        assert share.min() >= 0.25 - 0.02  # cells of 8 µm


def test_an_anchor_without_tissue_is_skipped_and_does_not_count_as_damage(cohort):
    r = reader(cohort)
    with pytest.raises(UnreadableUnit) as error:
        r.read(unit(source=1, x=1700), 3, 0)
    assert error.value.reason == "tissue" and error.value.reason in r.benign_reasons


def test_lower_threshold_takes_what_skip_anchor_refuses(cohort):
    data = run_config().data
    poor = unit(source=1, x=1024 + 200)  # 28 px of the context's left edge
    with pytest.raises(UnreadableUnit):
        reader(cohort, data=replace(data, min_target_tissue_fraction=0.9)).read(poor, 3, 0)
    lower = replace(data, min_target_tissue_fraction=0.9, insufficient_target_policy="lower_threshold")
    sample = reader(cohort, data=replace(lower, targets_per_context=2)).read(poor, 3, 0)
    assert 0.1 <= sample["tissue_threshold"] < 0.9


def test_skip_slide_turns_to_another_slide_at_that_position_only(cohort):
    r = reader(cohort, data=replace(run_config().data, insufficient_target_policy="skip_slide"))
    with pytest.raises(UnreadableUnit, match="tissue"):
        r.read(unit(source=1, x=1700), 3, 0)
    with pytest.raises(UnreadableUnit) as error:
        r.read(unit(source=1, x=600), 3, 1)
    assert error.value.reason == "same_slide" and error.value.reason in r.benign_reasons
    assert r.read(unit(source=0), 3, 2)["source"] == 0
    assert r.read(unit(source=1, x=600), 4, 0)["source"] == 1


def test_a_missing_slide_is_missing_and_counts(cohort):
    gone = {**cohort, "wsi_path": ["/nowhere/slide.tif"] * 2}
    with pytest.raises(UnreadableUnit) as error:
        reader(gone).read(unit(), 0, 0)
    assert error.value.reason == "missing" and error.value.reason not in AnchorReader.benign_reasons


def test_a_steps_units_share_their_kind_and_kinds_change_the_spacing(cohort):
    r = reader(cohort, scales=ScalesConfig(same_resolution_ratio=0.5))
    made = [k.name.split("_")[0] for k in r.config.kinds]
    seen = set()
    for step in range(12):
        samples = [r.read(unit(), 4 * step + i, 0) for i in range(4)]
        (kind,) = {int(s["kind"]) for s in samples}
        seen.add(made[kind])
        batch = r.collate(samples)
        expected = (0.5, 64) if made[kind] == "same" else (1.0, 128)
        assert (batch["context_mpp"][0], batch["targets"].shape[2]) == expected
    assert seen == {"cross", "same"}


def test_same_resolution_targets_are_cut_from_the_context_itself(cohort):
    r = reader(cohort, scales=ScalesConfig(same_resolution_ratio=1.0))
    sample = r.read(unit(), 0, 0)
    for (x0, y0, x1, y1), target in zip(sample["boxes"], sample["targets"], strict=True):
        assert np.array_equal(target, sample["context"][y0:y1, x0:x1])


def test_scale_factors_are_drawn_among_those_the_slide_has(cohort):
    r = reader(cohort, scales=ScalesConfig(factors=[0.5, 1.0, 2.0]))
    mpps = {float(r.read(unit(), p, 0)["context_mpp"]) for p in range(30)}
    assert mpps == {1.0, 2.0}  # 0.5 would need targets at 0.25 mpp
    assert {float(r.read(unit(x=300, y=300), p, 0)["context_mpp"]) for p in range(30)} == {1.0}  # 2.0 leaves the slide
    with pytest.raises(UnreadableUnit) as error:
        reader(cohort, scales=ScalesConfig(factors=[0.5])).read(unit(), 0, 0)
    assert error.value.reason in r.benign_reasons


def test_outside_targets_show_what_lies_beyond_the_context(cohort):
    r = reader(cohort, mask=MaskConfig(outside_targets=2))
    sample = r.read(unit(x=1000, y=760), 1, 0)
    level0 = tifffile.imread(cohort["wsi_path"][0], key=0)
    for box, target in zip(sample["boxes"][2:], sample["targets"][2:], strict=True):
        assert box[2] <= 0 or box[3] <= 0 or box[0] >= 256 or box[1] >= 256
        left, top = 1000 - 256 + 2 * box[0], 760 - 256 + 2 * box[1]
        assert np.array_equal(target, level0[top : top + 128, left : left + 128])


def test_token_loss_brings_the_teachers_cells_along(cohort):
    sample = reader(cohort, model=ModelConfig(loss="tokens")).read(unit(), 0, 0)
    assert sample["cells"].shape == (4, 64) and sample["cells"].max() < 16


SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "wsi"
REAL = {
    "CMU-1-Small-Region.svs": (0.499, (1100, 1500)),
    "TCGA-CR-7395-01A-01-TS1.svs": (0.5, (2200, 1800)),
    "derived/CMU1_pyramid_jpeg.svs": (0.499, (1100, 1500)),
    "derived/CMU1_pyramid_jp2k.svs": (0.499, (1100, 1500)),
}


@pytest.mark.parametrize("name", list(REAL))
@pytest.mark.parametrize("option", ["cross", "reverse", "outside"])
def test_on_real_slides_a_target_shows_its_own_box_of_the_context(name, option):
    if not SHARED.is_dir():
        pytest.skip("the real slides of ../shared/data are not here")
    mpp0, (x, y) = REAL[name]
    slides = {"wsi_path": [str(SHARED / name)], "mask_path": [None], "wsi_level0_spacing_mpp": [mpp0]}
    scales = ScalesConfig(reverse_ratio=float(option == "reverse"))
    r = reader(slides, scales=scales, mask=MaskConfig(outside_targets=2 if option == "outside" else 0))
    for position in range(4):
        sample = r.read(unit(x=x, y=y), position, 0)
        for (x0, y0, x1, y1), target in zip(sample["boxes"], sample["targets"], strict=True):
            if min(x0, y0) < 0 or max(x1, y1) > 256:
                continue
            here = likeness(sample["context"], target, x0, y0, x1, y1)
            assert here > 0.9, (position, x0, y0)
            moved = [(dx, dy) for dx in (-4, 0, 4) for dy in (-4, 0, 4) if (dx, dy) != (0, 0)]
            moved = [(dx, dy) for dx, dy in moved if min(x0 + dx, y0 + dy) >= 0 and max(x1 + dx, y1 + dy) <= 256]
            assert all(
                likeness(sample["context"], target, x0 + dx, y0 + dy, x1 + dx, y1 + dy) < here for dx, dy in moved
            )


def likeness(context, target, x0, y0, x1, y1):
    """Correlation of a target with a box of the context, both at the coarser of their resolutions."""
    shown = np.ascontiguousarray(context[y0:y1, x0:x1])
    side = min(target.shape[0], shown.shape[0])
    a, b = (resize(p, side, side).astype(float).ravel() for p in (target, shown))
    return np.corrcoef(a, b)[0, 1]


@pytest.fixture
def speckled(cohort, tmp_path):
    """An open slide, a mask of random 16 µm squares at 0.5 mpp, and its path."""
    from pathray.wsi.reader import open_slide

    generator = np.random.default_rng(1)
    tissue = np.kron(generator.random((HEIGHT // 32, WIDTH // 32)) < 0.5, np.ones((32, 32), bool))
    return open_slide(cohort["wsi_path"][0]), tissue, write_mask(tmp_path / "m.tif", tissue)


@pytest.mark.parametrize("whole_pixels", [0, 1 << 22])
def test_tissue_shares_equal_counting_pixels(speckled, whole_pixels, monkeypatch):
    monkeypatch.setattr("ijepath.indexing.tissue.WHOLE_PIXELS", whole_pixels)
    slide, tissue, path = speckled
    boxes = np.array([[100, 40, 356, 300], [0, 0, 64, 64], [1000, 700, 1500, 1111], [-100, -50, 156, 206]], float)
    window = TissueCache(8.0).window(slide, path, 0.5, (-128, -128, 1600, 1200))
    padded = np.pad(tissue, 128)
    for (x0, y0, x1, y1), share in zip(boxes.astype(int), window.share(boxes), strict=True):
        assert share == pytest.approx(padded[y0 + 128 : y1 + 128, x0 + 128 : x1 + 128].mean(), abs=0.004)


@pytest.mark.parametrize(("downs", "level", "pixels"), [((1, 4, 16, 64), 2, 128 * 96), ((1, 4), 1, 256 * 256)])
def test_a_mask_is_read_at_the_coarsest_level_that_serves_the_cells_and_only_around_the_context(
    speckled, tmp_path, monkeypatch, downs, level, pixels
):
    monkeypatch.setattr("ijepath.indexing.tissue.WHOLE_PIXELS", 128 * 96)
    slide, tissue, _ = speckled
    pyramid = write_levels(tmp_path / "pyramid.tif", tissue.astype(np.uint8), downsamples=downs)
    reads = counted(monkeypatch, "read_level")
    window = TissueCache(8.0).window(slide, str(pyramid), 0.5, (64, 64, 320, 320))  # cells of 16 level-0 pixels
    assert [(at, width * height) for at, _, _, width, height in reads] == [(level, pixels)]
    assert window.cell == (16.0, 16.0)
    assert window.share(np.array([[64.0, 64, 320, 320]]))[0] == pytest.approx(tissue[64:320, 64:320].mean())


def test_slides_of_other_sizes_may_share_a_mask_file(speckled):
    slide, _, path = speckled

    class Half:
        level_shapes = (tuple(side // 2 for side in slide.level_shapes[0]),)

    shared, box = TissueCache(8.0), (0, 0, 320, 320)
    shared.window(slide, path, 0.5, box)
    alone = TissueCache(8.0).window(Half(), path, 1.0, box)
    after = shared.window(Half(), path, 1.0, box)
    assert after.cell == alone.cell and np.array_equal(after.integral, alone.integral)


def test_the_tissue_cache_keeps_within_its_bytes(speckled, monkeypatch):
    monkeypatch.setattr("ijepath.indexing.tissue.WHOLE_PIXELS", 0)
    slide, _, path = speckled
    cache, free = TissueCache(1.0, max_bytes=20_000), TissueCache(1.0)
    for x in range(0, 1800, 50):
        box = (x, 0, x + 200, 200)
        here, there = cache.window(slide, path, 0.5, box), free.window(slide, path, 0.5, box)
        assert np.array_equal(here.integral, there.integral)
        assert cache.nbytes <= 20_000
    assert free.nbytes > 20_000


@pytest.mark.parametrize("operation", ["look", "read"])
def test_samples_are_the_same_after_the_bucket_of_their_slides_was_away(cohort, tmp_path, monkeypatch, operation):
    register(tmp_path, monkeypatch.setenv)
    monkeypatch.setitem(through_outages.__kwdefaults__, "first_pause_s", 0.05)
    remote = {"wsi_level0_spacing_mpp": cohort["wsi_level0_spacing_mpp"]}
    for name in ("wsi_path", "mask_path"):
        remote[name] = [f"bucket://store/{Path(path).name}" for path in cohort[name]]
        for path, url in zip(cohort[name], remote[name], strict=True):
            write_atomic(url, Path(path).read_bytes())
    remote["wsi_state"] = [file_state(url) for url in remote["wsi_path"]]
    monkeypatch.setattr(BucketFileSystem, "outage", away := Outage(operation, "store/*", 1.0))
    with pytest.raises(UnreachableUnit):
        reader(remote).read(unit(), 5, 0)
    row = {name: np.array([value]) for name, value in unit(x=700).items()} | {"position": np.array([5])}
    found, expected = decode(reader(remote), row, None), decode(reader(cohort), row, None)
    assert len(away.refused) > 3, "storage was still away when the stream began to read"
    assert found.pop("faults") == expected.pop("faults") == []
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
