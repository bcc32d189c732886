"""The checks of what becomes of volumes, lines 7 and 9 to 11: transforms, two views, pictures, the pipeline.

The pipeline runs in this process, on a CPU, with a tiny model unless the config's own is asked for. Not here: the data
itself (oct.checklist.data_lines), masks (oct.checklist.mask_lines).
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from typing import Any

import numpy as np

from oct.checklist.lines import Check, Fault, Seen
from oct.config import ModelConfig, RunConfig, resolve
from oct.indexing.index import DUPLICATE, index_volumes, mark_duplicates
from oct.indexing.index_file import make_index, write_index
from oct.indexing.manifest import Manifest, ManifestRow
from oct.masks import MaskSampler
from oct.pictures.samples import Origin, augment, read_sample
from pathray.data.order import rng
from pathray.store.storage import Storage
from pathray.urls import public

PICTURES = ("volume.png", "masks.png")


def look_at_transforms(seen: Seen) -> str:
    """Line 7: augmentation gives finite values of the grid's shape, and from the same draws the same."""
    _, _, sampled = seen.need_volumes()[0]
    first, again = augment(seen.config, sampled, 0), augment(seen.config, sampled, 0)
    if first.shape != sampled.image.shape or not np.isfinite(first).all():
        raise Fault(f"shape {first.shape}, finite {np.isfinite(first).mean():.1%}, expected {sampled.image.shape}, all")
    if not np.array_equal(first, again):
        raise Fault("the same draws gave two different volumes")
    box = sampled.image[tuple(slice(begin, end) for begin, end in sampled.inside)]
    if int(np.ptp(box)) == 0:
        raise Fault(f"the volume has no content: every voxel is {int(box.flat[0])}")
    inside = first[first != 0]
    shape = "×".join(map(str, first.shape))
    return (
        f"float32 {shape}, mean {inside.mean():.2f}, std {inside.std():.2f} over {inside.size / first.size:.1%} image"
    )


def look_at_views(seen: Seen) -> str:
    """Line 9: context and targets are tokens of one augmented volume; other draws give another volume."""
    import torch

    _, _, sampled = seen.need_volumes()[0]
    parts = _recipe(seen)
    micro = {**_unit(seen, 0, sampled), "image": sampled.image, "inside": sampled.inside}
    batch = {name: torch.from_numpy(np.stack([value])) for name, value in micro.items()}
    prepared = parts.prepare(batch, _progress())
    images = [name for name, value in prepared.items() if getattr(value, "ndim", 0) == 5]
    if images != ["image"]:
        raise Fault(f"the encoders get {len(images)} volumes, {images}, expected one")
    if not np.array_equal(prepared["image"][0, 0].numpy(), augment(seen.config, sampled, 0)):
        raise Fault("the recipe's volume is not the one that line 7 augmented with the same draws")
    if _is_random(seen.config) and np.array_equal(augment(seen.config, sampled, 1), augment(seen.config, sampled, 0)):
        raise Fault("the draws of another position gave the same volume")
    context, target = prepared["context_0"].shape[1], prepared["target_0"].shape[1]
    return f"one augmented volume for both views: {context:,} context and {target:,} target tokens of it"


def draw_pictures(seen: Seen) -> str:
    """Line 10: a sample volume is drawn, with its masks."""
    from oct.pictures.mask_slides import draw_masks_slide
    from oct.pictures.slides import draw_states, png_bytes

    origin, _, _ = seen.need_volumes()[0]
    sample, store = read_sample(seen.config, origin, 0), Storage.of(seen.output_dir)
    states = draw_states(sample, seen.config)
    for name, picture in zip(PICTURES, (states, draw_masks_slide(sample, seen.config)), strict=True):
        store.write_bytes(name, png_bytes(picture))
    flat = [i + 1 for i, plane in enumerate(sample.as_trained.b_scans) if float(plane.greys.std()) == 0]
    if len(flat) == len(sample.as_trained.b_scans):
        raise Fault("every B-scan that is drawn has one grey")
    height, width, _ = states.shape
    return f"{public(store.join(PICTURES[0]))} ({width}×{height}) and {PICTURES[1]}: look at them"


