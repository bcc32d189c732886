"""The reader: the archive's own pixels, resized as Pillow would, every patch once a pass, and honest about damage."""

import io
import pickle
import struct
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from adios.data import PatchReader, Undecodable, bicubic, decode_patch
from adios.patches.index import archives_of
from adios.patches.index_writer import index_patches
from adios.plan import build_plan
from pathray.data.order import rng, uniform_order
from pathray.data.share import Lookup, rank_rows
from pathray.data.stream import DecodeSettings
from pathray.data.stream import stream_batches as stream
from pathray.errors import UnreadableUnit, UserError
from tests.builders.zips import SIZE, encoded, patch_name, picture, write_folder, write_zip


def planned(folder, source=None):
    root, archives = archives_of(str(source or folder / "zips"))
    index = str(folder / "i.parquet")
    index_patches(root, archives, index, max_corrupt_fraction=0.0)
    return build_plan(index, str(folder / "plan"), patch_size=SIZE)


def unit(plan, row=0):
    return {name: values[0] for name, values in plan.take([row]).items()}


def one(folder, data, name=None):
    """The plan of one archive with one member."""
    write_zip(folder / "zips/a.zip", {name or patch_name(1): data})
    return planned(folder)


def reason_of(plan, row=0):
    with pytest.raises(UnreadableUnit) as caught:
        PatchReader.of(plan, 0, size=16).read(unit(plan, row), 0, 0)
    return caught.value


def test_a_patch_is_the_archives_own_pixels(tmp_path):
    pictures = write_folder(tmp_path / "zips")
    plan = planned(tmp_path)
    reader = PatchReader.of(plan, 5, size=SIZE, draws=7)
    for row, ((archive, _), pixels) in enumerate(sorted(pictures.items())):
        sample = reader.read(unit(plan, row), 40 + row, 2)
        assert np.array_equal(sample["image"], pixels)
        assert plan.sources["archive"][int(sample["source"])].as_py() == archive
        assert np.array_equal(sample["draws"], rng(5, "augment", 40 + row, 2).random(7, np.float32))
    batch = reader.collate([reader.read(unit(plan, row), row, 0) for row in range(3)])
    assert (batch["image"].shape, batch["image"].dtype) == ((3, SIZE, SIZE, 3), np.uint8)
    assert (batch["draws"].shape, batch["source"].shape) == ((3, 7), (3,))


@pytest.mark.parametrize(("before", "after"), [(448, 224), (320, 224), (96, 224)])
def test_resizing_is_pillows_bicubic(before, after):
    pixels = picture("a", before)
    expected = np.asarray(Image.fromarray(pixels).resize((after, after), Image.Resampling.BICUBIC))
    found = bicubic(pixels, after)
    assert np.abs(found.astype(int) - expected).max() <= 1 and found.flags["C_CONTIGUOUS"]
    assert np.mean(found != expected) < 0.05


def test_every_format_of_pixels_becomes_rgb():
    pixels = picture("a")
    assert np.array_equal(decode_patch(encoded(pixels), SIZE), pixels)
    assert np.array_equal(decode_patch(memoryview(encoded(pixels)), SIZE), pixels)
    grey = pixels[..., 0]
    assert np.array_equal(decode_patch(encoded(grey), SIZE), np.repeat(grey[..., None], 3, axis=2))
    jpeg = encoded(pixels, "jpeg", quality=95)
    assert np.array_equal(decode_patch(jpeg, SIZE), np.asarray(Image.open(io.BytesIO(jpeg))))
    palette = Image.fromarray(pixels).quantize(16)
    file = io.BytesIO()
    palette.save(file, "png")
    assert np.array_equal(decode_patch(file.getvalue(), SIZE), np.asarray(palette.convert("RGB")))


