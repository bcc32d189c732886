"""Features in two dimensions, by PCA or UMAP: a point per patch, kept in a small table per evaluation.

A table is ``<dataset>-img<images seen>.parquet``: columns x, y, label, center, slide_id, subset, a row per image
of the dataset. Not here: the drawing (pathray.evaluation.embedding_chart).
"""

from __future__ import annotations

import io
import json
import re
import zlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pathray.errors import UserError
from pathray.evaluation.datasets import IN_DOMAIN, OUT_OF_DOMAIN, Dataset
from pathray.evaluation.metrics.robustness_index import normalise
from pathray.features.tables import write_table
from pathray.store.storage import Storage

Floats = npt.NDArray[np.floating[Any]]
Doubles = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Strings = npt.NDArray[np.str_]

METHODS = ("pca", "umap")
SEED, NEIGHBOURS = 0, 15  # of UMAP
NAME = re.compile(r"(.+)-img(\d{12,})\.parquet")


@dataclass(frozen=True)
class Embedding:
    """`points` `[N, 2]`; `explained` is each axis' share of the features' variance, of PCA only."""

    points: Singles
    method: str
    explained: tuple[float, float] | None


@dataclass(frozen=True)
class Saved:
    """An embedding as it was kept, with what is known of each point `[N]`."""

    dataset: str
    images_seen: int
    embedding: Embedding
    labels: Strings
    centers: Strings
    slides: Strings
    subset: Strings  # ID | OOD


def embed(features: Floats, method: str = "pca") -> Embedding:
    """Features `[N, D]` in two dimensions, L2-normalised first.

    pca: the two leading components; the largest loading of each is positive, so that equal features give equal
    pictures. umap: Euclidean, with a fixed seed. UserError for features that are not finite or of length 0, for an
    unknown method, and for umap where its package is missing.
    """
    if method not in METHODS:
        raise UserError("no such embedding", key="embedding", found=method, expected=" | ".join(METHODS))
    unit = normalise(features)
    return _pca(unit) if method == "pca" else _umap(unit)


def save_embedding(folder: str, dataset: Dataset, embedding: Embedding, images_seen: int) -> str:
    """Keep the embedding of `dataset.images` below `folder` (path or URL); the file's path."""
    known = {
        image: (label, center, slide, OUT_OF_DOMAIN if ood else IN_DOMAIN)
        for rows in dataset.rows.values()
        for image, label, center, slide, ood in zip(
            rows.images, rows.labels.tolist(), rows.centers.tolist(), rows.slides.tolist(), rows.ood, strict=True
        )
    }
    if len(embedding.points) != len(dataset.images):
        found, expected = f"{len(embedding.points)} points", f"{len(dataset.images)}, one per image"
        raise UserError("points and images do not match", key=dataset.name, found=found, expected=expected)
    names = ("label", "center", "slide_id", "subset")
    columns = dict(zip(names, zip(*(known[image] for image in dataset.images), strict=True), strict=True))
    table = pa.table(
        {"x": embedding.points[:, 0], "y": embedding.points[:, 1]}
        | {name: pa.array(values, pa.string()) for name, values in columns.items()}
    )
    meta = {"dataset": dataset.name, "images_seen": images_seen, "method": embedding.method}
    path = Storage.of(folder).join(f"{quote(dataset.name, safe='')}-img{images_seen:012d}.parquet")
    write_table(path, table, meta | {"explained": embedding.explained, "check": _sum(table)})
    return path


def _sum(table: pa.Table) -> str:
    return f"{zlib.crc32(repr(table.to_pydict()).encode()):08x}"


def list_embeddings(folder: str) -> list[tuple[str, int]]:
    """(dataset, images seen) of the embeddings in a folder, in that order; none where there is no folder."""
    found = (NAME.fullmatch(name) for name in Storage.of(folder).list())
    return sorted((unquote(match[1]), int(match[2])) for match in found if match)


def load_embedding(folder: str, dataset: str, images_seen: int) -> Saved:
    """MissingFile when it is not there, UserError for a file that is none."""
    import pyarrow.parquet as pq

    store, name = Storage.of(folder), f"{quote(dataset, safe='')}-img{images_seen:012d}.parquet"
    content = store.read_bytes(name)
    try:
        table = pq.read_table(io.BytesIO(content))
        meta: dict[str, Any] = json.loads(table.schema.metadata[b"pathray"])
        if meta.get("check", _sum(table)) != _sum(table):
            raise ValueError("another checksum than it says")
        points = np.stack([table[axis].to_numpy() for axis in ("x", "y")], axis=1).astype(np.float32)
        labels, centers, slides, subset = (
            np.array(table[column].to_pylist(), np.str_) for column in ("label", "center", "slide_id", "subset")
        )
        explained = meta["explained"] and (float(meta["explained"][0]), float(meta["explained"][1]))
        embedding = Embedding(points, str(meta["method"]), explained)
        return Saved(meta["dataset"], int(meta["images_seen"]), embedding, labels, centers, slides, subset)
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as e:
        raise UserError("invalid or damaged embedding", file=store.join(name), found=str(e)[:200]) from e


def load_embeddings(folder: str) -> list[Saved]:
    """All of a folder, by dataset and images seen; none where there is no folder."""
    return [load_embedding(folder, dataset, images) for dataset, images in list_embeddings(folder)]


def _pca(unit: Doubles) -> Embedding:
    from scipy.linalg import eigh

    x = unit - unit.mean(axis=0)
    n, dim = x.shape
    size = min(n, dim)
    gram = x.T @ x if dim <= n else x @ x.T
    values, vectors = eigh(gram, subset_by_index=[max(0, size - 2), size - 1])
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    loadings = vectors if dim <= n else x.T @ vectors
    sign = np.sign(loadings[np.abs(loadings).argmax(axis=0), np.arange(loadings.shape[1])])
    points = np.zeros((n, 2))  # the second axis stays empty where features have one dimension
    points[:, : len(values)] = sign * (x @ vectors if dim <= n else vectors * np.sqrt(values))
    share = np.zeros(2)
    share[: len(values)] = values / max(float(np.einsum("nd,nd->", x, x)), 1e-300)
    return Embedding(points.astype(np.float32), "pca", (float(share[0]), float(share[1])))


def _umap(unit: Doubles) -> Embedding:
    try:
        import umap  # type: ignore
    except ImportError as e:
        expected = "pip install 'pathray[umap]', or embedding: pca"
        raise UserError("UMAP is not installed", key="embedding", found="umap", expected=expected) from e
    if len(unit) <= NEIGHBOURS:
        found, expected = f"{len(unit)} patches", f"more than {NEIGHBOURS}, or embedding: pca"
        raise UserError("too few patches for UMAP", key="embedding", found=found, expected=expected)
    reducer = umap.UMAP(n_components=2, n_neighbors=NEIGHBOURS, metric="euclidean", random_state=SEED, n_jobs=1)
    return Embedding(np.asarray(reducer.fit_transform(unit.astype(np.float32)), np.float32), "umap", None)
