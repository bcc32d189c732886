"""Image files to tables, against a plain loop over Pillow and numpy."""

import errno
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pathray.device import Device
from pathray.errors import MissingFile, UnreadableUnit, UserError
from pathray.features.encoder import EncoderSpec, load_encoder
from pathray.features.images import ImageJob, ImageSettings, extract_images, part_fingerprint, read_image
from pathray.features.tables import bag_to_parquet, merge_tables, read_meta, read_table, write_table
from pathray.store.storage import StorageError
from tests.builders.encoders import plain_features, write_encoder

CPU = Device.of("cpu")


@pytest.fixture
def encoders(tmp_path):
    specs = {n: EncoderSpec.of(n, write_encoder(tmp_path / n, seed=i, dim=16 + 8 * i)) for i, n in enumerate("ab")}
    return specs, {name: load_encoder(spec, CPU) for name, spec in specs.items()}


def write_images(folder, shapes, suffix="png"):
    """(paths, pixels); JPEGs are read back as they are."""
    folder.mkdir(exist_ok=True)
    paths, images = [], []
    for i, (height, width) in enumerate(shapes):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.{suffix}")
        paths.append(str(folder / f"{i:03d}.{suffix}"))
        images.append(pixels)
    return paths, images


def job(paths, folder, names="ab", **options):
    tables = tuple((name, str(folder / f"{name}.parquet")) for name in names)
    shown = tuple(os.path.basename(p) for p in paths)
    return ImageJob(shown, tuple(paths), tuple("1:1" for _ in paths), tables=tables, **options)


def test_features_of_mixed_sizes_come_in_the_order_of_the_list(tmp_path, encoders):
    shapes = [(32, 32), (64, 48), (32, 32), (32, 64), (64, 48), (32, 32), (32, 32)]
    paths, images = write_images(tmp_path / "i", shapes)
    organs = tuple("abcdefg")
    found = extract_images(
        job(paths, tmp_path, metadata={"organ": organs}), *encoders, ImageSettings(batch_size=3), CPU
    )
    assert found.errors == {} and found.written
    for name in "ab":
        table = read_table(str(tmp_path / f"{name}.parquet"))
        np.testing.assert_allclose(table.features, plain_features(str(tmp_path / name), images), atol=1e-5)
        assert table.columns["path"] == [os.path.basename(p) for p in paths] and table.columns["organ"] == list(organs)
        assert list(zip(table.columns["height"], table.columns["width"], strict=True)) == shapes


def test_features_do_not_depend_on_batches_and_threads(tmp_path, encoders):
    shapes = [(32, 32 + 16 * (i % 5)) for i in range(30)]
    paths, images = write_images(tmp_path / "i", shapes)
    expected = plain_features(str(tmp_path / "a"), images)
    for batch, threads in ((1, 1), (4, 3), (100, 2)):
        settings = ImageSettings(batch_size=batch, read_threads=threads)
        extract_images(job(paths, tmp_path, "a"), *encoders, settings, CPU)
        np.testing.assert_allclose(read_table(str(tmp_path / "a.parquet")).features, expected, atol=1e-5)


def test_real_patches_are_those_of_a_plain_loop(shared_data, tmp_path):
    paths = sorted(str(p) for p in (shared_data / "patches/crc5/test").rglob("*.jpg"))[:12]
    artifact = write_encoder(tmp_path / "e", size=224)
    specs = {"e": EncoderSpec.of("e", artifact)}
    extract_images(job(paths, tmp_path, "e"), specs, {"e": load_encoder(specs["e"], CPU)}, ImageSettings(), CPU)
    images = [np.asarray(Image.open(p).convert("RGB")) for p in paths]
    table = read_table(str(tmp_path / "e.parquet"))
    assert len(paths) == 12
    np.testing.assert_allclose(table.features, plain_features(artifact, images), atol=1e-5)


def test_images_that_cannot_be_read_are_left_out_and_named(tmp_path, encoders):
    paths, images = write_images(tmp_path / "i", [(32, 32)] * 4 + [(40, 32)])
    with open(paths[1], "r+b") as file:
        file.truncate(400)
    os.unlink(paths[2])
    found = extract_images(job(paths, tmp_path), *encoders, ImageSettings(), CPU)
    assert sorted(found.errors) == [1, 2, 4]
    assert "decode" in found.errors[1] and "no such file" in found.errors[2] and "patch size" in found.errors[4]
    table = read_table(str(tmp_path / "a.parquet"))
    assert table.columns["path"] == ["000.png", "003.png"] and [i for i, _ in table.meta["failed"]] == [1, 2, 4]
    np.testing.assert_allclose(table.features, plain_features(str(tmp_path / "a"), [images[0], images[3]]), atol=1e-5)


