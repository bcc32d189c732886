"""What a row of metrics is made of, and what the science names in it."""

from types import SimpleNamespace

from pathray.device import Device
from pathray.run.failure import SharedFailure
from pathray.run.tick_log import TickLog
from pathray.store.metrics_log import MetricsLog
from pathray.store.storage import Storage


def test_passes_over_the_units_have_the_name_that_the_science_gives_them(tmp_path):
    store, plan = Storage.of(tmp_path), SimpleNamespace(rows=16)
    own = TickLog(store, Device.of("cpu"), plan, None, SharedFailure(0, "run"), "anchor_passes_seen")
    counts = {"end": None, "images_seen": 24, "step": 3, "digests": {"positions": "0:24"}}
    tick = SimpleNamespace(**counts, metrics={"loss": 0.5}, validation={"r": 0.25})
    own.write(tick, SimpleNamespace(figures=dict))
    own.metrics.flush()
    (row,) = MetricsLog(store.join("metrics.jsonl")).read()
    expected = {"images_seen": 24, "step": 3, "anchor_passes_seen": 1.5, "loss": 0.5, "val/r": 0.25}
    assert {name: row[name] for name in expected} == expected and "passes_seen" not in row
    assert row["positions"] == "0:24"
