"""Slides behind URLs, through an in-memory file system and a local web server that knows ranges."""

import errno
import http.server
import os
import re
import threading
import traceback

import fsspec
import numpy as np
import pytest

from pathray.errors import MissingFile, UnreachableUnit, UnreadableUnit, UserError
from pathray.features.images import read_image
from pathray.store.storage import file_state
from pathray.urls import is_url, public
from pathray.wsi.backends.source import RemoteFile, open_source
from pathray.wsi.handles import HandleCache
from pathray.wsi.reader import open_mask, open_slide
from tests.builders.slides import truncate_tile, write_mask, write_slide


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return write_slide(tmp_path_factory.mktemp("remote") / "slide.svs", kind="svs", width=1500, height=1300)


@pytest.fixture
def in_memory(slide):
    fsspec.filesystem("memory").pipe("/bucket/slide.svs", slide.read_bytes())
    return "memory://bucket/slide.svs"


class RangeServer(http.server.BaseHTTPRequestHandler):
    """Serves one file; keeps the ranges that were asked for."""

    data, asked = b"", []

    def do_HEAD(self):
        found = self.path.startswith("/slide.svs")
        self._answer(200 if found else 404, {"Content-Length": str(len(self.data)), "Accept-Ranges": "bytes"})

    def do_GET(self):
        if not self.path.startswith("/slide.svs"):
            return self._answer(404, {"Content-Length": "0"})
        found = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(found[1]), int(found[2] or len(self.data) - 1)) if found else (0, len(self.data) - 1)
        body = self.data[first : last + 1]
        self.asked.append((first, len(body)))
        head = {"Content-Length": str(len(body)), "Content-Range": f"bytes {first}-{last}/{len(self.data)}"}
        self._answer(206 if found else 200, head)
        self.wfile.write(body)

    def _answer(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        return None


@pytest.fixture
def server(slide):
    RangeServer.data, RangeServer.asked = slide.read_bytes(), []
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), RangeServer)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}/slide.svs?token=secret"
    httpd.shutdown()
    httpd.server_close()


def test_a_remote_slide_equals_the_local_one(slide, in_memory):
    local, remote = open_slide(str(slide)), open_slide(in_memory)
    assert remote.backend == "tiff" and remote.level_shapes == local.level_shapes and remote.mpp == local.mpp
    for level, box in [(0, (300, 200, 600, 500)), (0, (512, 512, 256, 256)), (2, (-5, -5, 300, 300))]:
        np.testing.assert_array_equal(remote.read_level(level, *box), local.read_level(level, *box))


def test_over_http_only_the_ranges_of_the_tiles_are_asked_for(slide, server):
    remote = open_slide(server)
    RangeServer.asked.clear()
    pixels = remote.read_level(0, 300, 300, 400, 400)  # 2 × 2 tiles
    np.testing.assert_array_equal(pixels, open_slide(str(slide)).read_level(0, 300, 300, 400, 400))
    assert 1 <= len(RangeServer.asked) <= 4
    assert sum(n for _, n in RangeServer.asked) < len(RangeServer.data) / 3


def test_a_remote_slide_opened_before_a_fork_reads_in_the_child(slide, server):
    remote, expected = open_slide(server), open_slide(str(slide)).read_level(0, 300, 300, 400, 400)
    remote.read_level(0, 0, 0, 10, 10)
    child = os.fork()
    if child == 0:
        good = np.array_equal(remote.read_level(0, 300, 300, 400, 400), expected)
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(remote.read_level(0, 300, 300, 400, 400), expected)


def test_no_signature_or_credential_shows_in_an_error(server):
    with pytest.raises(MissingFile) as e:
        open_slide(server.replace("slide.svs", "other.svs"))
    assert "other.svs" in str(e.value)
    assert "secret" not in "".join(traceback.format_exception(e.value))
    assert public("s3://key:pass@host/b/x.svs?X-Amz-Signature=abc#f") == "s3://host/b/x.svs"
    assert public("/data/a?b@c.svs") == "/data/a?b@c.svs"


def test_a_remote_object_that_goes_away_is_missing(in_memory):
    remote = open_slide(in_memory)
    fsspec.filesystem("memory").rm("/bucket/slide.svs")
    with pytest.raises(UnreadableUnit) as e:
        remote.read_level(0, 0, 0, 300, 300)
    assert e.value.reason == "missing"


def test_a_remote_read_that_times_out_or_fails_says_which(in_memory, monkeypatch):
    remote = open_slide(in_memory)
    for error, reason in ((TimeoutError(), "timeout"), (ConnectionResetError("gone"), "io")):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(type(remote._source._fs), "cat_file", fail)
        with pytest.raises(UnreadableUnit) as e:
            remote.read_level(0, 0, 0, 256, 256)
        assert e.value.reason == reason


class Refused(Exception):
    """A failed request as gcsfs and aiohttp tell of it."""

    def __init__(self, status):
        super().__init__(f"status {status}")
        self.status = self.code = status


