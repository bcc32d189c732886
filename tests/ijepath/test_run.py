"""From a manifest to trained weights in one process, without Ray: it learns from slides, and resumes to the bit."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from ijepath.assembly import assemble
from ijepath.config import CONFIGS_DIR, GROUPS, RunConfig, resolve_global_batch
from ijepath.profile import Profile
from pathray.config.load import load_config
from pathray.data.plan import Plan
from pathray.data.share import Lookup, rank_rows
from pathray.data.stream import stream_batches
from pathray.device import Device
from pathray.nn.vit import PRESETS
from pathray.train.loop import TrainState, run
from tests.builders.anchor_catalog import planned
from tests.builders.cohort import speckled_cohort

KEYS = (
    "data.context_fov_um=96", "data.target_fov_um=32", "data.targets_per_context=2", "data.min_tissue_fraction=0.1",
    "data.anchor_stride_fraction=0.25", "data.threads=1", "mask.min_keep=4", "data.target_margin_um=4",
    "model.name=vit_tiny", "model.pred_depth=1", "model.pred_emb_dim=48", "model.drop_path=0.1",
    "optimization.total_images_budget=48", "optimization.global_batch=8", "optimization.lr=2e-3",
)  # fmt: skip


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setitem(PRESETS, "vit_tiny", {"dim": 48, "depth": 2, "heads": 3})


def config(*argv: str) -> RunConfig:
    loaded = load_config(RunConfig, (*KEYS, *argv), configs_dir=CONFIGS_DIR, groups=GROUPS).config
    return resolve_global_batch(loaded, 1)


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    """Two speckled slides of 0.5 mpp, indexed, anchored, planned."""
    folder: Path = tmp_path_factory.mktemp("slides")
    data = config().data
    profile = Profile(**{f.name: getattr(data, f.name) for f in fields(Profile)})
    return planned(folder, speckled_cohort(folder), profile)


def train(plan: Plan, run_config: RunConfig, *, stop_at: int | None = None, state: dict | None = None):
    """Ticks of a run (to its end, or to `stop_at` images), its state, and every position's boxes."""
    torch.set_num_threads(1)
    parts, seen = assemble(run_config, plan, 1), {}
    lookup, device = Lookup(plan, parts.order), Device.of("cpu")

    def batches(start):
        settings = parts.settings
        rows = rank_rows(lookup, start, settings.total_images, settings.global_batch, 0, 1, settings.micro_batch)
        for batch in stream_batches(rows, parts.reader, lookup, parts.decode):
            batch.pop("faults")
            seen.update(zip(batch["position"].tolist(), (b.tobytes() for b in batch["boxes"]), strict=True))
            yield batch

    held = TrainState(parts.recipe, parts.settings, device)
    if state is not None:
        held.load(*state)
    ticks = []
    for tick in run(parts.recipe, batches, parts.settings, device=device, state=held):
        ticks.append(tick)
        if tick.images_seen == stop_at:
            break
    tensors = {k: v.clone() for k, v in held.tensors().items()}
    return ticks, (tensors, held.meta()), {p: b for p, b in seen.items() if p < held.images_seen}


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_on_slides_ends_at_its_budget_with_the_metrics_of_the_readme(plan):
    ticks, _, seen = train(plan, config("training.log_every=16"))
    assert [t.images_seen for t in ticks] == list(range(8, 49, 8)) and ticks[-1].end == "budget"
    assert sorted(seen) == list(range(48)) and len(set(seen.values())) > 40
    metrics = ticks[-1].metrics
    wanted = ("loss", "context_keep_tokens", "target_predict_tokens", "target_std", "target_rankme", "grad_norm")
    assert [k for k in wanted if not any(k in name for name in metrics)] == []
    assert all(np.isfinite(v) for v in metrics.values())


@pytest.mark.parametrize(("stop_at", "words"), [(8, ()), (32, ()), (24, ("model.regulariser=sigreg",))])
def test_stop_and_resume_equals_the_uninterrupted_run_to_the_bit(plan, stop_at, words):
    _, (whole, _), all_boxes = train(plan, config(*words))
    _, state, first = train(plan, config(*words), stop_at=stop_at)
    _, (resumed, _), rest = train(plan, config(*words), state=state)
    assert equal(whole, resumed)
    assert first | rest == all_boxes and not first.keys() & rest.keys()


def test_another_micro_batch_reads_the_same_units_and_learns_nearly_the_same(plan):
    _, (one, _), boxes = train(plan, config("model.drop_path=0"))
    _, (two, _), same = train(plan, config("model.drop_path=0", "optimization.micro_batch=2"))
    assert boxes == same
    for name in one:
        if name.startswith("model."):
            assert torch.allclose(one[name].float(), two[name].float(), atol=2e-3), name


def test_options_that_change_shapes_run_through_the_loop(plan):
    keys = (
        "scales.same_resolution_ratio=0.4",
        "scales.reverse_ratio=0.3",
        "mask.outside_targets=1",
        "model.loss=tokens",
    )
    ticks, _, _ = train(plan, config(*keys, "augment.stain=0.1", "augment.scanner=0.3", "data.spacing_tolerance=0.5"))
    assert ticks[-1].end == "budget" and np.isfinite(ticks[-1].metrics["loss"])


def test_a_site_head_trains_on_the_manifests_column(plan):
    ticks, _, _ = train(plan, config("site.adversarial=true", "site.key=organ"))
    assert any("site_accuracy" in name for name in ticks[-1].metrics)


def test_a_regulariser_gathers_the_rows_of_all_ranks_and_logs_its_terms(plan):
    run_config = config("model.regulariser=vicreg")
    regulariser = assemble(run_config, plan, 1).recipe.modules["regulariser"]
    assert regulariser.gather.__func__ is Device.gather_sum_grad
    metrics = train(plan, run_config)[0][-1].metrics
    assert all(np.isfinite(metrics[name]) for name in ("loss_jepa", "loss_spread", "loss_invariance"))


def test_the_settings_of_a_regulariser_may_stay_when_it_is_switched_off(plan):
    off = config("model.regulariser=none", "model.regulariser_weight=0.3", "model.projection_dim=8")
    assert assemble(off, plan, 1).identity == assemble(config(), plan, 1).identity
    assert equal(train(plan, off, stop_at=16)[1][0], train(plan, config(), stop_at=16)[1][0])
