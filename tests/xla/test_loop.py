"""The loop on XLA, SPMD over four devices: the CPU's numbers, no new graphs after the first steps, the same resumes."""

import numpy as np
import pytest
import torch

from pathray.device import Device
from pathray.errors import UserError
from pathray.optim.schedules import Schedule, constant
from pathray.store import checkpoint
from pathray.train.loop import TrainState
from pathray.train.settings import PhaseOptim
from tests.builders import small
from tests.builders.small import losses, train
from tests.xla import tiny

STEPS = small.STEPS


def run_small(plan, device, **how):
    parts = small.assemble(small.config(), plan, 1)
    return train(parts.recipe, small.stream(parts, plan), parts.settings, device, **how)


def run_tiny(device, settings, recipe, **how):
    return train(recipe, tiny.stream(settings), settings, device, **how)


@pytest.fixture(scope="module")
def whole(plan, xla):
    return run_small(plan, xla)


@pytest.fixture(scope="module")
def reference(plan, cpu):
    return run_small(plan, cpu)


def worst(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def settled(compilations):
    """Whether nothing is compiled after the third step."""
    return compilations[0] > 0 and len(set(compilations[2:])) == 1


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_eight_steps_of_ijepath_agree_with_a_cpu(whole, reference):
    ticks, _, (tensors, meta) = whole
    assert [t.step for t in ticks] == list(range(1, STEPS + 1)) and ticks[-1].end == "budget"
    assert meta["ran_on"]["kind"] == "xla" and meta["images_seen"] == STEPS * small.G
    np.testing.assert_allclose(losses(ticks), losses(reference[0]), atol=1e-4)
    assert max(losses(ticks)) - min(losses(ticks)) > 0.05, "it learned something to compare"
    assert worst(tensors, reference[2][0]) < 1e-4
    names = ("grad_norm", "target_rankme", "teacher_student_drift", "context_keep_tokens")
    for name in names:
        assert ticks[-1].metrics[name] == pytest.approx(reference[0][-1].metrics[name], rel=1e-3), name


def test_nothing_is_compiled_after_the_third_step(whole, record_property):
    ticks, compilations, _ = whole
    record_property("compilations", compilations)
    print(f"compilations of I-JEPATH after each step: {compilations}")
    assert settled(compilations), compilations
    assert [t.metrics["compilations"] for t in ticks[2:]] == compilations[2:]


def test_a_checkpoint_resumes_on_xla_to_the_bit_and_on_a_cpu_to_rounding(whole, reference, plan, xla, cpu, tmp_path):
    _, _, (tensors, meta) = run_small(plan, xla, stop_at=3)
    saved = checkpoint.save(str(tmp_path), "small-latest", tensors, meta)
    loaded = checkpoint.load(saved.path)
    before = xla.compile_count()
    ticks, _, (resumed, _) = run_small(plan, xla, state=loaded)
    assert [t.step for t in ticks] == list(range(4, STEPS + 1))
    assert equal(resumed, whole[2][0])
    assert xla.compile_count() - before <= 3, "a resumed run has the graphs of the first, but for the loading"

    parts = small.assemble(small.config(), plan, 1)
    state = TrainState(parts.recipe, parts.settings, cpu)
    state.load(*loaded)
    assert equal(checkpoint.cpu_copy(state.tensors()), loaded[0])
    _, _, (on_cpu, _) = run_small(plan, cpu, state=loaded)
    assert worst(on_cpu, reference[2][0]) < 1e-4


def test_a_checkpoint_of_a_cpu_goes_on_on_xla(reference, plan, xla, cpu):
    _, _, half = run_small(plan, cpu, stop_at=5)
    _, _, (tensors, _) = run_small(plan, xla, state=half)
    assert worst(tensors, reference[2][0]) < 1e-4


def test_rates_that_touch_0_and_1_or_each_other_are_no_new_graphs(xla, cpu):
    settings = tiny.settings()
    ticks, compilations, (tensors, _) = run_tiny(xla, settings, tiny.Tiny())
    rates = [(t.metrics["lr"], t.metrics["wd"]) for t in ticks]
    assert rates[0] == (0.0, 1.0) and rates[-1][0] == 0.0 and len(set(rates)) == STEPS
    assert settled(compilations), compilations
    assert worst(tensors, run_tiny(cpu, settings, tiny.Tiny())[2][0]) < 1e-4
    meeting = PhaseOptim(lr=constant(1e-2), weight_decay=Schedule("cosine", 1e-1, last=1e-2), clip=1.0)
    before = xla.compile_count()
    run_tiny(xla, tiny.settings(optim={"model": meeting}), tiny.Tiny())
    assert xla.compile_count() == before, "rates are data: other schedules are the same graphs"


def test_dropout_and_stochastic_depth_draw_anew_each_step_without_new_graphs(xla):
    settings = tiny.settings()

    def recipe():
        return tiny.Tiny(dropout=0.5, drop_path=0.5)

    ticks, compilations, (tensors, _) = run_tiny(xla, settings, recipe())
    assert settled(compilations), compilations
    kept = [t.metrics["kept"] for t in ticks]
    assert len(set(kept)) > 4 and 0.3 < np.mean(kept) < 0.7, kept
    again = run_tiny(xla, settings, recipe())
    assert equal(tensors, again[2][0]) and [t.metrics["kept"] for t in again[0]] == kept
    half = run_tiny(xla, settings, recipe(), stop_at=4)[2]
    assert equal(tensors, run_tiny(xla, settings, recipe(), state=half)[2][0])
    other = run_tiny(xla, tiny.settings(seed=4), recipe())
    assert [t.metrics["kept"] for t in other[0]] != kept


@pytest.mark.parametrize("position", [3 * tiny.G, 3 * tiny.G + tiny.G - 1])
def test_a_nan_on_one_device_skips_the_step_on_all_without_a_new_graph(xla, cpu, position):
    settings = tiny.settings()
    ticks, compilations, (tensors, _) = run_tiny(xla, settings, tiny.Tiny(poison=[position]))
    assert settled(compilations), compilations
    assert ticks[3].metrics["bad_steps"] == 1 and ticks[3].metrics["last_bad_step"] == 3
    assert ticks[-1].end == "budget" and tensors["optimizer.model.steps"] == STEPS - 1
    bad = tiny.Tiny(poison=[position])
    skipped = run_tiny(xla, settings, bad, stop_at=4)[2][0]
    before = run_tiny(xla, settings, tiny.Tiny(poison=[position]), stop_at=3)[2][0]
    trained = [n for n in before if n.startswith(("model.student", "optimizer"))]
    assert trained and all(torch.equal(before[n], skipped[n]) for n in trained)
    assert worst(tensors, run_tiny(cpu, settings, tiny.Tiny(poison=[position]))[2][0]) < 1e-4


def test_two_phases_with_batch_norm_agree_with_a_cpu(xla, cpu):
    settings = tiny.two_phases()
    _, compilations, (tensors, _) = run_tiny(xla, settings, tiny.TwoPhases())
    assert settled(compilations), compilations
    expected = run_tiny(cpu, settings, tiny.TwoPhases())[2][0]
    variance = "model.student.1.running_var"
    found, wanted = tensors.pop(variance), expected.pop(variance)
    assert worst(tensors, expected) < 1e-4
    # torch_xla's running variance is of the batch, not Bessel-corrected like torch's
    start = 0.9 ** int(expected["model.student.1.num_batches_tracked"])
    np.testing.assert_allclose(found - start, (wanted - start) * (tiny.MICRO - 1) / tiny.MICRO, atol=1e-4)


def test_rare_cadences_compile_at_their_first_turn_only(xla):
    settings = tiny.settings(total_images=14 * tiny.G, log_every=3 * tiny.G, save_every=4 * tiny.G, poll_every_steps=5)
    recipe, compilations = tiny.Tiny(), []
    state = TrainState(recipe, settings, xla)
    from pathray.train.loop import run

    for tick in run(recipe, tiny.stream(settings), settings, device=xla, state=state):
        if tick.save:
            checkpoint.cpu_copy(tick.state.tensors())
        compilations.append(xla.compile_count())
    assert len(set(compilations[4:])) == 1, compilations


def test_bfloat16_trains_close_to_float32_and_keeps_float32_weights(xla):
    full = losses(run_tiny(xla, tiny.settings(), tiny.Tiny())[0])
    ticks, compilations, (tensors, _) = run_tiny(xla, tiny.settings(precision="bf16"), tiny.Tiny())
    assert losses(ticks) == pytest.approx(full, rel=0.05) and losses(ticks) != full
    assert settled(compilations), compilations
    assert {t.dtype for n, t in tensors.items() if n.startswith("model")} == {torch.float32}


def test_a_micro_batch_that_the_devices_cannot_share_is_refused(xla):
    settings = tiny.settings(micro_batch=2)
    with pytest.raises(UserError, match="divide evenly") as error:
        run_tiny(xla, settings, tiny.Tiny())
    assert error.value.where["key"] == "micro_batch"


def test_host_numbers_are_summed_over_hosts_once(xla):
    assert xla.flags([3, 1]).tolist() == [3.0, 1.0]


def test_auto_finds_xla_where_pjrt_is_told_of_a_device(xla):
    assert Device.of("auto").kind == "xla"
