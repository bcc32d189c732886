"""An object store on a folder, for tests across processes: no rename, no append, an object is there when it is whole.

``bucket://…`` lies under BUCKET_ROOT, one file per object. `make_known` leads every process whose PYTHONPATH holds
its folder to it through fsspec's entry points, as an installed gcsfs or s3fs is found. The second object whose key
matches the pattern BUCKET_HANGS, where it is set, is never finished, and a file `hangs` beside the objects says so.
While a file `away` lies beside the objects, nothing can be reached; an `Outage` does that to this process from a
chosen call on. An object may be made on condition that there is
none, as in GCS and S3, unless BUCKET_WITHOUT_CONDITIONS is set.
"""

from __future__ import annotations

import io
import os
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, unquote

from fsspec import AbstractFileSystem

OBJECTS = "objects"


def make_known(folder: Path) -> Path:
    """A folder for PYTHONPATH that makes ``bucket://`` known to fsspec."""
    about = folder / "bucket-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: bucket\nVersion: 0\n")
    (about / "entry_points.txt").write_text("[fsspec.specs]\nbucket = tests.builders.bucket:BucketFileSystem\n")
    return folder


class HttpError(Exception):
    """A failed request as gcsfs tells of it: no OSError."""


@dataclass
class Outage:
    """Every call fails for `seconds`, from the first one of `operation` (write, read, look, list, remove) on a key that
    matches `pattern`, but for the first `spared` of them. `errors` are raised in turn."""

    operation: str
    pattern: str
    seconds: float
    spared: int = 0
    errors: tuple[type[Exception], ...] = (HttpError, ConnectionError, OSError)
    began: float | None = None
    refused: list[tuple[str, str]] = field(default_factory=list)

    def meet(self, operation: str, key: str) -> None:
        if self.began is None and operation == self.operation and fnmatch(key, self.pattern):
            self.spared -= 1
            self.began = time.monotonic() if self.spared < 0 else None
        if self.began is not None and time.monotonic() - self.began < self.seconds:
            self.refused.append((operation, key))
            raise self.errors[len(self.refused) % len(self.errors)]("503: the service is unavailable")


class BucketFileSystem(AbstractFileSystem):
    protocol, cachable = "bucket", False
    outage: ClassVar[Outage | None] = None

    def _call(self, operation: str, key: str) -> None:
        if self.outage is not None:
            self.outage.meet(operation, key)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        key = self._strip_protocol(path)
        self._call("write", key)
        if mode != "create" or "BUCKET_WITHOUT_CONDITIONS" in os.environ:
            super().pipe_file(key, value, mode)
            return
        partial = _reachable() / f".{uuid.uuid4().hex}"
        partial.write_bytes(value)
        try:
            os.link(partial, _file(key))
        finally:
            partial.unlink()

    def ls(self, path: str, detail: bool = True, **more: Any) -> list[Any]:
        path = self._strip_protocol(path)
        self._call("list", path)
        found: dict[str, dict[str, Any]] = {}
        for key in self._keys():
            if key == path:
                found[key] = self._about(key)
            elif key.startswith(f"{path}/" if path else ""):
                child = key[: key.find("/", len(path) + 1)] if "/" in key[len(path) + 1 :] else key
                found[child] = self._about(key) if child == key else {"name": child, "size": 0, "type": "directory"}
        if not found:
            raise FileNotFoundError(path)
        return [found[name] for name in sorted(found)] if detail else sorted(found)

    def info(self, path: str, **more: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        self._call("look", path)
        if _file(path).exists():
            return self._about(path)
        if any(key.startswith(f"{path}/") for key in self._keys()):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def modified(self, path: str) -> datetime:
        path = self._strip_protocol(path)
        self._call("look", path)
        if not _file(path).exists():
            raise FileNotFoundError(path)
        return datetime.fromtimestamp(_file(path).stat().st_mtime, UTC)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        path = self._strip_protocol(path)
        self._call("remove", path)
        for key in self._keys():
            if key == path or (recursive and key.startswith(f"{path}/")):
                _file(key).unlink()

    def mv(self, *args: Any, **more: Any) -> None:
        raise AssertionError("an object store has no rename")

    def _open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        assert mode in ("rb", "wb"), f"an object store has no {mode}"
        self._call("read" if mode == "rb" else "write", path)
        _reachable()
        return open(_file(path), "rb") if mode == "rb" else _Upload(path)

    def _keys(self) -> list[str]:
        return [unquote(p.name) for p in _reachable().glob("[!.]*")]

    def _about(self, key: str) -> dict[str, Any]:
        stat = _file(key).stat()
        return {"name": key, "size": stat.st_size, "type": "file", "mtime": stat.st_mtime_ns, "ETag": str(stat.st_ino)}


class _Upload(io.BytesIO):
    """Becomes the object when it is closed."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def close(self) -> None:
        if not self.closed:
            pattern = os.environ.get("BUCKET_HANGS", "")
            if fnmatch(self.key, pattern) and any(fnmatch(unquote(p.name), pattern) for p in _root().iterdir()):
                (_root().parent / "hangs").touch()
                time.sleep(3600)
            partial = _reachable() / f".{uuid.uuid4().hex}"
            partial.write_bytes(self.getvalue())
            os.replace(partial, _file(self.key))
        super().close()


def away() -> Path:
    """While this file is there, the bucket is out of reach."""
    return _root().parent / "away"


def _reachable() -> Path:
    if away().exists():
        raise OSError("503: the service is unavailable")
    return _root()


def _root() -> Path:
    root = Path(os.environ["BUCKET_ROOT"]) / OBJECTS
    root.mkdir(parents=True, exist_ok=True)
    return root


def _file(key: str) -> Path:
    return _reachable() / quote(key, safe="")
