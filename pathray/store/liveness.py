"""Identifies the process that wrote a record, and checks whether it is still alive.

A process id alone is not enough: ids are reused, and two containers may share a host name. So a record also has the
process's start time, and the machine's boot and process namespace. Without /proc (macOS) only the id is compared.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROC = Path("/proc")


def this_process() -> dict[str, Any]:
    """The record of the calling process for `is_gone`."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": machine(), "user": user(), "pid": pid, "started": start_ticks(pid)}


def is_gone(record: Mapping[str, Any]) -> bool | None:
    """Whether the process of a record has ended; None if this cannot be determined from here."""
    pid = record.get("pid")
    if record.get("host") != socket.gethostname() or not isinstance(pid, int) or pid < 1:
        return None
    if record.get("machine", machine()) != machine():
        return None  # another container, or the machine was restarted
    return not _exists(pid, record.get("started"))


def machine() -> str:
    """The machine's boot id and process namespace; "" if the system does not provide them."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink(PROC / 'self/ns/pid')}"
    except OSError:
        return ""


def start_ticks(pid: int) -> int | None:
    """A process's start time in clock ticks since boot; None if it has ended or is unknown."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])  # a zombie has ended


def user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return str(os.getuid())


def _exists(pid: int, since: Any) -> bool:
    if PROC.joinpath("self/stat").exists():
        now = start_ticks(pid)
        return now is not None and (since is None or now == since)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
