"""A run on storage that is away for a while, and two starts of one run: nothing is lost, and one of them writes."""

from __future__ import annotations

import json
import threading
import time

import fsspec
import pytest

from pathray.device import Device
from pathray.errors import UserError
from pathray.run import RunSettings, train
from pathray.run.fence import Fence, hold
from pathray.run.layout import OWNER
from pathray.store import checkpoint
from pathray.store.metrics_log import MetricsLog
from pathray.store.storage import Storage
from tests.builders.bucket import BucketFileSystem, away
from tests.builders.jobs import wait_for
from tests.builders.runs.toy_run import rows, train_toy
from tests.builders.runs.toy_science import ToyConfig, assemble, write_plan

SLOW = {"total_images": 12 * 60, "slow_s": 0.005}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return write_plan(tmp_path_factory.mktemp("toy") / "plan")


def tensors(run):
    newest = checkpoint.latest(f"{run}/checkpoints", "toy")
    return newest.meta["images_seen"], {name: t.tolist() for name, t in checkpoint.load(newest.path)[0].items()}


def test_a_bucket_that_is_away_for_a_while_ends_no_run_and_loses_nothing(plan, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("pathray.store.storage.FIRST_WAIT_S", 0.005)
    monkeypatch.setenv("BUCKET_ROOT", str(tmp_path / "bucket"))
    monkeypatch.setenv("PATHRAY_CACHE_DIR", str(tmp_path / "cache"))
    fsspec.register_implementation("bucket", BucketFileSystem, clobber=True)
    monkeypatch.chdir(tmp_path)  # the toy science exports to a path and not to a URL
    run, trained = "bucket://store/run", []
    (tmp_path / "seen").mkdir()
    config = ToyConfig(run=str(tmp_path / "seen"), **SLOW)

    def outage():
        wait_for(lambda: checkpoint.latest(f"{run}/checkpoints", "toy") is not None, seconds=60)
        away().touch()
        time.sleep(2.5)
        away().unlink()

    thread = threading.Thread(target=outage)
    thread.start()
    trained.append(train(assemble(config, plan, 1), plan, run, Device.of("cpu")))
    thread.join()
    assert (trained[0].end, trained[0].images_seen) == ("budget", 720)
    assert "the checkpoint waits for storage" in caplog.text
    assert [row["images_seen"] for row in MetricsLog(f"{run}/metrics.jsonl").read()] == list(range(12, 721, 12))
    train_toy(tmp_path / "local", plan, total_images=720)
    assert tensors(run) == tensors(tmp_path / "local")
    assert not Storage.of(run).exists(OWNER)


def test_a_second_start_is_refused_and_the_first_ends_as_if_nothing_had_been(plan, tmp_path):
    run, refused = tmp_path / "run", []

    def second():
        wait_for(lambda: (run / "metrics.jsonl").exists(), seconds=60)
        with pytest.raises(UserError, match="being trained by another process") as e:
            Fence(str(run)).take()
        refused.append(str(e.value))

    thread = threading.Thread(target=second)
    thread.start()
    outcome = train_toy(run, plan, **SLOW)
    thread.join()
    assert outcome.end == "budget" and len(refused) == 1
    assert [row["images_seen"] for row in rows(run)] == list(range(12, 721, 12))
    assert not (run / OWNER).exists()


def test_an_attempt_that_another_start_replaced_ends_and_writes_no_more(plan, tmp_path):
    run, left = tmp_path / "run", []

    def replace():
        wait_for(lambda: checkpoint.latest(f"{run}/checkpoints", "toy") is not None, seconds=60)
        record = json.loads((run / OWNER).read_bytes()) | {"token": "another"}
        (run / OWNER).write_text(json.dumps(record))
        time.sleep(0.5)  # what was about to be written when the other began
        left.append(state_of(run))

    def state_of(folder):
        names = {p.name for p in (folder / "checkpoints").iterdir() if (p / "COMMITTED.json").exists()}
        return (folder / "metrics.jsonl").read_bytes(), names

    thread = threading.Thread(target=replace)
    thread.start()
    with pytest.raises(UserError, match="another start has taken over this run"):
        train_toy(run, plan, **SLOW)
    thread.join()
    assert [state_of(run)] == left
    assert json.loads((run / OWNER).read_bytes())["token"] == "another"
    assert not (run / "encoder").exists()


def test_a_run_whose_driver_owns_the_folder_takes_it_not_again(plan, tmp_path):
    (tmp_path / "run").mkdir()
    with hold(str(tmp_path / "run")) as fence:
        assert train_toy(tmp_path / "run", plan, RunSettings(owner=fence.token)).end == "budget"
        fence.check()
        with hold(str(tmp_path / "run")) as same:
            assert same is fence
        fence.check()
    assert not (tmp_path / "run" / OWNER).exists()
