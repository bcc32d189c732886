"""The recipe: what each phase trains, what it refuses, and that the number of ranks is not in its gradient."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from adios.augment import crops, view
from adios.config import OptimizationConfig, StudentConfig
from adios.recipe import MASK, STUDENT, AdiosRecipe, advice, apply_masks
from adios.settings import loop_settings, phase_optim
from pathray.device import Device
from pathray.errors import UserError
from pathray.train.loop import run
from pathray.train.recipe import Progress
from pathray.train.state import TrainState
from tests.builders.contrast import by_hand
from tests.builders.runs import adios_ranks
from tests.builders.runs.adios_run import batch, config, stream
from tests.builders.runs.ranks import run_ranks
from tests.builders.runs.weights import state_hash

CPU = Device.of("cpu")
G = 4


def prepared(recipe: AdiosRecipe, first: int = 0, count: int = G) -> dict[str, torch.Tensor]:
    arrays = {k: torch.from_numpy(v) for k, v in batch(recipe.config, first, count).items() if k != "corrupt"}
    return recipe.prepare(arrays, progress())


def progress(step: int = 0, total: int = 6, batch_size: int = G) -> Progress:
    return Progress(step, total, batch_size)


@pytest.mark.parametrize("kind", ["vit_unet", "adios"])
def test_what_a_phase_does_not_train_gets_no_gradient(kind):
    recipe = AdiosRecipe(config(mask_model_type=kind, num_masks=2))
    micro = prepared(recipe)
    for phase, trained, frozen in (
        (STUDENT, recipe.student, recipe.mask_model),
        (MASK, recipe.mask_model, recipe.student),
    ):
        recipe.modules.zero_grad()
        recipe.loss(phase, micro, progress()).sum.backward()
        assert all(p.grad is None for p in frozen.parameters()), phase
        moved = [float(p.grad.abs().max()) > 0 for p in trained.parameters() if p.grad is not None]
        assert np.mean(moved) > 0.8, phase
        assert trained.training and not frozen.training, "what is frozen drops nothing"


def test_the_student_descends_what_the_mask_model_ascends():
    undropped = StudentConfig(head=[16, 8], drop_path=0.0)
    recipe = AdiosRecipe(config(alpha_sparsity=0.0, crops_per_mask=0, student=undropped))
    micro = prepared(recipe)
    student, mask = (float(recipe.loss(phase, micro, progress()).sum.detach()) for phase in (STUDENT, MASK))
    assert student > 0 and mask == pytest.approx(-student, rel=1e-5)


def test_the_penalty_enters_the_mask_models_loss_with_its_weight():
    recipe = AdiosRecipe(config(alpha_sparsity=0.7, sparsity_penalty_type="sinh_squared"))
    loss = recipe.loss(MASK, prepared(recipe), progress())
    expected = 0.7 * loss.metrics["sparsity_penalty"] - loss.metrics["loss_adversarial"]
    assert float(loss.sum.detach() / loss.weight) == pytest.approx(float(expected), rel=1e-5)


def double_recipe() -> AdiosRecipe:
    """Two masks and two crops of each in float64, with a target of sparsity; nothing is dropped."""
    student = StudentConfig(head=[16, 8], drop_path=0.0, positions="sincos")
    made = config(num_masks=2, crops_per_mask=2, sparsity_target=0.3, alpha_sparsity=0.7, student=student)
    recipe = AdiosRecipe(made)
    recipe.modules.double()
    return recipe


def views_one_by_one(recipe: AdiosRecipe, micro: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Masks `[G, N, H, W]` and unit vectors of views `a` `[G, D]`, `masked` `[N, G, D]` and `crops` `[N·K, G, D]`, with
    each image alone in a forward pass of its own."""

    def z(image: torch.Tensor) -> torch.Tensor:
        return recipe.student.embed(recipe.student.vit(image)[:, 0])[0]

    masks, a, whole, parts = [], [], [], []
    for image, other, places in zip(micro["a"], micro["b"], micro["crops"], strict=True):
        masks.append(recipe.mask_model.masks(other[None])[0])
        seen = [(other * (1 - mask))[None] for mask in masks[-1]]
        a.append(z(image[None]))
        whole.append(torch.stack([z(x) for x in seen]))
        cut = [crops(seen[i // 2], place[None], 16) for i, place in enumerate(places)]
        parts.append(torch.stack([z(x) for x in cut]))
    found = {"masks": torch.stack(masks), "a": torch.stack(a)}
    found |= {"masked": torch.stack(whole, dim=1), "crops": torch.stack(parts, dim=1)}
    return {name: value.numpy() for name, value in found.items()}


@pytest.mark.parametrize("phase", [STUDENT, MASK])
def test_a_phases_loss_is_the_papers_of_all_its_views_taken_one_by_one(phase):
    recipe = double_recipe()
    micro = {name: value.double() for name, value in prepared(recipe).items()}
    where = progress(3, 10)
    loss = recipe.loss(phase, micro, where)
    with torch.no_grad():
        seen = views_one_by_one(recipe, micro)
    tau = float(np.float32(0.05 + 0.15 * (1 + np.cos(np.pi * 3 / 9)) / 2))
    whole, parts = (sum(by_hand(seen["a"], z, i, tau) for z in seen[k] for i in range(G)) for k in ("masked", "crops"))
    share = seen["masks"].mean(axis=(2, 3)) ** (np.log(0.5) / np.log(0.3))
    sparsity = (1 / (np.sin(np.pi * share) + 1e-10)).sum()
    expected = whole + parts if phase == STUDENT else 0.7 * sparsity - whole
    assert loss.sum.dtype == torch.float64 and float(loss.weight) == G
    assert float(loss.sum.detach()) == pytest.approx(float(expected), rel=1e-10)


def test_the_student_sees_whole_views_and_crops_as_one_packed_sequence():
    recipe = AdiosRecipe(config(num_masks=2, crops_per_mask=2))
    calls = []
    for block in recipe.student.vit.blocks:
        block.register_forward_hook(lambda _, given, out: calls.append((given[0].shape, given[2], out.shape)))
    recipe.loss(STUDENT, prepared(recipe), progress())
    whole, crop = 4 * 4 + 1 + 4, 2 * 2 + 1 + 4  # patches of 8 pixels, the class token, the registers
    lengths = [whole] * (G * 3) + [crop] * (G * 4)
    once = ((1, sum(lengths), 32), lengths, (1, sum(lengths), 32))
    assert calls == [once, once], "each of the two blocks runs once"


def test_a_mask_paints_the_mean_colour():
    images, masks = torch.randn(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    masks[:, 1, :2] = 1
    found = apply_masks(images, masks)
    assert found.shape == (3, 2, 3, 4, 4)
    assert torch.equal(found[0], images) and torch.equal(found[1, :, :, 2:], images[:, :, 2:])
    assert float(found[1, :, :, :2].abs().max()) == 0
    recipe = AdiosRecipe(config())
    mean = torch.tensor(recipe.config.data.mean).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert float(recipe._normalise(mean).abs().max()) < 1e-6


def test_one_view_is_contrasted_with_its_own_masked_self():
    two, one = (AdiosRecipe(config(single_view=single)) for single in (False, True))
    assert torch.equal(prepared(one)["a"], prepared(one)["b"])
    assert not torch.equal(prepared(two)["a"], prepared(two)["b"])
    assert torch.equal(prepared(two)["a"], prepared(one)["a"])


def test_one_view_is_made_once(monkeypatch):
    made = []
    monkeypatch.setattr("adios.recipe.view", lambda *given: (made.append(given[1]), view(*given))[1])
    for single, count in ((True, 1), (False, 2)):
        made.clear()
        prepared(AdiosRecipe(config(single_view=single)))
        assert len(made) == count


def test_views_and_crops_of_an_image_do_not_depend_on_its_batch_mates():
    recipe = AdiosRecipe(config(crops_per_mask=2))
    together, alone = prepared(recipe, 0, 4), prepared(recipe, 2, 1)
    for name in ("a", "b", "crops"):
        torch.testing.assert_close(together[name][2:3], alone[name], atol=1e-5, rtol=0)
    assert together["crops"].shape == (4, 6, 2, 3)
    flat = together["crops"].reshape(24, 6)
    assert float(torch.pdist(flat).min()) > 1e-3, "two crops of a batch lie alike"


def test_each_crop_shows_its_own_masked_view():
    recipe = AdiosRecipe(config(crops_per_mask=2, num_masks=2))
    shades = torch.arange(6.0).view(2, 3, 1, 1, 1).expand(2, 3, 3, 32, 32)  # [N, B]: n · 3 + b
    places = prepared(recipe, 0, 3)["crops"]
    found = recipe._crops(shades, places).mean(dim=(1, 2, 3))
    torch.testing.assert_close(found, torch.tensor([0.0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]))


def test_the_mask_model_is_trained_after_the_student_and_as_often_as_asked():
    often, seldom = (AdiosRecipe(config(mask_update_freq=n)) for n in (1, 3))
    assert [often.phases(s) for s in range(2)] == [(STUDENT, MASK)] * 2
    assert [len(seldom.phases(s)) for s in range(7)] == [1, 1, 2, 1, 1, 2, 1]


def test_the_temperature_begins_and_ends_where_it_should():
    recipe = AdiosRecipe(config())
    values = [recipe.temperature(progress(s, 100)) for s in range(100)]
    assert values[0] == 0.2 and values[-1] == 0.05 and values == sorted(values, reverse=True)
    assert values[33] == pytest.approx(0.05 + 0.15 * (1 + np.cos(np.pi * 33 / 99)) / 2)
    last = recipe.loss(STUDENT, prepared(recipe), progress(5, 6))
    assert float(last.metrics["temperature"]) == pytest.approx(0.05)


def test_rates_climb_from_nothing_fall_to_nothing_and_are_a_quarter_for_the_mask_model():
    run_config = config(total_iterations=1000, optimization=OptimizationConfig(warmup_iterations=100), lr=4e-4)
    settings = loop_settings(run_config, 1)
    student, mask = (settings.optim[phase].lr for phase in (STUDENT, MASK))
    assert [student(s, 1000) for s in (0, 50, 100)] == pytest.approx([0, 2e-4, 4e-4]) and student(999, 1000) == 0
    assert all(mask(s, 1000) == pytest.approx(student(s, 1000) / 4) for s in range(0, 1000, 7))
    assert settings.optim[STUDENT].clip == 1.0
    whole = phase_optim(config(total_iterations=300_000, optimization=OptimizationConfig()), 1.0)
    assert whole.lr.warmup == 10_000
    assert phase_optim(config(total_iterations=500, optimization=OptimizationConfig()), 1.0).lr.warmup == 50
    with pytest.raises(UserError, match="warmup_iterations.*1000"):
        loop_settings(config(total_iterations=900, optimization=OptimizationConfig(warmup_iterations=1000)), 1)


def test_accumulation_is_refused_because_it_would_change_the_loss():
    run_config = config()
    settings = replace(loop_settings(run_config, 1), micro_batch=2)

    def halves(start):
        for whole in stream(run_config)(start):
            for part in (slice(0, 2), slice(2, 4)):
                yield {name: value if name == "corrupt" else value[part] for name, value in whole.items()}

    with pytest.raises(UserError, match="micro_batch.*2 images at a time, global_batch 4"):
        next(iter(run(AdiosRecipe(run_config), halves, settings, device=CPU)))


def test_each_rank_of_many_has_its_part_of_one_gradient():
    """Without processes: every rank's loss over the gathered z, in one graph."""
    whole = adios_ranks.double_recipe()
    params = [p for _, p in whole.params[STUDENT]]
    where = Progress(0, 10, adios_ranks.G)
    everything = adios_ranks.prepared(whole, 0, adios_ranks.G)
    expected = torch.autograd.grad(whole.loss(STUDENT, everything, where).sum, params, allow_unused=True)
    for world in (2, 3, 6):
        share = adios_ranks.G // world
        parts = [{k: v[r * share : (r + 1) * share] for k, v in everything.items()} for r in range(world)]
        gathered: list[torch.Tensor] = []
        whole.gather = lambda z, to=gathered: (to.append(z), z)[1]
        for part in parts:
            whole.loss(STUDENT, part, replace(where, global_batch=share))
        total = torch.zeros((), dtype=torch.float64)
        for r, part in enumerate(parts):
            whole.rank = r
            whole.gather = lambda z, r=r, of=gathered: torch.cat([*of[:r], z, *of[r + 1 :]])
            total = total + whole.loss(STUDENT, part, where).sum
        whole.gather, whole.rank = lambda z: z, 0
        for a, b in zip(torch.autograd.grad(total, params, allow_unused=True), expected, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return {1: [adios_ranks.several(CPU)], 2: run_ranks(2, adios_ranks.several, folder)}


@pytest.mark.heavy  # two processes start
@pytest.mark.parametrize("phase", adios_ranks.PHASES)
def test_two_processes_have_the_gradient_of_one(ranks, phase):
    (one,), two = ranks[1], ranks[2]
    expected, loss = one["gradients"][phase]
    for rank in two:
        found, its_loss = rank["gradients"][phase]
        assert its_loss == pytest.approx(loss, rel=1e-9)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.heavy
@pytest.mark.parametrize("sync", ["flat", "overlap"])
def test_two_processes_train_as_one_does(ranks, sync):
    (one,), two = ranks[1], ranks[2]
    assert np.array_equal(two[0][sync]["weights"], two[1][sync]["weights"]), "ranks hold different weights"
    apart = np.abs(two[0][sync]["weights"] - one[sync]["weights"])
    assert apart.mean() < 1e-6 and apart.max() < 1e-4, "AdamW turns rounding of a gradient near 0 into a step"
    for name in ("loss", "loss/mask"):
        assert two[0][sync][name] == pytest.approx(one[sync][name], rel=1e-4)


OPTIMIZERS = {
    "adamw": {},
    "sgd with lars": {"optimizer_type": "sgd", "use_lars": True, "lr": 0.05},
    "a mask model every second step": {"mask_update_freq": 2, "mask_model_type": "adios"},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_stopped_run_goes_on_with_the_same_bits(name):
    run_config = config(student=StudentConfig(head=[16, 8], drop_path=0.3), **OPTIMIZERS[name])
    settings = loop_settings(run_config, 1)

    def train(stops: tuple[int, ...]) -> tuple[str, str]:
        tensors, meta, first = None, None, None
        for stop in (*stops, None):
            recipe = AdiosRecipe(run_config)
            state = TrainState(recipe, settings, CPU)
            first = first or state_hash(state.tensors())
            if tensors is not None:
                state.load(tensors, meta)
            wish = (lambda state=state, stop=stop: state.step + 1 >= stop) if stop else None
            for _ in run(recipe, stream(run_config), settings, device=CPU, state=state, stop=wish):
                pass
            tensors, meta = {k: v.clone() for k, v in state.tensors().items()}, state.meta()
        return first, state_hash(tensors)

    first, whole = train(())
    assert first != whole, "nothing was trained"
    assert train((2, 3)) == (first, whole)


def test_the_student_learns_to_tell_masked_images_apart():
    run_config = config(total_iterations=40, lr=3e-3, views=replace(config().views, scale=[0.9, 1.0], stain=0.0))
    settings = replace(loop_settings(run_config, 1), log_every=G)
    ticks = list(run(AdiosRecipe(run_config), stream(run_config), settings, device=CPU))
    first, last = ([t.metrics["loss_whole"] for t in part] for part in (ticks[:5], ticks[-5:]))
    chance = 3 * np.log(2 * G - 1)
    assert np.mean(first) == pytest.approx(chance, rel=0.05) and np.mean(last) < 0.8 * chance
    metrics = ticks[-1].metrics
    assert {"loss/student", "loss/mask", "lr/student", "lr/mask", "mask_mean/0", "mask_overlap"} <= metrics.keys()
    assert metrics["feature_rankme"] > 1 and metrics["feature_std"] > 0
    assert metrics["masked_rankme"] > 1 and metrics["masked_std"] > 0
    assert ticks[0].metrics["explained"] < ticks[-1].metrics["explained"] < 1
    assert metrics["temperature"] == pytest.approx(0.05)


def test_collapse_is_named_with_what_to_change():
    assert advice({"feature_std": 0.5, "feature_rankme": 30.0}, 64) == []
    flat, narrow = advice({"feature_std": 0.001, "feature_rankme": 1.5}, 64)
    assert "feature_std 0.0010" in flat and "lr" in flat and "feature_rankme 1.5" in narrow
    assert len(advice({"feature_std": 0.5, "feature_rankme": 1.5}, 8)) == 0, "few images span few dimensions"


def test_a_fresh_encoder_is_not_said_to_collapse_before_the_warm_up_is_over(caplog):
    recipe = AdiosRecipe(config())
    for step, said in ((2, False), (3, True)):
        recipe.loss(STUDENT, prepared(recipe), progress(step))
        assert recipe.signals()["feature_std"] < 0.02
        assert ("features collapse" in caplog.text) == said
