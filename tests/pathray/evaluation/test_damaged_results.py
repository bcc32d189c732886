"""One flipped byte or a cut line in what evaluations leave: left out and told, never a trace or another curve."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from pathray.errors import UserError
from pathray.evaluation.datasets import open_dataset
from pathray.evaluation.projection import embed, load_embedding, save_embedding
from pathray.evaluation.report import write_report
from pathray.evaluation.results import DECISION, ROWS, Results, has_live_evaluator, is_evaluated, read_decision
from pathray.evaluation.settings import EarlyStoppingConfig, SelectionConfig
from pathray.store.metrics_log import MetricsLog, rows_of
from tests.builders.evaluation import cohort

RI = "pathorob/mine/ri"
STOPPING = EarlyStoppingConfig(enable=True, selection=SelectionConfig(dataset="mine"), save_best_checkpoint=False)


@pytest.fixture
def run(tmp_path):
    log = MetricsLog(str(tmp_path / ROWS))
    for i in range(4):
        log.append({"images_seen": 100 * i, "status": "ok", "due": {}, "identity": "a", RI: 0.5 + i / 100})
    return tmp_path


def test_every_flipped_byte_of_the_rows_is_left_out_and_no_value_changes(run):
    content = (run / ROWS).read_bytes()
    right = {(row["images_seen"], row[RI]) for row in rows_of(content)}
    g = np.random.default_rng(0)
    for at in g.choice(len(content), 60, replace=False).tolist():
        bad = bytearray(content)
        bad[at] ^= 1 << int(g.integers(8))
        (run / ROWS).write_bytes(bytes(bad))
        rows = Results(str(run), None).rows
        assert {(row["images_seen"], row[RI]) for row in rows} <= right and len(rows) >= 2
        assert all(is_evaluated(str(run), row["images_seen"]) for row in rows)
        lost = {images for images, _ in right} - {row["images_seen"] for row in rows}
        assert not any(is_evaluated(str(run), images) for images in lost)


def test_a_changed_digit_is_told(run, caplog):
    content = (run / ROWS).read_bytes()
    (run / ROWS).write_bytes(content.replace(b"0.52", b"0.92"))
    with caplog.at_level(logging.WARNING):
        assert [row[RI] for row in Results(str(run), None).rows] == [0.5, 0.51, 0.53]
    assert "damaged" in caplog.text
    page = open(write_report(str(run))).read()
    assert f"1 damaged lines of {ROWS} are left out" in page


@pytest.mark.parametrize(
    "line", [b"7", b"[]", b"null", b"\xff\xfe{}", b'{"status":"ok"}', b'{"images_seen":"9"}', b"{"]
)
def test_a_line_that_is_no_row_is_left_out(run, line):
    (run / ROWS).write_bytes(line + b"\n" + (run / ROWS).read_bytes())
    assert len(Results(str(run), None).rows) == 4 and is_evaluated(str(run), 300) and not is_evaluated(str(run), 9)
    assert "1 damaged lines" in open(write_report(str(run))).read()
    assert MetricsLog(str(run / ROWS)).cut_back(100) >= 2


def test_rows_without_a_checksum_are_those_of_older_versions(run):
    (run / ROWS).write_text(json.dumps({"images_seen": 5, "status": "ok", "due": {}, RI: 0.25}) + "\n")
    assert Results(str(run), None).rows[0][RI] == 0.25


def test_every_flipped_byte_of_the_decision_is_named_or_changes_nothing(run):
    results = Results(str(run), None, STOPPING)
    results.settle()
    content, right = (run / DECISION).read_bytes(), read_decision(str(run))
    assert right["best_images"] == 300
    for at in range(0, len(content), 7):
        bad = bytearray(content)
        bad[at] ^= 4
        (run / DECISION).write_bytes(bytes(bad))
        try:
            found = read_decision(str(run))
            assert {k: found.get(k) for k in right} == right
        except UserError as e:
            assert DECISION in str(e) and "damaged" in str(e)
    (run / DECISION).write_bytes(content[:50])
    assert "early_stopping.json" in open(write_report(str(run))).read()
    assert results.settle().best_images == 300 and read_decision(str(run))["best_images"] == 300


@pytest.mark.parametrize("content", [b"[]", b"\xff", b"", b'{"best_images": "many"}', b"3"])
def test_what_is_no_decision_is_named(run, content):
    (run / DECISION).write_bytes(content)
    with pytest.raises(UserError, match=r"damaged.*early_stopping\.json"):
        read_decision(str(run))


@pytest.mark.parametrize("content", [b"[]", b"\xff", b"{}", b'{"time": "now"}'])
def test_a_damaged_sign_of_life_is_none(run, content):
    (run / "robustness").mkdir()
    (run / "robustness" / "evaluator.json").write_bytes(content)
    assert not has_live_evaluator(str(run)) and Results(str(run), None).claim("me")


def test_a_flipped_byte_of_an_embedding_is_named_and_the_report_is_written(run):
    data = cohort(slides=2, patches=4)
    dataset = open_dataset("mine", data.write(run / "m.csv"))
    folder = str(run / "robustness" / "embeddings")
    path = save_embedding(folder, dataset, embed(data.x, "pca"), 300)
    content, right = open(path, "rb").read(), load_embedding(folder, "mine", 300)
    for at in range(4, len(content), 97):
        bad = bytearray(content)
        bad[at] ^= 16
        open(path, "wb").write(bytes(bad))
        try:
            np.testing.assert_array_equal(load_embedding(folder, "mine", 300).embedding.points, right.embedding.points)
        except UserError as e:
            assert "mine-img000000000300.parquet" in str(e)
    open(path, "wb").write(content[: len(content) // 2])
    assert "invalid or damaged embedding" in open(write_report(str(run))).read()
