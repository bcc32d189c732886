"""Checks where Ray is or may be: an address that answers, and a folder short enough for its sockets. Starts nothing.

Ray waits for minutes for a cluster that is gone, and fails with a trace if its socket paths are too long. Both are
detected here in seconds, with an error that names the variable or key to change.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import stat
import uuid
from pathlib import Path

from pathray.errors import UserError

log = logging.getLogger(__name__)
PROBE_S = 5.0
LONGEST_SOCKET = 107
BELOW = len("/ray/session_2025-01-01_00-00-00_000000_1234567/sockets/plasma_store.1")  # of a temporary folder
SHORT = "/tmp"


def check_address(address: str, key: str) -> None:
    """UserError if nothing accepts connections at `address`, or if it belongs to another service. It was set by `key`.

    `auto` and addresses of unknown forms are left to Ray.
    """
    expected = f"host:6379 of a running head, or local; unset {key} or set it"
    if address.startswith(("http://", "https://")):
        message = "this is the address of Ray's jobs API (for `ray job submit`), not of a cluster"
        raise UserError(message, key=key, found=address, expected=expected)
    found = re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+?)\]?:(\d+)/?", address)
    if found is None:
        return
    host, port = found.group(1), int(found.group(2))
    try:
        socket.create_connection((host, port), timeout=PROBE_S).close()
    except (OSError, OverflowError, UnicodeError) as e:
        raise UserError(f"no Ray cluster answers: {e}", key=key, found=address, expected=expected) from e


def default_folder() -> str:
    """The parent of Ray's default folder `ray`."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or SHORT


def temporary_folder() -> str | None:
    """The folder for an embedded Ray's session; None for Ray's default.

    A short private folder replaces a TMPDIR that is too long or not writable, and a RAY_TMPDIR that is too long.
    UserError, naming the variable, for a RAY_TMPDIR that is not writable, or if no short folder can be used.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    folder = os.environ[name] if name else SHORT
    too_long = len(os.fsencode(os.path.abspath(folder))) + BELOW > LONGEST_SOCKET
    trouble = _trouble(folder) if name == "RAY_TMPDIR" or not too_long else None
    if not too_long and trouble is None:
        return None
    what = trouble or f"too long for Ray's sockets: at most {LONGEST_SOCKET - BELOW} characters"
    own = f"{SHORT}/ray-{os.getuid()}"
    usable = folder != SHORT and not (name == "RAY_TMPDIR" and trouble) and _is_own(own)
    if not usable:
        expected = f"a writable folder of at most {LONGEST_SOCKET - BELOW} characters, such as RAY_TMPDIR=/tmp/me"
        raise UserError(
            f"Ray cannot use its temporary folder: {what}", key=name or "RAY_TMPDIR", found=folder, expected=expected
        )
    log.warning("%s=%s: %s; Ray uses %s. Set RAY_TMPDIR to a short folder of your choice", name, folder, what, own)
    return own


def _trouble(folder: str) -> str | None:
    """Why a folder cannot be written, or None; creates the folder if it is missing."""
    probe = Path(folder) / f".pathray-{uuid.uuid4().hex[:8]}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as e:
        return e.strerror or str(e)
    return None


def _is_own(folder: str) -> bool:
    """Whether a folder is, or can be created as, one that only this user can write to."""
    try:
        Path(folder).mkdir(mode=0o700, exist_ok=True)
        found = os.lstat(folder)
    except OSError:
        return False
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o022
    return private and _trouble(folder) is None
