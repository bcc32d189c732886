"""Splits of a cohort: by which scheme, in which files, and whether a bag is in two parts."""

from mil.splits.files import read_split, split_files, write_splits
from mil.splits.leakage import check_duplicates
from mil.splits.making import check_parts, is_repeated, outer_of, splits_of

__all__ = [
    "check_duplicates",
    "check_parts",
    "is_repeated",
    "outer_of",
    "read_split",
    "split_files",
    "splits_of",
    "write_splits",
]
