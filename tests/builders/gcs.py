"""Google Cloud Storage on this machine: gcp-storage-emulator behind a server that is slow, fails and counts on demand.

`GcsServer` serves in threads of this process; gcsfs finds it through STORAGE_EMULATOR_HOST, here and in processes that
inherit the environment. Faults are drawn by request number, so that a run can be repeated. Not here: the storage
itself, which is the emulator's.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler, Router
from gcp_storage_emulator.storage import Storage

os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # as pathray.store.file_systems does
BUCKET = "scans"
HOST, TOKEN = "STORAGE_EMULATOR_HOST", "FSSPEC_GS_TOKEN"


@dataclass
class Asked:
    """A request. kind: read (of content), look (metadata or list), write, or remove."""

    kind: str
    name: str
    sent: int = 0
    status: int = 0


@dataclass
class GcsServer:
    """`round_trip_s` is waited before each answer; a share `failing` of requests is answered 503 or 429."""

    round_trip_s: float = 0.0
    failing: float = 0.0
    asked: list[Asked] = field(default_factory=list)
    written: list[str] = field(default_factory=list)  # the names of objects, each time one becomes whole
    seed: int = 2

    def __post_init__(self) -> None:
        self.storage = Storage(use_memory_fs=True)
        self.storage._write_config_to_file = lambda: None  # all metadata of all objects after each write
        buckets.create_bucket(BUCKET, self.storage)
        self._create, self.storage.create_file = self.storage.create_file, self._create_file
        self.lock, self._chance = threading.Lock(), random.Random(self.seed)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def _create_file(self, bucket: str, name: str, *content: Any) -> None:
        self._create(bucket, name, *content)
        self.written.append(name)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def put(self, name: str, content: bytes) -> str:
        """Store an object without a request; its gs:// URL."""
        from gcp_storage_emulator.handlers.objects import _checksums, _make_object_resource

        about = _make_object_resource("", BUCKET, name, "application/octet-stream", str(len(content)))
        self.storage.create_file(BUCKET, name, content, _checksums(content, about))
        return f"gs://{BUCKET}/{name}"

    def get(self, name: str) -> bytes:
        return bytes(self.storage.get_file(BUCKET, name))

    def names(self) -> list[str]:
        return sorted(self.storage.objects.get(BUCKET, {}))

    def count(self, kind: str, name: str = "", since: int = 0) -> int:
        """How many requests of this kind were answered without a fault, of objects whose name begins with `name`."""
        return sum(a.kind == kind and a.name.startswith(name) and a.status < 400 for a in self.asked[since:])

    def fault(self) -> int:
        """The status that a request fails with, or 0."""
        with self.lock:
            return self._chance.choice((503, 429)) if self._chance.random() < self.failing else 0


class _Handler(RequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept, as Google's are
    disable_nagle_algorithm = True
    wbufsize = 1 << 16  # headers and a small body in one packet

    def __init__(self, gcs: GcsServer, *args: Any) -> None:
        self.gcs, self.one = gcs, Asked("look", "")
        super().__init__(gcs.storage, *args)

    def answer(self) -> None:
        gcs = self.gcs
        self.one = Asked(*_kind(self.command, self.path))
        with gcs.lock:
            gcs.asked.append(self.one)  # before the answer, which a test may have before this thread runs again
        time.sleep(gcs.round_trip_s)
        if status := gcs.fault():
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._refuse(status)
        elif self.command == "DELETE" and "upload_id=" in self.path:
            self._refuse(499)  # an upload is cancelled, which the emulator does not know
        elif self.command == "GET":  # side by side, as Google answers them
            Router(self).handle(self.command)
        else:
            with gcs.lock:
                Router(self).handle(self.command)
        self.wfile.flush()

    def _refuse(self, status: int) -> None:
        body = json.dumps({"error": {"code": status, "message": "try again"}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer  # noqa: N815 - the names that http.server asks for

    def log_message(self, format: str, *args: Any) -> None:
        """`asked` says it."""

    def send_response(self, code: int, message: str | None = None) -> None:
        self.one.status = int(code)
        super().send_response(code, message)

    def send_header(self, keyword: str, value: str) -> None:
        if keyword == "Content-Length" and self.one.kind == "read" and self.one.status < 400:
            self.one.sent = int(value)
        super().send_header(keyword, value)


def _kind(method: str, target: str) -> tuple[str, str]:
    path = urlparse(target)
    name = unquote(path.path.partition("/o/")[2]) or unquote(path.query.partition("name=")[2].partition("&")[0])
    if method == "GET":
        return ("read" if "alt=media" in path.query else "look"), name
    return {"DELETE": "remove"}.get(method, "write"), name


@contextmanager
def serve_gcs(patch: Any, **options: Any) -> Iterator[GcsServer]:
    """A running server that ``gs://`` of this process and of its children leads to. `patch` is pytest's monkeypatch."""
    import fsspec
    from fsspec.config import conf

    server = GcsServer(**options)
    patch.setenv(HOST, server.url)
    patch.setenv(TOKEN, "anon")  # for children: fsspec reads it when it is imported
    for protocol in ("gs", "gcs"):
        patch.setitem(conf, protocol, {"token": "anon"})
    server.start()
    try:
        yield server
    finally:
        server.stop()
        fsspec.get_filesystem_class("gs").clear_instance_cache()
