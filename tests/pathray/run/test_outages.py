"""Storage that is away at each stage of a run: the run waits or continues, and ends as one that nothing happened to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from pathray.data.plan import Plan
from pathray.data.stream import DecodeSettings
from pathray.device import Device
from pathray.errors import UserError
from pathray.evaluation.early_stopping import EARLY_STOPPED
from pathray.run import RunSettings, train
from pathray.run.fence import Fence
from pathray.run.layout import OWNER
from pathray.run.metrics_writer import MetricsWriter
from pathray.run.stop import request_stop
from pathray.store.checkpoint import AsyncSaver
from pathray.store.committed import list_committed, sweep
from pathray.store.metrics_log import MetricsLog
from pathray.store.outages import through_outages
from pathray.store.storage import Storage, StorageError, write_atomic
from pathray.wsi.backends.source import open_source
from tests.builders.bucket import BucketFileSystem, Outage
from tests.builders.jobs import wait_for
from tests.builders.runs.bucket_run import (
    BATCH,
    RUN,
    STAGES,
    URL,
    assemble,
    left,
    lost_and_doubled,
    outage,
    register,
    train_in_bucket,
    wait_until_away,
)
from tests.builders.runs.toy_science import ToyConfig, write_plan

STEPS = 20
TILE = "bucket://store/tile"
TOY: dict[str, Any] = {"total_images": STEPS * BATCH, "save_every": 5 * BATCH, "unreadable_every": 7, "slow_s": 0.002}
AWAY_S = 1.0
EVERY_ROW = [BATCH * step for step in range(1, STEPS + 1)]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return write_plan(tmp_path_factory.mktemp("toy") / "plan")


@pytest.fixture(scope="module")
def undisturbed(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run leaves that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    train(assemble(ToyConfig(run=str(folder), **TOY), plan, 1), plan, str(folder / "run"), Device.of("cpu"))
    found = left(str(folder / "run"))
    assert [images for images, _ in found["rows"]] == EVERY_ROW and found["unreadable"]
    assert sorted(name for name in found if name.startswith("snapshot")) == ["snapshot 120", "snapshot 240"]
    return found


@pytest.fixture(autouse=True)
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty bucket; pauses between tries are short."""
    register(tmp_path, monkeypatch.setenv)
    monkeypatch.setattr("pathray.store.storage.FIRST_WAIT_S", 0.005)
    for waits in (through_outages, AsyncSaver.__init__, MetricsWriter.__init__):
        monkeypatch.setitem(waits.__kwdefaults__, "first_pause_s", 0.05)
    monkeypatch.setitem(Fence.__init__.__kwdefaults__, "every_s", 0.05)
    monkeypatch.setitem(Fence.__init__.__kwdefaults__, "settle_s", 0.05)
    yield
    BucketFileSystem.outage = None


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_ends_as_if_storage_had_never_been_away(
    stage: str, plan: Plan, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    if stage == "start of a rank":
        assert train_in_bucket(tmp_path / "seen", plan, stop_at_step=7, **TOY).end == "budget"  # STOP is a bucket's
    with outage(stage, AWAY_S) as away:
        outcome = train_in_bucket(tmp_path / "seen", plan, **TOY)
    assert away.began is not None and away.refused, "storage was never away"
    assert outcome.end == "budget" and outcome.images_seen == STEPS * BATCH
    found = left(URL)
    assert lost_and_doubled(found["rows"], undisturbed["rows"]) == (0, 0)
    assert found == undisturbed
    assert not Storage.of(URL).exists(OWNER), "the folder is given back"


class ReaderOfBucket:
    """The toy reader over an object in the bucket; a unit's noise is that of a reader without one."""

    def __init__(self, reader: Any) -> None:
        self.reader, self.benign_reasons = reader, reader.benign_reasons
        self.source = open_source(TILE)

    def read(self, unit: Any, position: int, attempt: int) -> Any:
        assert self.source.read_many([(0, 4)]) == [b"tile"]
        return self.reader.read(unit, position, attempt)

    def collate(self, units: Any) -> Any:
        return self.reader.collate(units)


def train_on_bucket(plan: Plan, folder: Path) -> Any:
    """The toy run with its folder and its data in the bucket. A read may take half as long as an outage does."""
    folder.mkdir()
    write_atomic(TILE, b"tile")
    parts = assemble(ToyConfig(run=str(folder), **TOY), plan, 1)
    decode = DecodeSettings(threads=2, ahead=2, timeout_s=0.7 * AWAY_S, max_stalled=0)
    parts = replace(parts, reader=ReaderOfBucket(parts.reader), decode=decode)
    return train(parts, plan, URL, Device.of("cpu"))


def test_a_run_whose_data_are_away_reads_the_same_units_as_if_they_had_not_been(
    plan: Plan, undisturbed: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    BucketFileSystem.outage = away = Outage("read", TILE.partition("://")[2], AWAY_S, spared=100)
    assert train_on_bucket(plan, tmp_path / "seen").images_seen == STEPS * BATCH
    assert away.refused, "storage was never away"
    assert "the reading of training data waits for storage" in caplog.text
    assert left(URL) == undisturbed


def test_a_run_whose_data_stay_away_ends_with_an_error_that_names_them(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(through_outages.__kwdefaults__, "outage_s", 0.5)
    tile = TILE.partition("://")[2]

    class OnlyData(Outage):
        def meet(self, operation: str, key: str) -> None:
            if key == tile:
                super().meet(operation, key)

    BucketFileSystem.outage = OnlyData("read", tile, 60.0, spared=100)
    with pytest.raises(StorageError, match=f"training data cannot be reached.*{TILE}"):
        train_on_bucket(plan, tmp_path / "seen")
    assert not Storage.of(URL).exists("encoder")


def test_an_outage_while_older_checkpoints_are_removed_does_not_hold_up_the_step(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, go_on = threading.Event(), threading.Event()

    class Hanging(Outage):
        def meet(self, operation: str, key: str) -> None:
            if operation == "remove" and "toy-latest" in key:
                held.set()
                assert go_on.wait(60)

    BucketFileSystem.outage = Hanging("remove", "", 0.0)
    steps = []

    def watch(self: Any, tick: Any, blocked: Any) -> None:
        steps.append(held.is_set())
        go_on.set() if steps.count(True) == 3 else None

    monkeypatch.setattr("pathray.run.tick_log.TickLog.write", watch)
    assert train_in_bucket(tmp_path / "seen", plan, **{**TOY, "slow_s": 0.01}).end == "budget"
    assert steps.count(True) >= 3, "steps were taken while a removal hung"


def test_a_damaged_record_of_an_older_checkpoint_ends_no_training(
    plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def damage() -> None:
        wait_for(lambda: list_committed(f"{URL}/checkpoints", "toy-latest"), seconds=60)
        path = list_committed(f"{URL}/checkpoints", "toy-latest")[0].path
        Storage.of(path).write_bytes("COMMITTED.json", b"{}")

    thread = threading.Thread(target=damage)
    thread.start()
    assert train_in_bucket(tmp_path / "seen", plan, **{**TOY, "slow_s": 0.01}).images_seen == STEPS * BATCH
    thread.join()
    assert "older checkpoints called toy-latest cannot be removed now" in caplog.text


def test_a_start_that_took_over_in_an_outage_is_noticed_before_anything_is_written(plan: Plan, tmp_path: Path) -> None:
    """The other start reaches the bucket, this run does not."""
    objects = tmp_path / "bucket" / "objects"

    def take_over() -> None:
        wait_until_away(away, 60)
        owner = objects / quote(f"{RUN}/{OWNER}", safe="")
        owner.write_text(json.dumps(json.loads(owner.read_text()) | {"token": "another"}))

    def state() -> dict[str, bytes]:
        names = ("metrics.jsonl", "COMMITTED.json", OWNER)
        return {path.name: path.read_bytes() for path in objects.iterdir() if path.name.endswith(names)}

    with outage("metrics", AWAY_S) as away:
        thread = threading.Thread(target=take_over)
        thread.start()
        with pytest.raises(UserError, match="another start has taken over this run"):
            train_in_bucket(tmp_path / "seen", plan, **TOY)
        thread.join()
    assert list(state()) == [quote(f"{RUN}/{OWNER}", safe="")] and not Storage.of(URL).exists("encoder")


def test_nobody_gets_in_while_storage_is_away_nor_after_it(plan: Plan, tmp_path: Path) -> None:
    second: list[str] = []

    def start_again() -> None:
        wait_until_away(away, 60)
        for _ in range(2):
            with pytest.raises(UserError) as e:
                Fence(URL).take()
            second.append(type(e.value).__name__ if isinstance(e.value, StorageError) else e.value.message)
            time.sleep(AWAY_S)

    with outage("metrics", AWAY_S) as away:
        thread = threading.Thread(target=start_again)
        thread.start()
        train_in_bucket(tmp_path / "seen", plan, **{**TOY, "slow_s": 0.03})
        thread.join()
    assert second == ["StorageError", "the run is being trained by another process"]


def test_an_early_stop_whose_reason_cannot_be_read_at_once_is_exported_all_the_same(plan: Plan, tmp_path: Path) -> None:
    BucketFileSystem.outage = away = Outage("read", f"{RUN}/STOP", AWAY_S)
    request_stop(URL, EARLY_STOPPED)
    outcome = train_in_bucket(tmp_path / "seen", plan, RunSettings(keep_stop=True), **TOY)
    assert away.refused and outcome.end == EARLY_STOPPED and outcome.artifact


def test_whether_a_file_exists_is_an_error_and_not_a_no_while_storage_is_away(tmp_path: Path) -> None:
    store = Storage.of(URL)
    assert not store.exists("a.txt")
    store.write_bytes("a.txt", b"a")
    BucketFileSystem.outage = Outage("look", "*", 60.0)
    with pytest.raises(StorageError) as e:
        store.exists("a.txt")
    assert e.value.passing


def test_a_listing_that_leaves_out_what_it_cannot_read_costs_no_checkpoint(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_in_bucket(tmp_path / "seen", plan, **TOY)
    there = [one.path for one in list_committed(f"{URL}/checkpoints")]
    monkeypatch.setattr(BucketFileSystem, "find", lambda self, path, **more: [])
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + 7200)
    assert sweep(f"{URL}/checkpoints") == []
    assert [one.path for one in list_committed(f"{URL}/checkpoints")] == there
    assert MetricsLog(f"{URL}/metrics.jsonl").read()
