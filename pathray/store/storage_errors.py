"""Errors of storage: which may be temporary, and which will not pass."""

from __future__ import annotations

import errno
import os

from pathray.errors import UserError

FINAL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG))
REFUSED = "Forbidden"  # start of gcsfs's message for a missing permission, which has no errno
TRY_AGAIN = (408, 429)  # HTTP: request timeout, too many requests
MISTAKES = (TypeError, AttributeError, AssertionError, NotImplementedError)
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)


class StorageError(UserError, OSError):
    """Storage cannot be written or read: full, forbidden, or still failing after retries. The message has the path.

    `passing`: the cause may be temporary (an unreachable bucket), unlike a full disk or a missing permission.
    """

    passing = False

    @classmethod
    def temporary(cls, message: str, *, file: object, found: object | None = None) -> StorageError:
        """An error whose cause may be temporary."""
        error = cls(message, file=file, found=found)
        error.passing = True
        return error

    def __reduce__(self) -> tuple[object, ...]:
        rebuild, values = super().__reduce__()
        return rebuild, values, {"passing": self.passing}


def may_pass(e: Exception, *, local: bool = False) -> bool:
    """Whether an error of a file system may be temporary: not a full disk, not a missing file or permission, and for
    remote ones not an answer that refuses the request (HTTP 4xx) nor a mistake in it."""
    if isinstance(e, StorageError):
        return e.passing
    if isinstance(e, (*ABSENT, UserError)):
        return False
    if isinstance(e, OSError):
        if isinstance(e, PermissionError) or e.errno in FINAL or str(e).startswith(REFUSED):
            return False
    elif local or isinstance(e, MISTAKES):
        return False
    statuses = () if local else (getattr(e, name, None) for name in ("status", "code"))
    return not any(isinstance(s, int) and 400 <= s < 500 and s not in TRY_AGAIN for s in statuses)


def storage_error(e: Exception, path: str, *, writing: bool) -> StorageError:
    """An exception of the storage as a StorageError with one line that names the path."""
    number = getattr(e, "errno", None)
    what = os.strerror(number) if isinstance(number, int) else str(e) or type(e).__name__
    error = StorageError(f"cannot {'write' if writing else 'read'}: {what}", file=path)
    error.errno = number
    error.passing = isinstance(number, int) and number not in FINAL and not isinstance(e, ABSENT)
    return error
