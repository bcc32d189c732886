"""Turns an anchor catalog into a plan: one narrow row per anchor, grouped by stratum, and a table of slides.

Not here: the plan's format on disk (pathray.data.plan) and which row is read when (pathray.data.order).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ijepath.indexing.catalog import Catalog, file_sha256, stratum_key, stratum_of
from ijepath.indexing.index import read_index
from pathray.data.order import Stratum
from pathray.data.plan import Plan, PlanWriter
from pathray.errors import UserError

log = logging.getLogger(__name__)

COLUMNS: dict[str, type[np.generic]] = {"source": np.int32, "x": np.int32, "y": np.int32}

# Columns of a slide, copied from the catalog: row `source` of the plan's slide table.
SLIDE_COLUMNS = (
    "slide_id",
    "stratum_id",
    "wsi_path",
    "mask_path",
    "wsi_level0_spacing_mpp",
    "source_context_mpp",
    "source_target_mpp",
)
_CHUNK = 1 << 20


@dataclass
class _Slide:
    facts: dict[str, Any]
    start: int  # first row in the catalog
    rows: int


def build_plan(
    catalog_path: str, out_dir: str, *, sampling_stratum_key: str | None = None, batch_size: int = 2048
) -> Plan:
    """Write the plan of a catalog into the folder `out_dir` and open it.

    Rows: `source` (row of the slide table, which is in catalog order), `x`, `y` (centre of the context in level-0
    pixels). They are grouped by stratum (names sorted; `plan.meta["strata"]` has name, start and rows), then by slide,
    then raster. `sampling_stratum_key` replaces the catalog's own key; its values are looked up in the slide index.
    `batch_size` is the number of catalog rows decoded at a time (`data.anchor_stream_batch_size`). Memory does not grow
    with the rows: their coordinates go through a temporary file.

    Raises MissingFile for a missing catalog, UserError for a stratum key that the index lacks.
    """
    catalog = Catalog.open(catalog_path)
    with tempfile.TemporaryFile(dir=_scratch(out_dir)) as f:
        slides = _spool(catalog, f, batch_size)
        if sampling_stratum_key not in (None, *_keys(catalog)):
            _restratify(slides, catalog, str(sampling_stratum_key))
        total = sum(s.rows for s in slides)
        coordinates = np.memmap(f, np.int32, "r", shape=(total, 2))
        order = sorted(range(len(slides)), key=lambda i: (slides[i].facts["stratum_id"], i))
        _add_states(slides, catalog)
        sources = pa.Table.from_pylist([s.facts for s in slides], schema=_slide_schema())
        meta = _meta(catalog, [slides[i] for i in order], sampling_stratum_key)
        with PlanWriter(out_dir, COLUMNS, sources, meta) as writer:
            for i in order:
                _copy(writer, i, coordinates[slides[i].start : slides[i].start + slides[i].rows])
    return Plan.open(out_dir)


def strata(plan: Plan) -> list[Stratum]:
    """The strata of a plan, for pathray.data.order.stratified_order."""
    return [Stratum(s["name"], int(s["start"]), int(s["rows"])) for s in plan.meta["strata"]]


def identity(plan: Plan) -> str:
    """Digest of which anchors of which slides are in which row and stratum, not of where the slides' files are.

    A run may resume after its slides were moved: their paths, which `plan.hash` covers, are placement.
    """
    facts = [plan.meta["anchors_identity"], plan.meta["strata"], plan.sources["stratum_id"].to_pylist()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def is_current(out_dir: str, catalog_path: str, sampling_stratum_key: str | None = None) -> bool:
    """Whether the plan in `out_dir` was built from this very catalog with this stratum key."""
    try:
        plan, catalog = Plan.open(out_dir), Catalog.open(catalog_path)
    except UserError:
        return False
    want = _origin(catalog, sampling_stratum_key)
    return all(plan.meta.get(k) == v for k, v in want.items())


def _spool(catalog: Catalog, f: Any, batch_size: int) -> list[_Slide]:
    """Write x, y of every row to `f` as int32 pairs, and return the slides in catalog order."""
    slides: list[_Slide] = []
    done = 0
    for batch in catalog.batches([*SLIDE_COLUMNS, "center_x_level0", "center_y_level0"], batch_size):
        for start, stop in _runs(batch.column("slide_id")):
            slide_id = batch.column("slide_id")[start].as_py()
            if not slides or slides[-1].facts["slide_id"] != slide_id:
                facts = {name: batch.column(name)[start].as_py() for name in SLIDE_COLUMNS}
                slides.append(_Slide(facts, done + start, 0))
            slides[-1].rows += stop - start
        centers = [batch.column(name).to_numpy() for name in ("center_x_level0", "center_y_level0")]
        assert all(c.max(initial=0) < 2**31 for c in centers), "a slide wider than 2^31 pixels"
        f.write(np.stack(centers, axis=1).astype(np.int32).tobytes())
        done += batch.num_rows
    f.flush()
    assert done == catalog.total_anchors, (done, catalog.total_anchors)
    return slides


def _runs(values: pa.Array) -> Iterator[tuple[int, int]]:
    """Start and stop of every run of equal values."""
    codes = values.dictionary_encode().indices.to_numpy()
    edges = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    yield from zip(edges[:-1], edges[1:], strict=True)


def _keys(catalog: Catalog) -> tuple[str, str]:
    """The column that the strata come from, and the key that was asked for (they differ when it is absent)."""
    return catalog.manifest["sampling_stratum_key"], catalog.manifest["requested_stratum_key"]


def _restratify(slides: list[_Slide], catalog: Catalog, key: str) -> None:
    index = read_index(catalog.slide_index_path)
    found = stratum_key(key, index.metadata_columns)
    by_id = {row["slide_id"]: row for row in index.rows if row["status"] == "ok"}
    for slide in slides:
        slide_id = slide.facts["slide_id"]
        if slide_id not in by_id:
            message = "a slide of the anchor catalog is not in the slide index: build the catalog again"
            raise UserError(message, file=catalog.slide_index_path, key="slide_id", found=slide_id)
        slide.facts["stratum_id"] = stratum_of(by_id[slide_id], found)


def _add_states(slides: list[_Slide], catalog: Catalog) -> None:
    """Add the state of each slide's file when it was indexed, if the catalog's own index is unchanged."""
    states: dict[str, str | None] = {}
    try:
        if file_sha256(catalog.slide_index_path) == catalog.manifest["slide_index_sha256"]:
            states = {row["slide_id"]: row["wsi_state"] for row in read_index(catalog.slide_index_path).rows}
    except UserError as e:  # the catalog is enough to train on
        log.info("the index could not be read, so slides are not compared with it: %s", e)
    for slide in slides:
        slide.facts["wsi_state"] = states.get(slide.facts["slide_id"])


def _meta(catalog: Catalog, ordered: list[_Slide], key: str | None) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    start = 0
    for slide in ordered:
        if not found or found[-1]["name"] != slide.facts["stratum_id"]:
            found.append({"name": slide.facts["stratum_id"], "start": start, "rows": 0})
        found[-1]["rows"] += slide.rows
        start += slide.rows
    return {"strata": found, "profile": catalog.manifest["profile"], **_origin(catalog, key)}


def _origin(catalog: Catalog, key: str | None) -> dict[str, Any]:
    shards = [shard["sha256"] for shard in catalog.manifest["anchor_shards"]]
    own, asked = _keys(catalog)
    return {
        "kind": "ijepath-anchors",
        "anchors_identity": catalog.manifest["identity"],
        "anchor_shards_sha256": shards,
        "sampling_stratum_key": own if key in (None, asked) else key,
    }


def _copy(writer: PlanWriter, source: int, coordinates: npt.NDArray[np.int32]) -> None:
    for i in range(0, len(coordinates), _CHUNK):
        part = coordinates[i : i + _CHUNK]
        writer.append({"source": np.full(len(part), source, np.int32), "x": part[:, 0], "y": part[:, 1]})


def _slide_schema() -> pa.Schema:
    kinds = {
        "wsi_level0_spacing_mpp": pa.float64(),
        "source_context_mpp": pa.float64(),
        "source_target_mpp": pa.float64(),
    }
    return pa.schema([(name, kinds.get(name, pa.string())) for name in (*SLIDE_COLUMNS, "wsi_state")])


def _scratch(out_dir: str) -> str:
    parent = Path(os.path.abspath(out_dir)).parent
    parent.mkdir(parents=True, exist_ok=True)
    return str(parent)
