"""What the downstream jobs refuse before they compute: parts that cannot be judged, tokens that do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from oct.downstream.config import DownstreamConfig, EvalConfig, LabelledData
from oct.downstream.features import FeatureSource, check_size
from oct.downstream.folds import check_parts
from pathray.data.splits import Split
from pathray.errors import UserError
from pathray.fingerprint import fingerprint
from tests.builders.oct.labelled import write_oct_encoder


def cohort(truth: list[float]) -> Any:
    return SimpleNamespace(file="labels.csv", classes=("thick", "thin"), truth=np.array(truth))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (["train", "train", "test", "test"], "one class.*thick"),
        (["test"] * 4, "no labelled unit"),
        (["train"] * 4, "no labelled unit"),
    ],
)
def test_a_split_that_cannot_be_judged_is_refused_with_the_file(parts: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as e:
        check_parts(cohort([0, 0, 1, 1]), [Split(np.array(parts), {})])
    assert "labels.csv" in str(e.value)


def test_validation_units_count_as_trained_on() -> None:
    check_parts(cohort([0, 1, 0, 1]), [Split(np.array(["train", "val", "test", "test"]), {})])


def test_tokens_that_do_not_fit_into_memory_are_refused_with_the_keys_that_help(tmp_path: Path) -> None:
    write_oct_encoder(tmp_path / "encoder")
    source = FeatureSource(str(tmp_path / "encoder"), "pretrained", 0, (1, 1, 1), "", str(tmp_path), None, 0.0)
    check_size(source, 10, most_gb=1.0)
    with pytest.raises(UserError, match=r"probe\.pool.*probe\.attentive=false"):
        check_size(source, 10**9, most_gb=1.0)
    check_size(replace(source, pool=None), 10**9, most_gb=1.0)


def test_one_fold_trained_alone_is_part_of_the_same_run_and_what_chooses_the_state_is_not() -> None:
    whole = DownstreamConfig(data=LabelledData(index="i", labels="l"))
    alone = DownstreamConfig(data=LabelledData(index="i", labels="l", fold=2))
    patient = replace(whole, eval=EvalConfig(patience=3))
    assert fingerprint(alone)["hash"] == fingerprint(whole)["hash"] != fingerprint(patient)["hash"]
