"""The exceptions, by cause: the user, the data or our code. Not here: logging, retries.

A user's mistake is a `UserError` (a `ValueError`) or a `MissingFile` (also a `FileNotFoundError`); a job prints it
without a stack trace and exits with code 2. Bad data is an `UnreadableUnit`: counted by reason, quarantined, replaced.
A bug is an ``assert``.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator

from pathray.urls import public_text


class UserError(ValueError):
    """Input that the user can correct. The message names the file, the row or key, what was found and what is expected.

    Logins and signatures are removed from URLs in all texts.

    >>> str(UserError("unknown key", file="run.yaml", key="data.sed", found="data.sed", expected="data.seed"))
    "unknown key (file: run.yaml; key: data.sed; found: 'data.sed'; expected: 'data.seed')"
    """

    def __init__(
        self,
        message: str,
        *,
        file: object | None = None,
        row: object | None = None,
        key: object | None = None,
        found: object | None = None,
        expected: object | None = None,
    ) -> None:
        self.message = public_text(message)
        where = {"file": file, "row": row, "key": key, "found": found, "expected": expected}
        self.where = {k: public_text(v) if isinstance(v, str) else v for k, v in where.items()}
        super().__init__(str(self))

    def __str__(self) -> str:
        quoted = {"found", "expected"}
        parts = [f"{k}: {v!r}" if k in quoted else f"{k}: {v}" for k, v in self.where.items() if v is not None]
        return public_text(f"{self.message} ({'; '.join(parts)})" if parts else self.message)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.where)


class MissingFile(UserError, FileNotFoundError):
    """A file or folder that the user specified does not exist."""


class UnreadableUnit(Exception):
    """A unit of data that cannot be decoded. It is counted and replaced, and never fatal by itself.

    `reason` is a short machine-readable word (``missing``, ``truncated``, ``decode``, ``timeout`` …).
    """

    def __init__(self, reason: str, path: str, detail: str = "") -> None:
        self.reason, self.path, self.detail = reason, public_text(path), public_text(detail)
        super().__init__(f"{reason}: {self.path}" + (f": {self.detail}" if detail else ""))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.reason, self.path, self.detail)


class UnreachableUnit(UnreadableUnit):
    """A unit whose storage cannot be reached now (reason ``io``): no fault of the unit; a later read may succeed."""

    def __init__(self, path: str, detail: str = "") -> None:
        super().__init__("io", path, detail)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.detail)


def user_error_in(error: BaseException | None) -> UserError | None:
    """The `UserError` inside `error`, through any layers of Ray's task and worker-group errors; None if there is none.

    Ray's wrapper of a UserError is itself a UserError with the remote trace as its text, so its `cause` is returned.
    """
    for e in _layers(error, set()):
        if isinstance(e, UserError):
            cause = getattr(e, "cause", None)
            return cause if isinstance(cause, UserError) else e
    return None


def explain(error: BaseException, *expected: type[BaseException]) -> str:
    """What a log says of an error that ends nothing: the text of a UserError or one of the `expected` kinds; the whole
    trace of any other, which is a mistake of ours. Logins and signatures of URLs are taken out.

    >>> explain(OSError("503"), OSError)
    '503'
    """
    if isinstance(error, (UserError, *expected)):
        return public_text(str(error) or type(error).__name__)
    return public_text("".join(traceback.format_exception(error)).rstrip())


def _layers(error: BaseException | None, seen: set[int]) -> Iterator[BaseException]:
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    inner = [error.__cause__, error.__context__, getattr(error, "cause", None)]
    failures = getattr(error, "worker_failures", None)
    inner += list(failures.values()) if isinstance(failures, dict) else []
    for e in inner:
        if isinstance(e, BaseException):
            yield from _layers(e, seen)


def _rebuild(kind: type[UserError], message: str, where: dict[str, object]) -> UserError:
    return kind(message, **where)
