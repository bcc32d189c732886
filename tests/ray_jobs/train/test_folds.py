"""Folds of any science: how many run together, what a failure and a stop do. No Ray."""

import threading

import pytest

from pathray.errors import MissingFile, UserError
from pathray.store.storage import Storage
from ray_jobs.train import folds
from ray_jobs.train.folds import Fold, check_apart, find_splits, train_all


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(folds, "POLL_S", 0.01)


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
