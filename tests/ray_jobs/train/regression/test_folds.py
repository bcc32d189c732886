"""Folds of any science: how many run together, what a failure and a stop do. No Ray."""

import threading
import time

import pytest

from pathray.errors import MissingFile, UserError
from pathray.store.outages import through_outages
from pathray.store.storage import Storage
from ray_jobs.train import folds
from ray_jobs.train.folds import Fold, check_apart, find_splits, train_all
from tests.builders.bucket import BucketFileSystem, Outage
from tests.builders.jobs import wait_for
from tests.builders.runs.bucket_run import register


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(folds, "POLL_S", 0.01)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """An empty bucket; pauses between tries are short."""
    register(tmp_path, monkeypatch.setenv)
    monkeypatch.setattr("pathray.store.storage.FIRST_WAIT_S", 0.005)
    monkeypatch.setattr("pathray.run.stop_poll.REMOTE_EVERY_S", 0.01)
    monkeypatch.setitem(through_outages.__kwdefaults__, "first_pause_s", 0.05)
    yield Storage.of("bucket://store/cv")
    BucketFileSystem.outage = None


def some(root, count):
    return [Fold(f"fold_{i}", i, str(root / f"fold_{i}"), f"fold_{i}.csv") for i in range(count)]


def test_so_many_folds_run_together_and_no_more(tmp_path):
    pair, lock, running, most = threading.Barrier(2, timeout=30), threading.Lock(), set(), []

    def train(number):
        with lock:
            running.add(number)
            most.append(len(running))
        pair.wait()
        with lock:
            running.discard(number)

    train_all(Storage.of(tmp_path), some(tmp_path, 4), 2, train)
    assert len(most) == 4 and max(most) == 2


def test_a_fold_that_fails_does_not_end_the_others_and_its_error_is_raised(tmp_path):
    ended = []

    def train(number):
        if number == 0:
            raise UserError("no such image")
        ended.append(number)

    with pytest.raises(UserError, match="no such image"):
        train_all(Storage.of(tmp_path), some(tmp_path, 3), 1, train)
    assert ended == [1, 2]


def test_a_stop_goes_to_the_folds_that_run_and_no_other_begins(tmp_path):
    root, begun = Storage.of(tmp_path), []

    def train(number):
        begun.append(number)
        root.write_bytes("STOP", b"{}")
        while not root.exists(f"fold_{number}/STOP"):
            threading.Event().wait(0.01)

    train_all(root, some(tmp_path, 3), 1, train)
    assert begun == [0]


def in_bucket(root, count):
    return [Fold(f"fold_{i}", i, root.join(f"fold_{i}"), "") for i in range(count)]


@pytest.mark.parametrize("operation", ["remove", "look"])
def test_no_fold_ends_because_the_bucket_is_away_for_a_while(bucket, operation, caplog):
    ended = []

    def train(number):
        if operation == "look" and number == 0:
            BucketFileSystem.outage = away
            wait_for(lambda: away.refused and time.monotonic() - away.began > 1.2, seconds=30)
        ended.append(number)

    away = Outage(operation, "store/cv/STOP", 1.0)
    if operation == "remove":
        bucket.write_bytes("STOP", b"an older one")
        BucketFileSystem.outage = away
    train_all(bucket, in_bucket(bucket, 3), 2, train)
    assert away.refused and sorted(ended) == [0, 1, 2]
    assert ("could not look for STOP; retrying" in caplog.text) == (operation == "look")


def test_a_stop_reaches_the_folds_when_the_bucket_is_back(bucket, caplog):
    begun, stopped = [], []

    def train(number):
        begun.append(number)
        if number == 0:
            wait_for(lambda: 1 in begun, seconds=30)
            BucketFileSystem.outage = away
            bucket.write_bytes("STOP", b"{}")
        wait_for(lambda: asked(number), seconds=30)
        stopped.append(number)

    def asked(number):
        try:
            return bucket.without_retries().exists(f"fold_{number}/STOP")
        except OSError:
            return False

    away = Outage("write", "store/cv/fold_?/STOP", 1.0)
    train_all(bucket, in_bucket(bucket, 3), 2, train)
    assert ("write", "store/cv/fold_0/STOP") in away.refused
    assert sorted(stopped) == [0, 1] and begun == [0, 1], "no other began"
    assert caplog.text.count("could not ask fold_0 to stop; retrying") == 1


def test_splits_that_are_not_given_are_asked_for():
    with pytest.raises(UserError, match=r"no folds were selected \(key: splits"):
        find_splits("???")


def test_folds_are_found_in_the_order_of_their_numbers(tmp_path):
    for name in ("fold_10.csv", "fold_2.csv", "notes.txt"):
        (tmp_path / name).write_text("")
    assert list(find_splits(str(tmp_path))) == ["fold_2", "fold_10"]
    with pytest.raises(MissingFile, match=r"fold_0\.csv"):
        find_splits(str(tmp_path / "none"))


def test_a_group_that_tests_twice_is_named_with_the_file_of_the_second(tmp_path):
    tested = {"fold_0": {"p1", "p2"}, "fold_1": {"p3"}, "fold_2": {"p2"}}
    with pytest.raises(UserError, match=r"a group tests twice.*fold_2\.csv.*p2, which fold_0 tests"):
        check_apart(some(tmp_path, 3), tested)
    check_apart(some(tmp_path, 2), tested)