def test_resizing_makes_any_square_image_fit(tmp_path, encoders):
    paths, images = write_images(tmp_path / "i", [(64, 64), (32, 32), (64, 32)])
    found = extract_images(job(paths, tmp_path, "a"), *encoders, ImageSettings(resize=True), CPU)
    assert list(found.errors) == [2] and "square images" in found.errors[2]
    halved = np.floor(images[0].reshape(32, 2, 32, 2, 3).mean((1, 3)) + 0.5).astype(np.uint8)
    expected = plain_features(str(tmp_path / "a"), [halved, images[1]])
    np.testing.assert_allclose(read_table(str(tmp_path / "a.parquet")).features, expected, atol=1e-5)


def test_a_part_none_of_whose_images_can_be_read_is_an_empty_table(tmp_path, encoders):
    found = extract_images(job([str(tmp_path / "no.png")], tmp_path), *encoders, ImageSettings(dtype="float16"), CPU)
    assert list(found.errors) == [0]
    table = read_table(str(tmp_path / "a.parquet"))
    assert table.features.shape == (0, 16) and table.features.dtype == np.float16


def test_grey_and_transparent_images_are_read_as_colours_and_deep_ones_refused(tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([grey] * 3 + [grey // 2])).save(tmp_path / "rgba.png")
    Image.fromarray(grey.astype(np.uint16) * 500).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(str(tmp_path / "grey.png")), np.dstack([grey] * 3))
    alpha = (grey // 2) / 255.0
    on_white = np.dstack([np.rint(grey * alpha + 255 * (1 - alpha))] * 3)
    np.testing.assert_allclose(read_image(str(tmp_path / "rgba.png")), on_white, atol=1)
    with pytest.raises(UnreadableUnit, match="mode I;16"):
        read_image(str(tmp_path / "deep.png"))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UnreadableUnit, match="decode"):
        read_image(str(tmp_path / "text.png"))
    with pytest.raises(MissingFile):
        read_image(str(tmp_path / "none.png"))


def test_a_part_is_done_again_when_an_image_or_its_metadata_changed(tmp_path, encoders):
    spec, settings, first = encoders[0]["a"], ImageSettings(), job(["x.png", "y.png"], tmp_path)
    changed = [
        ImageJob(first.names, first.paths, ("1:1", "1:2")),
        ImageJob(("x.png", "z.png"), first.paths, first.states),
        ImageJob(first.names, first.paths, first.states, {"organ": ("a", "b")}),
    ]
    prints = [part_fingerprint(j, spec, settings) for j in [first, *changed]]
    prints.append(part_fingerprint(first, spec, ImageSettings(dtype="float16")))
    assert len(set(prints)) == 5
    assert part_fingerprint(first, spec, ImageSettings(batch_size=2)) == prints[0]


def test_merged_parts_are_the_parts_behind_each_other(tmp_path, encoders):
    paths, images = write_images(tmp_path / "i", [(32, 32)] * 7)
    parts = []
    for i, cut in enumerate((slice(0, 3), slice(3, 6), slice(6, 7))):
        extract_images(job(paths[cut], tmp_path / str(i), "a"), *encoders, ImageSettings(), CPU)
        parts.append(str(tmp_path / str(i) / "a.parquet"))
    assert merge_tables(parts, str(tmp_path / "all.parquet"), {"fingerprint": "f"}) == 7
    table = read_table(str(tmp_path / "all.parquet"))
    np.testing.assert_allclose(table.features, plain_features(str(tmp_path / "a"), images), atol=1e-5)
    assert table.meta["fingerprint"] == "f" and pq.ParquetFile(tmp_path / "all.parquet").num_row_groups == 3
    assert read_meta(parts[0])["fingerprint"] != "f" and read_meta(str(tmp_path / "none")) is None


def test_a_full_disk_while_merging_leaves_nothing(tmp_path, encoders, monkeypatch):
    paths, _ = write_images(tmp_path / "i", [(32, 32)])
    extract_images(job(paths, tmp_path / "p", "a"), *encoders, ImageSettings(), CPU)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(StorageError, match=r"No space.*all\.parquet"):
        merge_tables([str(tmp_path / "p/a.parquet")], str(tmp_path / "out" / "all.parquet"), {})
    assert os.listdir(tmp_path / "out") == []


def test_what_is_no_feature_table_is_refused(tmp_path):
    import pyarrow as pa

    pq.write_table(pa.table({"x": [1]}), tmp_path / "t.parquet")
    (tmp_path / "u.parquet").write_bytes(b"text")
    for name, said in (("t", "not a feature table"), ("u", "not a parquet")):
        with pytest.raises(UserError, match=said):
            read_table(str(tmp_path / f"{name}.parquet"))
        assert read_meta(str(tmp_path / f"{name}.parquet")) is None
    table = pa.table({"features": pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0]), 2)})
    write_table(str(tmp_path / "v.parquet"), table, {"schema_version": 99})
    with pytest.raises(UserError, match="newer version"):
        read_table(str(tmp_path / "v.parquet"))
    with pytest.raises(MissingFile):
        bag_to_parquet(str(tmp_path / "none.h5"))