def run_pipeline(seen: Seen) -> str:
    """Line 11: plan, stream, augmentation, masks, one training step's forward and backward pass."""
    import torch

    from oct.assembly import assemble
    from oct.plan import build_plan
    from pathray.data.share import Share
    from pathray.run.batches import local

    origins = [origin for origin, _, _ in seen.need_volumes()]
    with tempfile.TemporaryDirectory() as folder:
        index = _write_small_index(origins, f"{folder}/volumes.parquet")
        plan = build_plan(index, f"{folder}/plan")
        config = small_run(seen, index, plan.rows)
        parts, settings = assemble(config, plan, 1), config.optimization
        batch_size = int(settings.global_batch or 0)
        batch = next(iter(local(parts, plan, Share(0, batch_size, batch_size, batch_size, 0, 1))))
        if batch["corrupt"]:
            raise Fault(f"{batch['corrupt']} volumes of the batch had to be replaced: {batch['faults'][0]}")
        tensors = {k: torch.from_numpy(v) for k, v in batch.items() if isinstance(v, np.ndarray)}
        loss = parts.recipe.loss("model", parts.recipe.prepare(tensors, _progress()), _progress())
        loss.sum.backward()  # type: ignore[no-untyped-call]
    grads = [p.grad for _, p in parts.recipe.params["model"] if p.grad is not None]
    norm = float(torch.stack([g.norm() for g in grads]).norm()) if grads else 0.0
    value = float(loss.sum.detach() / loss.weight)
    if not (math.isfinite(value) and math.isfinite(norm) and norm > 0):
        raise Fault(f"loss {value:g}, gradient {norm:g}: expected finite values, and a gradient > 0")
    shape = "×".join(map(str, batch["image"].shape))
    return f"a batch of {shape} through the stream; {config.model.name}: loss {value:.3f}, gradient norm {norm:.3g}"


def tiny_model(config: RunConfig) -> ModelConfig:
    """The config's model with the smallest encoder and predictor, on the same tokens."""
    return replace(config.model, name="vit_micro", pred_dim=96, pred_depth=1, pred_heads=0, regulariser="none")


def small_run(seen: Seen, index: str, rows: int) -> RunConfig:
    """The resolved config of a run of one step over `rows` volumes of `index`, on a CPU, with a tiny model unless
    `full_model`."""
    config, batch = seen.config, min(2, rows)
    model = config.model if seen.full_model else tiny_model(config)
    optimization = replace(
        config.optimization, total_images=2 * batch, global_batch=batch, micro_batch=batch, warmup=batch
    )
    return resolve(
        replace(
            config,
            data=replace(config.data, index=index, manifest=None, split_file=None, devices=[], threads=1),
            model=model,
            optimization=optimization,
            tuning=replace(config.tuning, enable=False),
            scaling=replace(config.scaling, accelerator="cpu", workers=1),
        ),
        1,
        rows,
    )


def _write_small_index(origins: list[Origin], path: str) -> str:
    rows = [
        ManifestRow(i, o.person, o.path, region=o.region, laterality=o.laterality, spacing_mm=o.spacing_mm)
        for i, o in enumerate(origins, start=1)
    ]
    root = origins[0].url.removesuffix(f"/{origins[0].path}")
    index = make_index(path, root, mark_duplicates(list(index_volumes(Manifest(path, root, tuple(rows))))))
    if lost := [row for row in index.table.to_pylist() if row["exclusion"] not in ("", DUPLICATE)]:
        raise Fault(f"{lost[0]['path']} was read in line 5, and is {lost[0]['exclusion']} now: {lost[0]['detail']}")
    write_index(index)
    return path


def _unit(seen: Seen, position: int, sampled: Any) -> dict[str, Any]:
    from oct.augment import count_draws

    seed = seen.config.data.seed
    draws = rng(seed, "augment", position, 0).random(count_draws(seen.config), np.float32)
    return {"draws": draws, **MaskSampler.of(seen.config).sample(rng(seed, "masks", position, 0))}


def _recipe(seen: Seen) -> Any:
    from oct.recipe import OctRecipe

    return OctRecipe(replace(seen.config, model=tiny_model(seen.config)))


def _progress() -> Any:
    from pathray.train.recipe import Progress

    return Progress(0, 2, 1)


def _is_random(config: RunConfig) -> bool:
    a = config.augment
    return bool(a.flip_lr or a.flip_slow or a.degrees or a.translate or a.scale or a.noise or a.crop[0] < 1)


TRANSFORMS = Check("transforms", look_at_transforms, "compare `augment` with the volume's size on the grid")
VIEWS = Check("two views", look_at_views, "report it: both views must be of one augmented volume")
DRAWN = Check("volumes drawn", draw_pictures, "set output_dir to a folder that can be written")
PIPELINE = Check("pipeline end to end", run_pipeline, "see lines 5 to 9; for less memory, a smaller data.image_size")
