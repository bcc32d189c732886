"""Volumes on Google's storage: one request each, the same pixels in the same order while it fails, and after a fork."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from oct.data import VolumeReader
from oct.dicom.resample import read_volume
from oct.indexing.head import read_file_header
from oct.indexing.index_file import read_index
from oct.masks import MaskSampler
from oct.volume import Grid
from pathray.data.order import uniform_order
from pathray.data.share import Lookup, rank_rows
from pathray.data.stream import DecodeSettings, stream_batches
from pathray.errors import MissingFile, UnreachableUnit, UnreadableUnit
from pathray.wsi.backends import source
from pathray.wsi.backends.source import open_source, read_source
from ray_jobs import index_oct
from ray_jobs.index_oct import IndexOctConfig
from ray_jobs.shell.cli import run_job
from tests.builders.gcs import GcsServer, serve_gcs
from tests.builders.oct.opt_dicom import Scan, build_dicom
from tests.builders.oct.retina import layered_retina
from tests.builders.oct.volumes import small_config, write_plan

GRID = Grid((4, 16, 16), (0.05, 0.02, 0.02))
VOLUMES = 24


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsServer]:
    with serve_gcs(monkeypatch, round_trip_s=0.005) as server:
        yield server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """gcsfs tries again at once."""

    async def at_once(seconds: float) -> None:
        """No pause."""

    class Clock:
        sleep = staticmethod(at_once)

    monkeypatch.setattr("gcsfs.retry.asyncio", Clock)


def volumes(count: int = VOLUMES) -> list[bytes]:
    return [build_dicom(np.roll(layered_retina(3, 24, 32), n, 2), Scan()) for n in range(count)]


def test_a_volume_is_one_request(gcs: GcsServer) -> None:
    url = gcs.put("oct/a.dcm", volumes(1)[0])
    read_volume(url, GRID)
    assert [(a.kind, a.name, a.status) for a in gcs.asked] == [("read", "oct/a.dcm", 200)]


def reader(paths: list[str]) -> VolumeReader:
    config = small_config()
    return VolumeReader(0, paths, ["1"] * len(paths), [(None,) * 3] * len(paths), GRID, MaskSampler.of(config), 4)


def test_the_same_volumes_come_in_the_same_order_while_a_tenth_fails(
    gcs: GcsServer, quick: None, tmp_path: Path
) -> None:
    """Through the stream's own threads, as training reads; the draws and masks are of the position, too."""
    contents, local, urls = volumes(), [], []
    for n, content in enumerate(contents):
        (tmp_path / f"{n}.dcm").write_bytes(content)
        local.append(str(tmp_path / f"{n}.dcm"))
        urls.append(gcs.put(f"oct/{n}.dcm", content))
    gcs.failing = 0.1
    lookup = Lookup(write_plan(tmp_path / "plan", rows=VOLUMES, held_out=0), uniform_order(VOLUMES, seed=3))
    near, far = (
        list(stream_batches(rank_rows(lookup, 0, VOLUMES, 4, 0, 1, 4), reader(paths), lookup, DecodeSettings(4, 3)))
        for paths in (local, urls)
    )
    failed = sum(a.status in (503, 429) for a in gcs.asked)
    assert failed > 0 and gcs.count("read") == VOLUMES
    assert [batch["position"].tolist() for batch in far] == np.arange(VOLUMES).reshape(-1, 4).tolist()
    assert sum(batch["corrupt"] for batch in far) == 0
    for one, other in zip(near, far, strict=True):
        for name in ("position", "image", "inside", "draws", "context_0", "target_0"):
            np.testing.assert_array_equal(one[name], other[name])
    assert len({batch["image"].tobytes() for batch in far}) == VOLUMES // 4


