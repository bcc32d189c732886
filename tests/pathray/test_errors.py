from __future__ import annotations

import pickle

import pytest

from pathray.errors import MissingFile, UnreadableUnit, UserError, explain, user_error_in


def test_the_message_names_what_is_known_and_leaves_out_the_rest():
    error = UserError("bad mpp", file="m.csv", row=7, found="x", expected="a number")
    assert str(error) == "bad mpp (file: m.csv; row: 7; found: 'x'; expected: 'a number')"
    assert str(UserError("nothing known")) == "nothing known"


def test_a_users_error_is_a_value_error_and_a_missing_file_also_a_file_not_found_error():
    assert isinstance(UserError("x"), ValueError)
    assert isinstance(MissingFile("x"), UserError) and isinstance(MissingFile("x"), FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        raise MissingFile("no manifest", file="m.csv")
    assert str(MissingFile("no manifest", file="m.csv")) == "no manifest (file: m.csv)"


@pytest.mark.parametrize(
    "error", [UserError("a", key="k", found=3), MissingFile("b", file="f"), UnreadableUnit("decode", "s.svs", "tile 3")]
)
def test_errors_survive_the_way_to_another_process(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


def chained(outer: BaseException, inner: BaseException) -> BaseException:
    try:
        raise outer from inner
    except BaseException as e:
        return e


def test_a_users_error_is_found_under_causes_contexts_and_worker_failures():
    users = UserError("mend me")
    assert user_error_in(users) is users
    assert user_error_in(chained(RuntimeError(), chained(KeyError(), users))) is users

    class WorkerGroupError(Exception):
        def __init__(self, failures):
            self.worker_failures = failures

    assert user_error_in(WorkerGroupError({0: RuntimeError(), 1: chained(ValueError(), users)})) is users
    assert user_error_in(WorkerGroupError({0: ValueError("plain")})) is None
    assert user_error_in(None) is None


def test_a_ring_of_causes_ends():
    a, b = RuntimeError("a"), RuntimeError("b")
    a.__cause__, b.__cause__ = b, a
    assert user_error_in(a) is None


def test_an_unexpected_error_is_explained_by_its_trace_and_an_expected_one_by_its_text():
    def mistake():
        raise AssertionError

    with pytest.raises(AssertionError) as info:
        mistake()
    assert "in mistake" in explain(info.value) and explain(info.value).endswith("AssertionError")
    assert explain(info.value, AssertionError) == "AssertionError", "never nothing"
    assert explain(UserError("bad", key="k")) == "bad (key: k)"
    assert explain(OSError("https://host/a?X-Goog-Signature=deadbeef"), OSError) == "https://host/a"
    assert "deadbeef" not in explain(ValueError("https://host/a?X-Goog-Signature=deadbeef"))
