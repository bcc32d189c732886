"""What trained splits leave, and what they say together: files, joined predictions, scores, seeds, models for use."""

from mil.results.files import (
    EMBEDDINGS,
    FOLDS,
    OOF,
    TEST,
    VAL,
    finished_identity,
    list_unfinished,
    read_part,
    write_fold,
)
from mil.results.folds import joined_predictions, judge_folds

__all__ = [
    "EMBEDDINGS",
    "FOLDS",
    "OOF",
    "TEST",
    "VAL",
    "finished_identity",
    "joined_predictions",
    "judge_folds",
    "list_unfinished",
    "read_part",
    "write_fold",
]
