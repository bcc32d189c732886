"""Paths and URLs as texts: which is which, and how one may be logged. No storage is asked (core.storage)."""

from __future__ import annotations


def is_url(path: str) -> bool:
    return "://" in path and not path.startswith("file://")


def local_path(path: str) -> str:
    """`path` without a leading ``file://``."""
    return path.removeprefix("file://")


def public(path: str) -> str:
    """`path` as it may be logged: a URL loses its query (signatures) and user part (credentials)."""
    if not is_url(path):
        return path
    scheme, rest = path.split("?")[0].split("#")[0].split("://", 1)
    host, slash, tail = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{tail}"
