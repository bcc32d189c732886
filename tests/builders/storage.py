"""An object store in memory that fails when it is told to: no rename, no append, no directories of its own."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

Fault = Callable[[str, str], Exception | None]


class FaultyFileSystem(MemoryFileSystem):
    """``faulty://``: before each operation `fault(operation, path)` may give the error to raise. A failing write leaves
    half of its bytes behind."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    fault: ClassVar[Fault | None] = None
    calls: ClassVar[list[tuple[str, str]]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("faulty://", "memory://", 1))

    @classmethod
    def reset(cls, fault: Fault | None = None) -> None:
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.calls.clear()
        cls.fault = staticmethod(fault) if fault is not None else None

    def _may_fail(self, operation: str, path: str) -> Exception | None:
        path = self._strip_protocol(path)
        self.calls.append((operation, path))
        return self.fault(operation, path) if self.fault is not None else None

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        error = self._may_fail("write", path)
        super().pipe_file(path, value[: len(value) // 2] if error else value, mode, **more)
        if error:
            raise error

    def put_file(self, lpath: str, rpath: str, *args: Any, **more: Any) -> None:
        with open(lpath, "rb") as f:
            self.pipe_file(rpath, f.read())

    def cat_file(self, path: str, *args: Any, **more: Any) -> bytes:
        error = self._may_fail("read", path)
        if error:
            raise error
        return super().cat_file(path, *args, **more)

    def open(self, path: str, mode: str = "rb", *args: Any, **more: Any) -> Any:
        error = self._may_fail("open", path) if mode == "rb" else None
        if error:
            raise error
        return super().open(path, mode, *args, **more)

    def rm(self, path: str, *args: Any, **more: Any) -> None:
        error = self._may_fail("remove", path)
        if error:
            raise error
        super().rm(path, *args, **more)

    def modified(self, path: str) -> Any:
        error = self._may_fail("time", path)
        if error:
            raise error
        return super().modified(path)

    def mv(self, *args: Any, **more: Any) -> None:
        raise AssertionError("an object store has no rename")


def full(operation: str, path: str) -> Exception | None:
    """A disk without room."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if operation == "write" else None


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