def test_transparent_parts_become_white():
    alpha = np.full((SIZE, SIZE, 1), 255, np.uint8)
    alpha[:8], alpha[8:16] = 0, 100
    pixels = picture("a")
    expected = np.floor(pixels * (alpha / 255) + 255 * (1 - alpha / 255) + 0.5).astype(np.uint8)
    assert np.array_equal(decode_patch(encoded(np.concatenate([pixels, alpha], axis=2)), SIZE), expected)
    grey = np.concatenate([pixels[..., :1], alpha], axis=2)
    assert np.array_equal(decode_patch(encoded(grey), SIZE), np.repeat(expected[..., :1], 3, axis=2))


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("left", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_image_in_a_good_archive_is_not_accepted(tmp_path, kind, left):
    data = encoded(picture("a"), kind)
    plan = one(tmp_path, data[: int(left * len(data))])
    assert reason_of(plan).reason == "decode"


def test_a_png_cut_and_closed_again_is_not_accepted():
    data = encoded(picture("a"))
    at = data.index(b"IDAT") - 4
    length = struct.unpack(">I", data[at : at + 4])[0] // 2
    chunk = data[at + 4 : at + 8 + length]
    end = data[data.index(b"IEND") - 4 :]
    shorter = data[:at] + struct.pack(">I", length) + chunk + struct.pack(">I", zlib.crc32(chunk)) + end
    with pytest.raises(Undecodable):
        decode_patch(shorter, SIZE)


@pytest.mark.parametrize("data", [b"no image", encoded(picture("a"), "bmp"), encoded(picture("a"), "tiff")])
def test_what_is_neither_png_nor_jpeg_is_undecodable(tmp_path, data):
    found = reason_of(one(tmp_path, data))
    assert found.reason == "decode" and found.path == f"{tmp_path}/zips/a.zip!{patch_name(1)}"


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_an_image_of_another_size_than_its_name_says_is_refused(tmp_path, kind):
    found = reason_of(one(tmp_path, encoded(picture("a", 40), kind)))
    assert (found.reason, found.detail) == ("shape", "40 x 40 pixels, expected 32 x 32")


def png(side, rows, interlaced=0):
    """A PNG put together by hand: `rows` with their filter bytes."""
    head = struct.pack(">II5B", side, side, 8, 2, 0, 0, interlaced)
    chunks = [b"IHDR" + head, b"IDAT" + zlib.compress(rows), b"IEND"]
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_an_interlaced_png_is_read(capfd):
    pixels = picture("a")
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b"".join(b"\0" + row.tobytes() for x, y, dx, dy in passes for row in pixels[y::dy, x::dx])
    assert np.array_equal(decode_patch(png(SIZE, rows, interlaced=1), SIZE), pixels)
    assert capfd.readouterr().err == ""  # libpng warns of each


def test_an_image_that_would_become_huge_is_refused_by_its_head():
    with pytest.raises(Undecodable) as caught:
        decode_patch(png(60000, b""), SIZE)
    assert caught.value.reason == "shape"


def test_sixteen_bit_pixels_are_refused():
    with pytest.raises(Undecodable, match="8-bit"):
        decode_patch(encoded(np.zeros((SIZE, SIZE), np.uint16)), SIZE)


def damage(path, at, value=b"\xff\xfe\xfd"):
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_patch_comes_exactly_once_a_pass_whatever_the_number_of_workers(tmp_path, world):
    pictures = write_folder(tmp_path / "zips")
    plan = planned(tmp_path)
    reader, lookup = PatchReader.of(plan, 3, size=SIZE), Lookup(plan, uniform_order(plan.rows, 3))
    known = {pixels.tobytes(): key for key, pixels in pictures.items()}
    passes = []
    for start in (0, plan.rows):
        seen = Counter()
        for rank in range(world):
            rows = rank_rows(lookup, start, start + plan.rows, 6, rank, world, 6 // world)
            for batch in stream(rows, reader, lookup, DecodeSettings(threads=2)):
                seen.update(known[image.tobytes()] for image in batch["image"])
        assert seen == Counter(pictures.keys())
        passes.append(seen)
    assert len(passes) == 2


def test_a_pass_is_in_another_order_than_the_one_before_and_the_same_in_every_process(tmp_path):
    write_folder(tmp_path / "zips")
    plan = planned(tmp_path)
    order = uniform_order(plan.rows, 3)
    first, second = order.rows(np.arange(plan.rows)), order.rows(np.arange(plan.rows, 2 * plan.rows))
    assert sorted(first) == sorted(second) and not np.array_equal(first, second)
    reader = PatchReader.of(plan, 3, size=SIZE)
    travelled = pickle.loads(pickle.dumps(reader))
    with ThreadPoolExecutor(4) as pool:
        there = list(pool.map(lambda p: travelled.read(unit(plan, int(first[p])), p, 0), range(plan.rows)))
    for position, sample in enumerate(there):
        here = reader.read(unit(plan, int(first[position])), position, 0)
        assert all(np.array_equal(here[name], sample[name]) for name in here)


def test_damaged_patches_are_counted_by_reason_and_replaced_while_the_stream_goes_on(tmp_path):
    pictures = write_folder(tmp_path / "zips", archives=4)
    plan = planned(tmp_path)
    units = plan.take(np.arange(plan.rows))
    damage(tmp_path / "zips/s0.zip", int(units["offset"][2]) + 30 + len(patch_name(2)) + 60)
    (tmp_path / "zips/s1.zip").write_bytes((tmp_path / "zips/s1.zip").read_bytes()[: int(units["offset"][9]) + 40])
    (tmp_path / "zips/s3.zip").unlink()
    lookup = Lookup(plan, uniform_order(plan.rows, 0))
    rows = rank_rows(lookup, 0, plan.rows, 4, 0, 1, 4)
    batches = list(stream(rows, PatchReader.of(plan, 0, size=SIZE), lookup, DecodeSettings(threads=2)))
    assert [batch["image"].shape[0] for batch in batches] == [4] * 6
    known = {pixels.tobytes() for pixels in pictures.values()}
    assert all(image.tobytes() in known for batch in batches for image in batch["image"])
    faults = [fault for batch in batches for fault in batch["faults"]]
    first = Counter((fault.reason, fault.source) for fault in faults if fault.attempt == 0)
    assert first == {("crc", 0): 1, ("truncated", 1): 3, ("missing", 3): 6}
    assert sum(batch["corrupt"] for batch in batches) == 10
    assert {fault.row for fault in faults if fault.attempt == 0} == {2, 9, 10, 11, *range(18, 24)}


def test_a_plan_of_nothing_readable_ends_with_an_error_that_names_the_file(tmp_path):
    write_folder(tmp_path / "zips", archives=1)
    plan = planned(tmp_path)
    (tmp_path / "zips/s0.zip").unlink()
    lookup = Lookup(plan, uniform_order(plan.rows, 0))
    with pytest.raises(UserError, match=r"s0\.zip"):
        list(stream(rank_rows(lookup, 0, 2, 2, 0, 1, 2), PatchReader.of(plan, 0), lookup))


def test_an_archive_that_was_replaced_since_it_was_indexed_is_noticed(tmp_path):
    write_folder(tmp_path / "zips", archives=1)
    plan = planned(tmp_path)
    others = {patch_name(i): encoded(picture(f"another {i}")) for i in range(6)}
    write_zip(tmp_path / "zips/s0.zip", others)
    reasons = {reason_of(plan, row).reason for row in range(plan.rows)}
    assert reasons <= {"crc", "header", "size"}
