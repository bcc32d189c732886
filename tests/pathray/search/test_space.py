"""What a search space means, and what is none."""

import pytest
from omegaconf import OmegaConf

from pathray.errors import UserError
from pathray.search.space import Dimension, parse_space, word


def test_nested_and_dotted_keys_mean_the_same_in_the_order_given():
    dotted = parse_space({"a.lr": {"loguniform": [1e-5, 1e-3]}, "b": {"choice": ["x", "y"]}})
    nested = parse_space({"a": {"lr": {"loguniform": [1e-5, 1e-3]}}, "b": {"choice": ["x", "y"]}})
    assert dotted == nested
    assert list(dotted) == ["a.lr", "b"] and dotted["a.lr"] == Dimension("a.lr", "loguniform", (1e-5, 1e-3))


@pytest.mark.parametrize(
    "space, message",
    [
        ({}, "search space is empty"),
        ({"a.lr": 3}, "invalid search space .*key: space.a.lr; found: 3"),
        ({"a": {"lr": {"logunifrom": [1, 2]}}}, "key: space.a.lr.logunifrom.*expected: 'loguniform'"),
        ({"a": {"choice": []}}, "list of choices is empty .*key: space.a.choice"),
        ({"a": {"choice": [1, 2, 1]}}, "duplicate choice .*key: space.a.choice"),
        ({"a": {"choice": "x"}}, "must be a list .*key: space.a.choice"),
        ({"a": {"uniform": [2, 1]}}, r"empty .*key: space.a.uniform; found: \[2, 1\]"),
        ({"a": {"uniform": [1]}}, r"invalid range .*found: \[1\]"),
        ({"a": {"uniform": [0, float("inf")]}}, "invalid range"),
        ({"a": {"loguniform": [0, 1]}}, "must be > 0 .*key: space.a.loguniform"),
        ({"a": {"randint": [1, 2.5]}}, "whole numbers"),
        ({"a": {"quniform": [0, 1]}}, "low, high, step"),
        ({"a": {"quniform": [0, 1, 0]}}, "step > 0"),
    ],
)
def test_what_is_no_space_is_refused_with_its_key(space, message):
    with pytest.raises(UserError, match=message):
        parse_space(space)


def test_probes_are_all_choices_and_both_ends_of_a_range():
    space = parse_space({"a": {"grid": [3, 1]}, "b": {"randint": [4, 9]}, "c": {"quniform": [0.0, 1.0, 0.25]}})
    assert [d.probes for d in space.values()] == [(3, 1), (4, 8), (0.0, 1.0)]


def test_a_mutated_value_comes_back_into_its_dimension():
    space = parse_space(
        {
            "a": {"uniform": [0.1, 0.5]},
            "b": {"randint": [4, 9]},
            "c": {"quniform": [0.0, 1.0, 0.25]},
            "d": {"choice": [1]},
        }
    )
    assert [space["a"].nearest(x) for x in (0.6, 0.05, 0.3)] == [0.5, 0.1, 0.3]
    assert [space["b"].nearest(x) for x in (9.6, 3, 5.4)] == [8, 4, 5]
    assert [space["c"].nearest(x) for x in (1.2, 0.4)] == [1.0, 0.5]
    assert space["d"].nearest(1) == 1


@pytest.mark.parametrize(
    "value", [1e-5, 3, True, None, "vit_tiny", "1e3", "null", "a: b", "", [0.996, 1.0], ["a", "1"], {"organ": 0.5}]
)
def test_a_word_is_read_back_as_the_same_value(value):
    key, _, text = word("key", value).partition("=")
    read = OmegaConf.to_container(OmegaConf.from_dotlist([f"key={text}"]))["key"]
    assert key == "key" and read == value and type(read) is type(value)
