"""Finds the file system of a URL. The only place that asks fsspec for one, so that options hold for every access.

gcsfs asks a gRPC service for the kind of each bucket before its first request. Where that service may not be asked,
each process waits for minutes, and gRPC does not survive a fork. It is therefore off unless the user's environment says
otherwise: buckets with a hierarchical namespace are then read as any other; zonal buckets need it on. Not here: retries
(pathray.store.storage, pathray.wsi.backends.source).
"""

from __future__ import annotations

import os
from typing import Any

BUCKET_KINDS = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"


def find_file_system(url: str, **options: Any) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path inside it. ValueError or ImportError if there is none."""
    import fsspec

    os.environ.setdefault(BUCKET_KINDS, "false")  # read when gcsfs is imported, at its first URL
    fs, path = fsspec.core.url_to_fs(url, **options)
    return fs, str(path)
