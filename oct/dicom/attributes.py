"""Reads single attributes of a data set as plain values: what cannot be a value is None, never an exception.

Files of scanners hold "NaN", empty strings and numbers of the wrong count. Not here: which attribute counts for what.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydicom.dataset import Dataset

LATERALITIES = ("R", "L")


def read_numbers(dataset: Dataset | None, keyword: str) -> tuple[float, ...] | None:
    """All numbers of an attribute (NaN for one that is no number); None where it is absent or empty."""
    value = _value(dataset, keyword, math.nan)
    if value is None or value == "":
        return None
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(_number(v) for v in value) or None
    return (_number(value),)


def read_text(dataset: Dataset | None, keyword: str) -> str:
    """The attribute as stripped text; empty where it is absent."""
    value = _value(dataset, keyword)
    return "" if value is None else str(value).strip()


def read_count(dataset: Dataset, keyword: str) -> int | None:
    """A whole number; None where the attribute is absent or is none."""
    numbers = read_numbers(dataset, keyword)
    if not numbers or not math.isfinite(numbers[0]) or numbers[0] != int(numbers[0]):
        return None
    return int(numbers[0])


def first_item(dataset: Dataset | None, keyword: str) -> Dataset | None:
    """The first item of a sequence; None where it is absent or empty."""
    items = read_items(dataset, keyword)
    return items[0] if items else None


def read_items(dataset: Dataset | None, keyword: str) -> list[Dataset]:
    """The items of a sequence; none where it is absent."""
    value = _value(dataset, keyword)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else []


def _value(dataset: Dataset | None, keyword: str, if_invalid: object = None) -> object:
    try:
        return None if dataset is None else dataset.get(keyword)
    except Exception:  # pydicom converts a value when it is asked for, and raises its own kinds
        return if_invalid


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError):
        return math.nan
