"""Paths and URLs as text: telling them apart, and hiding secrets before they are logged.

Only this module decides what is secret: a URL's login and query, and in any text the value after a name such as
`password=`, `sig=` or `X-Amz-Signature=`. Errors, logs, saved configs, reports and MLflow all use `public` or
`public_text`. Not here: access to storage (pathray.store.storage).
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

_LOGIN = re.compile(  # up to the last @ of a host's part; a password may hold / ? # (but host:5000/a@b has no login)
    r"(?P<scheme>[A-Za-z][\w+.\-]*://)(?:(?!\[)(?![^\s/:@]*:\d+(?:[/?#]|$))[^\s/?#@:]*:[^\s@]*@(?:[^\s/?#@]*@)*"
    r"|[^\s/?#@:]*@)"
)
_URL = re.compile(r"[A-Za-z][\w+.\-]*://[^\s'\"<>]+")
_NAMES = (
    r"sig|signature|sas|sas_?token|password|passwd|passwort|pwd|passphrase|secret|client_?secret|secret_?key|token"
    r"|access_?token|auth_?token|api_?token|api_?key|access_?key|account_?key|private_?key|shared_?access_?key"
    r"|credentials?|authorization|AWSAccessKeyId|GoogleAccessId|X-Amz-[A-Za-z-]+|X-Goog-[A-Za-z-]+|X-Oss-[A-Za-z-]+"
    r"|aws_secret_access_key|aws_session_token|aws_access_key_id"
)
_PAIR = re.compile(rf"(?i)(?<![A-Za-z0-9])({_NAMES})(=|%3D)([^\s&;,'\")\]]+)")
_BEARER = re.compile(r"(?i)\b(Bearer|Basic)\s+[A-Za-z0-9+/=_.\-]{8,}")
_BARE_LOGIN = re.compile(r"(?<![\w/.\-])[\w.+\-]+:[^\s/@'\":]+@(?=[A-Za-z][\w\-]*[.:]|\d+\.\d+\.\d+\.\d+|localhost\b)")
_SECRET = re.compile(
    r"[?&](sig|[^=&]*(signature|token|credential|secret|password|key))="  # S3, Google, Azure and others
    r"|^\w[\w+.-]*://[^/@?#]*:(?!\d+/)[^@?#]*@|^https?://[^/?#]*@",
    re.IGNORECASE,
)
HIDDEN = "(redacted)"


def is_url(path: str) -> bool:
    return "://" in path and not path.startswith("file://")


def local_path(path: str) -> str:
    """`path` without a leading ``file://``."""
    return path.removeprefix("file://")


def holds_secret(path: str) -> bool:
    """Whether `path` is a URL with a login or a signature in it, which must not be stored.

    >>> holds_secret("https://host/a.svs?sig=x"), holds_secret("gs://bucket/a.svs"), holds_secret("/data/a?sig=x")
    (True, False, False)
    """
    return is_url(path) and _SECRET.search(path) is not None


def public(path: str) -> str:
    """`path` made safe to log: a URL without its query (signatures) and user part (credentials)."""
    if not is_url(path):
        return path
    scheme, rest = _LOGIN.sub(r"\g<scheme>", path).split("?")[0].split("#")[0].split("://", 1)
    host, slash, tail = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{tail}"


def public_text(text: str) -> str:
    """Any text made safe to log: its URLs made `public` and the values of secret names hidden.

    >>> public_text("GET https://anna:pw@host/a.svs?sig=1 failed, url: /a?password=pw&page=2")
    'GET https://host/a.svs failed, url: /a?password=(redacted)&page=2'
    """
    if "://" in text:
        text = _LOGIN.sub(r"\g<scheme>", text)
        text = _URL.sub(lambda found: public(found.group()), text)
    text = _PAIR.sub(rf"\g<1>\g<2>{HIDDEN}", text)
    text = _BEARER.sub(rf"\g<1> {HIDDEN}", text)
    return _BARE_LOGIN.sub("", text) if "@" in text else text


def public_values(value: Any) -> Any:
    """`value` (text, or lists and maps of text) made safe to save: every text with a URL is made public."""
    if isinstance(value, str):
        return public_text(value) if "://" in value else value
    if isinstance(value, dict):
        return {key: public_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(public_values(inner) for inner in value)
    return value


def sqlite_uri(path: str) -> str:
    """The URI of an SQLite file; ``?``, ``#``, ``%`` and spaces in its path are quoted.

    >>> sqlite_uri("/runs/100%#2?x=1/mlflow.db")
    'sqlite:////runs/100%25%232%3Fx=1/mlflow.db'
    """
    return f"sqlite:///{quote(path, safe='/=')}"
