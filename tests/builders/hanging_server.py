"""A local web server of one file, with ranges, that can stop answering: a read that hangs, as storage does."""

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class HangingServer:
    """Serves `file` at `url`; once `hang` is called, requests get no answer until the server is closed; `asked` counts
    those."""

    def __init__(self, file: Path) -> None:
        self.asked, server = 0, self
        data, self._hangs, self._closed = file.read_bytes(), threading.Event(), threading.Event()
        hangs, closed = self._hangs, self._closed

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(200, {"Content-Length": str(len(data)), "Accept-Ranges": "bytes"})

            def do_GET(self) -> None:
                found = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                first, last = (int(found[1]), int(found[2] or len(data) - 1)) if found else (0, len(data) - 1)
                body = data[first : last + 1]
                span = f"bytes {first}-{first + len(body) - 1}/{len(data)}"
                if self._answer(206 if found else 200, {"Content-Length": str(len(body)), "Content-Range": span}):
                    self.wfile.write(body)

            def _answer(self, status: int, headers: dict[str, str]) -> bool:
                if hangs.is_set():
                    server.asked += 1
                    closed.wait(300)
                    return False
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                return True

            def log_message(self, *_: object) -> None:
                return None

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/{file.name}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def hang(self) -> None:
        self._hangs.set()

    def close(self) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def hanging_server(file: Path) -> Iterator[HangingServer]:
    server = HangingServer(file)
    try:
        yield server
    finally:
        server.close()
