"""One flipped bit in any small file of a run is an error that names the file, or changes nothing that is read."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from adios import artifact as masks
from adios.mask_models import MaskModel, MaskModelConfig
from adios.patches.index import PatchIndex, archives_of
from adios.patches.index_writer import index_patches
from ijepath.indexing.anchors import SlideAnchors
from ijepath.indexing.catalog import Catalog
from ijepath.indexing.catalog_writer import write_catalog
from ijepath.indexing.index import read_index
from pathray.data.faults import Fault
from pathray.data.plan import Plan, PlanWriter
from pathray.errors import UserError
from pathray.nn.vit import ViT, ViTConfig
from pathray.run import quarantine
from pathray.run.layout import QUARANTINE_REPORT
from pathray.store import checkpoint
from pathray.store.artifact import EncoderArtifact
from pathray.store.committed import COMMITTED
from pathray.store.metrics_log import MetricsLog
from pathray.store.storage import Storage
from regression import artifact as regressions
from regression.evaluate import write_parquet
from regression.model import ExpressionNet, Preprocessing
from regression.normalise import Normaliser
from regression.reports.cross_validation import _test_rows
from regression.reports.report import metrics_text, read_results
from tests.builders.anchors import anchors_at, index_row, small_profile, write_small_index
from tests.builders.zips import write_folder

TINY = ViTConfig(img_size=(32, 32), patch_size=(16, 16), dim=8, depth=1, heads=2)
MOST = 400  # bytes tried of a file; of small ones all


@dataclass
class Kept:
    """A file of a run and how its readers read it; what they make of it as plain text."""

    path: Path
    read: Callable[[], Any]


def a_plan(folder: Path) -> Path:
    sources = pa.table({"slide_id": ["a", "b"]})
    with PlanWriter(folder / "plan", {"row": np.int32, "source": np.int32}, sources, {"made_from": "slides"}) as plan:
        plan.append({"row": np.arange(9), "source": np.arange(9) % 2})
    return folder / "plan"


def plan_file(folder: Path, name: str) -> Kept:
    path = a_plan(folder)

    def read() -> str:
        plan = Plan.open(path, verify=True)
        return repr((plan.hash, plan.meta, plan.sources.to_pydict(), plan.column("row").tolist()))

    return Kept(path / name, read)


def slide_index(folder: Path) -> Kept:
    path = write_small_index(str(folder / "index.parquet"), [index_row(f"s{i}", "lung", mpp=0.5) for i in range(5)])
    return Kept(Path(path), lambda: repr(read_index(path)))


def catalog_file(folder: Path, shard: bool) -> Kept:
    rows = [index_row(f"s{i}", "lung", mpp=0.5) for i in range(3)]
    index = write_small_index(str(folder / "index.parquet"), rows)
    path, results = str(folder / "catalog.json"), [anchors_at(row, 4) for row in rows[:2]]
    options = {"slide_index": index, "metadata_columns": ("organ",)}
    write_catalog(path, small_profile(), [*results, SlideAnchors(rows[2], "no_valid_anchors")], **options)

    def read() -> str:
        catalog = Catalog.open(path)
        return repr((catalog.manifest, [batch.to_pylist() for batch in catalog.batches()]))

    (part,) = (folder / "anchors").iterdir()
    return Kept(part if shard else Path(path), read)


def patch_index(folder: Path) -> Kept:
    write_folder(folder / "zips", archives=2, patches=3)
    output = folder / "index.parquet"
    root, archives = archives_of(str(folder / "zips"))
    index_patches(root, archives, str(output), max_corrupt_fraction=0.0)

    def read() -> str:
        index = PatchIndex.open(str(output))
        columns = ("archive", "name", "offset", "crc", "x", "y", "size", "slide", "bytes", "compressed_bytes", "method")
        tables = [table.to_pylist() for table in index.tables(columns)]
        return repr((Path(index.root).name, index.rows, sorted(index.archives()), tables))

    return Kept(output, read)


def a_checkpoint(folder: Path) -> Kept:
    meta = {"images_seen": 128, "identity": {"data.tile_px": 256}, "step": 2, "best": None}
    saved = checkpoint.save(str(folder / "checkpoints"), "run-latest", {"w": torch.arange(4.0)}, meta)

    def read() -> str:
        newest = checkpoint.latest(str(folder / "checkpoints"), "run")
        tensors, found = checkpoint.load(newest.path)
        return repr((newest.name, newest.created, tensors, found))

    return Kept(Path(saved.path) / COMMITTED, read)


def an_encoder(folder: Path) -> Kept:
    shape = {"mean": [0.5] * 3, "std": [0.25] * 3, "size": 32, "mpp": 0.5}
    EncoderArtifact.save(str(folder / "e"), ViT(TINY), preprocessing=shape, science="ijepath", provenance={"seed": 1})
    return Kept(folder / "e" / "artifact.json", lambda: repr(EncoderArtifact.load(str(folder / "e"))[1]))


def a_mask_model(folder: Path) -> Kept:
    config = MaskModelConfig(num_masks=2, image_size=32, channels=8, dim=16, depth=4, heads=2)
    masks.save(str(folder / "m"), MaskModel(config), (0.5,) * 3, (0.25,) * 3, {"images_seen": 64})

    def read() -> str:
        found = masks.load(str(folder / "m"))
        return repr((found.config, found.mean, found.std, found.facts))

    return Kept(folder / "m" / masks.DESCRIPTION, read)


def a_regression(folder: Path) -> Kept:
    normaliser = Normaliser(np.zeros(2), np.ones(2), ("A", "B"))
    shape = Preprocessing((0.5,) * 3, (0.25,) * 3, 32, 0.5)
    regressions.save(str(folder / "r"), ExpressionNet(ViT(TINY), 2), shape, normaliser, {"seed": 1})

    def read() -> str:
        found = regressions.load(str(folder / "r"))
        return repr((found.preprocessing, found.normaliser.plain(), found.description))

    return Kept(folder / "r" / regressions.DESCRIPTION, read)


def a_quarantine(folder: Path) -> Kept:
    store, slides = Storage.of(folder), pa.table({"slide_id": ["a", "b"]})
    faults = [Fault(i, 0, i, i % 2, "missing", f"{i}.tiff", "gone", False) for i in range(5)]
    name = quarantine.part_name(0, 8, 0)
    store.write_bytes(name, quarantine.to_parquet(faults, slides))

    def read() -> str:
        quarantine.merge(store)
        return repr(pq.read_table(folder / QUARANTINE_REPORT).to_pylist())

    return Kept(folder / name, read)


def regression_results(folder: Path) -> Kept:
    found = {"run_name": "r", "best_primary": 0.25, "images_seen": 240, "test": {"spearman": 0.5, "pearson": None}}
    store = Storage.of(folder)
    store.write_bytes("r/metrics.json", metrics_text(found))
    return Kept(
        folder / "r" / "metrics.json", lambda: repr([{k: row[k] for k in found} for row in read_results(store)])
    )


def predictions(folder: Path) -> Kept:
    table = pa.table({"part": ["test"] * 5, "measured_A": np.arange(5.0), "predicted_A": np.arange(5.0) / 3})
    write_parquet(str(folder / "predictions.parquet"), table)
    store = Storage.of(folder)
    return Kept(folder / "predictions.parquet", lambda: repr(_test_rows(store, "predictions.parquet").to_pylist()))


KINDS: dict[str, Callable[[Path], Kept]] = {
    "the plan's description": lambda folder: plan_file(folder, "plan.json"),
    "the plan's units": lambda folder: plan_file(folder, "units.arrow"),
    "the plan's sources": lambda folder: plan_file(folder, "sources.arrow"),
    "the slide index": slide_index,
    "the catalog": lambda folder: catalog_file(folder, shard=False),
    "a shard of the catalog": lambda folder: catalog_file(folder, shard=True),
    "the patch index": patch_index,
    "a checkpoint's record": a_checkpoint,
    "an encoder": an_encoder,
    "a mask model": a_mask_model,
    "a regression": a_regression,
    "a part of the quarantine": a_quarantine,
    "results of a regression": regression_results,
    "predictions of a regression": predictions,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_named_or_changes_nothing(kind, tmp_path):
    kept = KINDS[kind](tmp_path)
    sound, content = kept.read(), kept.path.read_bytes()
    generator = np.random.default_rng(len(content))
    named = 0
    for at in sorted(generator.permutation(len(content))[:MOST].tolist()):
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(generator.integers(8))
        kept.path.write_bytes(flipped)
        try:
            assert kept.read() == sound, f"byte {at}: {content[at - 20 : at + 20]!r} reads as something else"
        except UserError as e:
            assert kept.path.name in str(e), f"byte {at}: {e}"
            named += 1
    kept.path.write_bytes(content)
    assert kept.read() == sound and named > len(content[:MOST]) / 10


def test_rows_of_the_metrics_with_a_flipped_bit_are_left_out_and_never_read_as_others(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(str(path))
    for images in (64, 128, 192):
        log.append({"images_seen": images, "loss": images / 3})
    log.flush()
    sound, content = log.read(), path.read_bytes()
    generator = np.random.default_rng(0)
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(generator.integers(8))
        path.write_bytes(flipped)
        found = MetricsLog(str(path)).read()
        assert all(any(known.items() <= row.items() for known in sound) for row in found), content[at - 20 : at + 20]
    assert "damaged" in caplog.text


def test_records_of_before_the_seal_are_read_as_they_are(tmp_path):
    kept = a_checkpoint(tmp_path)
    sound, record = kept.read(), json.loads(kept.path.read_bytes())
    assert record.pop("digest")
    kept.path.write_text(json.dumps(record))
    assert kept.read() == sound
    record["meta"] = None
    kept.path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"COMMITTED\.json"):
        kept.read()