def test_a_size_mismatch_is_read_again(gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As gcsfs's checker raises it, and as a response that is too short shows it."""
    url = gcs.put("a", bytes(1000))
    kind, calls = fsspec.get_filesystem_class("gs"), []
    real = kind.cat_file

    def fails(self, path, **more):  # type: ignore[no-untyped-def]
        calls.append(more)
        if len(calls) == 1:
            raise AssertionError("Size mismatch")
        content = real(self, path, **more)
        return content[:-1] if len(calls) == 3 else content

    monkeypatch.setattr(kind, "cat_file", fails)
    assert read_source(url) == bytes(1000) and len(calls) == 2
    assert open_source(url).read_many([(0, 1000)]) == [bytes(1000)] and len(calls) == 4


def test_pauses_are_drawn_anew_for_every_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("pathray.wsi.backends.source.time.sleep", pauses.append)

    def fail() -> None:
        raise ConnectionError("503")

    for _ in range(20):
        with contextlib.suppress(UnreachableUnit):
            source.retry_request("gs://b/a", fail)
    first = pauses[::2]
    assert len(set(first)) == 20 and 0.05 <= min(first) < max(first) <= 0.15


def test_an_object_that_is_not_there_is_missing(gcs: GcsServer) -> None:
    with pytest.raises(MissingFile, match="gs://scans/none"):
        read_source("gs://scans/none")
    with pytest.raises(UnreadableUnit, match="missing"):
        read_volume("gs://scans/none", GRID)


def test_a_forked_child_reads_within_ten_seconds(gcs: GcsServer) -> None:
    """gcsfs's loop and connections are its parent's; a child that used them would wait for ever."""
    url = gcs.put("oct/a.dcm", volumes(1)[0])
    before = read_volume(url, GRID)[0].image
    opened = open_source(url)
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            again = read_volume(url, GRID)[0].image
            same = np.array_equal(again, before) and opened.read_many([(0, 4)]) == [b"\0" * 4]
            os.write(into, b"same" if same else b"other")
        os._exit(0)
    os.close(into)
    ready, _, _ = select.select([out], [], [], 10)
    answer = os.read(out, 10) if ready else b"nothing within ten seconds"
    os.close(out)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, 9)
    os.waitpid(child, 0)
    assert answer == b"same"
    np.testing.assert_array_equal(read_volume(url, GRID)[0].image, before)


def test_a_header_is_read_by_its_first_bytes(gcs: GcsServer) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 512, 1024), np.uint8)
    content = build_dicom(noise, Scan())
    header, size = read_file_header(gcs.put("a.dcm", content), (None, None, None))
    assert (header.frames, size) == (8, len(content))
    assert sum(a.sent for a in gcs.asked if a.kind == "read") == 1 << 18 < len(content) / 10


def test_a_bucket_is_indexed(gcs: GcsServer, monkeypatch: pytest.MonkeyPatch, quick: None, tmp_path: Path) -> None:
    monkeypatch.setattr(index_oct, "ray_session", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("ray_jobs.extract.ordered_map.is_ray_running", lambda: False)
    for n, content in enumerate(volumes(4)):
        gcs.put(f"oct/structural_oct/topcon_triton/{n}/a.dcm", content.replace(b".498.9.1\0", b".498.9.%d\0" % (n + 2)))
    gcs.put("oct/structural_oct/topcon_triton/9/a.dcm", b"no DICOM")
    gcs.failing = 0.1
    words = ("root=gs://scans/oct", f"output={tmp_path}/i.parquet", "max_unreadable_fraction=0.3")
    run = lambda: run_job(index_oct.main, IndexOctConfig, words, index_oct.CONFIGS_DIR)  # noqa: E731
    assert run() == 0
    rows = read_index(f"{tmp_path}/i.parquet").table.to_pylist()
    assert [row["exclusion"] for row in rows] == ["", "", "", "", "unreadable"]
    assert read_index(f"{tmp_path}/i.parquet").root == "gs://scans/oct"
    begin = len(gcs.asked)
    assert run() == 0 and gcs.count("read", "oct/structural_oct/topcon_triton/0", begin) == 0
