"""What storage refuses for a while is tried again, and no longer than it may."""

import pytest

from pathray.store import outages
from pathray.store.outages import Looks, through_outages
from pathray.store.storage import StorageError


@pytest.fixture
def pauses(monkeypatch):
    """Each pause that was made; the clock stands still otherwise."""
    made = []
    monkeypatch.setattr(outages.time, "monotonic", lambda: sum(made))
    monkeypatch.setattr(outages.time, "sleep", made.append)
    return made


def failing(times, passing=True):
    def act():
        calls.append(1)
        if len(calls) <= times:
            error = StorageError("503", file="gs://b/x")
            error.passing = passing
            raise error
        return len(calls)

    calls = []
    return act


def test_pauses_grow_up_to_a_bound_until_storage_is_back(pauses, caplog):
    assert through_outages(failing(9), "the save") == 10
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert "the save waits for storage; retrying in 60 s: 503" in caplog.text


def test_the_last_try_is_at_the_end_of_the_time(pauses):
    with pytest.raises(StorageError, match="503"):
        through_outages(failing(99), "the save", outage_s=10.0)
    assert pauses == [1, 2, 4, 3] and sum(pauses) == 10


def test_what_does_not_pass_and_what_is_no_matter_of_storage_is_raised_at_once(pauses):
    with pytest.raises(StorageError):
        through_outages(failing(1, passing=False), "the save")
    with pytest.raises(ZeroDivisionError):
        through_outages(lambda: 1 // 0, "the save")
    assert pauses == []


def test_a_look_finds_nothing_yet_while_storage_is_away_and_says_so_once_per_outage(caplog):
    looks = Looks("the stop")
    first, second = failing(3), failing(2)
    assert [looks.look(act, 0) for act in (first,) * 4 + (second,) * 3] == [0, 0, 0, 4, 0, 0, 3]
    assert caplog.text.count("could not look for the stop; retrying: 503") == 2
    with pytest.raises(StorageError):
        looks.look(failing(1, passing=False), 0)