NO_CONNECTION = TimeoutError(errno.ETIMEDOUT, "connect")
PASSING = [ConnectionError("gone"), OSError("503"), NO_CONNECTION, Refused(503), Refused(429)]
FORBIDDEN = [PermissionError("no"), OSError("Forbidden: no"), Refused(403)]
FINAL = [*FORBIDDEN, TimeoutError(), Refused(416), FileNotFoundError()]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_a_request_that_fails_for_a_moment_is_tried_again_and_then_storage_is_away(in_memory, monkeypatch, error):
    remote, left = open_slide(in_memory), [error, error]
    whole, expected = type(remote._source._fs).cat_file, remote.read_level(0, 0, 0, 256, 256)

    def fail(*args, **more):
        if left:
            raise left.pop()
        return whole(*args, **more)

    monkeypatch.setattr(type(remote._source._fs), "cat_file", fail)
    assert np.array_equal(open_slide(in_memory).read_level(0, 0, 0, 256, 256), expected) and not left
    left += [error] * 3
    with pytest.raises(UnreachableUnit) as e:
        remote.read_level(0, 256, 0, 256, 256)
    assert e.value.path == in_memory and not left


@pytest.mark.parametrize("error", FINAL, ids=repr)
def test_a_refusal_that_no_later_try_can_mend_is_a_fault_at_once(in_memory, monkeypatch, error):
    remote, tries = open_slide(in_memory), []

    def fail(*args, **more):
        tries.append(1)
        raise error

    monkeypatch.setattr(type(remote._source._fs), "cat_file", fail)
    with pytest.raises(UnreadableUnit) as e:
        remote.read_level(0, 0, 0, 256, 256)
    assert not isinstance(e.value, UnreachableUnit) and len(tries) == 1


@pytest.mark.parametrize("call", ["info", "cat_file", "_open"])
def test_a_slide_whose_storage_is_away_is_neither_damaged_nor_unsupported(in_memory, monkeypatch, call):
    def fail(*args, **more):
        raise ConnectionError("503")

    state = file_state(in_memory)
    monkeypatch.setattr(type(fsspec.filesystem("memory")), call, fail)
    for opened in (open_slide, lambda path: HandleCache().get(path, state)):
        with pytest.raises(UnreachableUnit):
            opened(in_memory)


def test_a_truncated_tile_is_found_remotely_too(slide, tmp_path):
    copy = tmp_path / "cut.svs"
    copy.write_bytes(slide.read_bytes())
    truncate_tile(copy, 0, 0)
    fsspec.filesystem("memory").pipe("/bucket/cut.svs", copy.read_bytes())
    with pytest.raises(UnreadableUnit, match="tile 0"):
        open_slide("memory://bucket/cut.svs").read_level(0, 0, 0, 300, 300)


def test_masks_can_be_remote(tmp_path):
    drawn = np.eye(300, dtype=np.uint8)
    for name in ("m.tif", "m.png"):
        fsspec.filesystem("memory").pipe(f"/bucket/{name}", write_mask(tmp_path / name, drawn).read_bytes())
        mask = open_mask(f"memory://bucket/{name}")
        np.testing.assert_array_equal(mask.read_level(0, 0, 0, 300, 300), drawn)


def test_unknown_schemes_are_the_users_fault():
    with pytest.raises(UserError, match="nosuch"):
        open_source("nosuch://bucket/a.svs")


def test_file_urls_are_local(slide):
    assert not is_url(f"file://{slide}") and is_url("gs://b/x.svs")
    assert open_slide(f"file://{slide}").level_shapes[0] == (1500, 1300)


def test_ranges_past_the_end_come_back_short(slide, in_memory):
    size = len(slide.read_bytes())
    for source in (open_source(str(slide)), RemoteFile(in_memory)):
        assert source.size == size
        assert [len(d) for d in source.read_many([(size - 5, 10), (0, 7)])] == [5, 7]


@pytest.mark.parametrize("name", ["slide.svs", "mask.png", "image.png"])
def test_a_pipe_among_the_files_is_refused_and_waits_for_nobody(tmp_path, name):
    path = str(tmp_path / name)
    os.mkfifo(path)
    for opened in (open_source, open_slide, open_mask, read_image):
        with pytest.raises(UserError, match=r"not a regular file.*pipe"):
            opened(path)


def test_an_olympus_file_is_refused_by_name_because_it_holds_only_the_overview(tmp_path):
    path = write_slide(tmp_path / "case.vsi")
    with pytest.raises(UserError, match=r"VSI \(Olympus"):
        open_slide(str(path))


def test_an_object_that_became_shorter_is_a_fault_and_not_an_outage(in_memory):
    """A training would wait for storage that is not away."""
    fs = fsspec.filesystem("memory")
    fs.pipe("/changes/a.bin", bytes(1000))
    opened = open_source("memory://changes/a.bin")
    fs.pipe("/changes/a.bin", bytes(500))
    with pytest.raises(UnreadableUnit, match="changed: 500 bytes, 1,000") as error:
        opened.read_many([(400, 300)])
    assert not isinstance(error.value, UnreachableUnit) and error.value.reason == "io"
