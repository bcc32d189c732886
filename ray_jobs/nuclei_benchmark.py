"""ADIOS checkpoints and annotated nuclei → Dice, IoU and PQ of their masks and of Otsu's threshold, with pictures.

    python -m ray_jobs.nuclei_benchmark run=outputs/adios data=dsb2018_brightfield output=outputs/nuclei

`run` is an ADIOS run or one mask model. `data` has `images/` (PNG, JPEG, TIFF, BMP) and `masks/` (not JPEG) with equal
names; the masks either all have a number for each nucleus, or are all binary (0 and 255). The channel for nuclei is
chosen on `train_fraction` of the images, and all figures are computed on the others. `oracle_…` chooses the channel of
each image by its annotation and is only an upper bound. Checkpoints that already have results are kept. Needs no Ray.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pathray
from pathray.config.load import MISSING, Loaded, placement
from pathray.errors import MissingFile, UserError
from pathray.run.layout import CHECKPOINTS
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell

if TYPE_CHECKING:
    from adios.nuclei.agreement import Pair

log = logging.getLogger(__name__)
RESULTS, PLOT, EXAMPLES = "results.json", "plot.png", "examples.png"


@dataclass
class NucleiConfig:
    run: str = MISSING  # folder or URL of a run, a mask model (RUN/mask_model) or one checkpoint
    data: str = MISSING  # folder or URL with images/ and masks/
    output: str = MISSING  # folder or URL
    train_fraction: float = 0.3  # share of the images on which the channel is chosen
    seed: int = 42  # of that split and of the intervals
    scale: float = 1.0  # factor to resize images first: 0.5 for models trained at half the resolution
    resamples: int = 2000
    accelerator: str = placement("auto")  # auto | cpu | cuda
    batch_size: int = placement(8)

    def __post_init__(self) -> None:
        if not 0 < self.train_fraction < 1:
            found = self.train_fraction
            message = "train_fraction must be between 0 and 1"
            raise UserError(message, key="train_fraction", found=found, expected="between 0 and 1")
        for key in ("scale", "resamples", "batch_size"):
            if getattr(self, key) <= 0:
                raise UserError(f"{key} must be > 0", key=key, found=getattr(self, key), expected="> 0")


def main(loaded: Loaded[NucleiConfig]) -> Outputs | None:
    from adios.nuclei.agreement import floors, read_pairs, split
    from adios.nuclei.figures import draw_examples, draw_results
    from adios.nuclei.segmentation import summary
    from pathray.reports.progress import Progress
    from pathray.store.storage import Storage

    config = loaded.config
    pairs = read_pairs(config.data)
    train, test = split(pairs, config.train_fraction, config.seed)
    models = mask_models(config.run)
    store, own = Storage.of(config.output), settings(config, pairs)
    known = read_results(store, own)
    if loaded.dry_run:
        log.info("%d checkpoints; %d images to choose the channel, %d to evaluate", len(models), len(train), len(test))
        return tell((len(models), "checkpoints"), (len(pairs), "images"))
    floor = floors([pairs[i] for i in test])
    found: dict[str, Any] = {
        "settings": own,
        "choosing": [pairs[i].name for i in train],
        "judging": [pairs[i].name for i in test],
        **{name: summary(scores, resamples=config.resamples, seed=config.seed) for name, scores in floor.items()},
        "checkpoints": [],
    }
    examples: list[Any] = []
    with Progress(len(models) * len(pairs), "nuclei", "images") as progress:
        for i, path in enumerate(models):
            row = known.get(path)
            if row is None or i == len(models) - 1:  # the last one's masks are drawn
                row, examples = evaluate_model(config, path, pairs, (train, test), floor["otsu"], progress.update)
            else:
                progress.update(len(pairs))
            found["checkpoints"].append(row)
            store.write_bytes(RESULTS, json.dumps(found, indent=1).encode())
            log.info(
                "%s images: Dice %.3f, PQ %.3f (oracle %.3f, %.3f), mask %d by %s",
                row["images_seen"], row["dice"], row["pq"], row["oracle_dice"], row["oracle_pq"], row["channel"] + 1,
                row["rule"],
            )  # fmt: skip
    store.write_bytes(PLOT, draw_results(found))
    store.write_bytes(EXAMPLES, draw_examples(examples))
    return Outputs({path.partition(".")[0]: store.join(path) for path in (RESULTS, PLOT, EXAMPLES)})


def settings(config: NucleiConfig, pairs: list[Pair]) -> dict[str, Any]:
    """The settings that all results in one file must share."""
    import hashlib

    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(pair.name.encode() + pair.image.tobytes() + pair.labels.tobytes())
    own = {key: getattr(config, key) for key in ("train_fraction", "seed", "scale", "resamples")}
    return {**own, "data": digest.hexdigest()}


def read_results(store: Any, wanted: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows by checkpoint of an earlier start with the same settings and images; empty if they differ. UserError for a
    file that this benchmark did not write, so that it is not overwritten."""
    from adios.nuclei.segmentation import METRICS

    try:
        text = store.read_bytes(RESULTS)
    except MissingFile:
        return {}
    figures = {"path", "images_seen", "step", "channel", "rule", *METRICS, *(f"oracle_{name}" for name in METRICS)}
    try:
        found = json.loads(text)
        rows = {row["path"]: row for row in found["checkpoints"]}
        ours = found["settings"].keys() == wanted.keys() and all(figures <= row.keys() for row in rows.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        ours = False
    if not ours:
        expected = "another output, or move this file away"
        raise UserError(
            "the file does not contain results of this benchmark",
            file=store.join(RESULTS),
            key="output",
            found=text[:60],
            expected=expected,
        )
    return rows if found["settings"] == wanted else {}


def mask_models(run: str) -> list[str]:
    """The mask models below `run`, by images seen: one per checkpoint, else the exported one. MissingFile if none."""
    from adios.artifact import DESCRIPTION, FOLDER
    from pathray.store.committed import COMMITTED, list_committed
    from pathray.store.storage import Storage

    store = Storage.of(run)
    if store.exists(DESCRIPTION) or store.exists(COMMITTED):
        return [store.url]
    by_images: dict[int, str] = {}
    for checkpoint in list_committed(store.join(CHECKPOINTS)):
        if checkpoint.meta.get("science") == "adios":
            by_images.setdefault(int(checkpoint.meta["images_seen"]), checkpoint.path)
    found = [path for _, path in sorted(by_images.items())]
    if not found and store.exists(f"{FOLDER}/{DESCRIPTION}"):
        found = [store.join(FOLDER)]
    if not found:
        raise MissingFile("no mask model found", file=store.url, key="run", expected="an ADIOS run, or mask_model/")
    return found


def evaluate_model(
    config: NucleiConfig,
    path: str,
    pairs: list[Pair],
    parts: tuple[list[int], list[int]],
    otsu: list[Any],
    tell: Callable[[], None],
) -> tuple[dict[str, Any], list[Any]]:
    """The result row of one checkpoint, and example masks. `parts` are the images to choose the channel and to
    evaluate; `tell` is called after each image."""
    from adios import artifact
    from adios.nuclei.agreement import choose, find, masks_of, report
    from adios.nuclei.figures import Example, choose_examples
    from pathray.device import Device

    train, test = parts
    model = artifact.load(path).to(Device.of(config.accelerator).torch_device)
    size = model.config.image_size

    def masks(numbers: list[int]) -> Iterator[Any]:
        for i in numbers:
            yield masks_of(model.masks, pairs[i].image, size, config.scale, config.batch_size)
            tell()

    choice, train_dice = choose(masks(train), [pairs[i] for i in train])
    own = [find(m, pairs[i], choice) for m, i in zip(masks(test), test, strict=True)]
    figures = report(own, otsu, resamples=config.resamples, seed=config.seed)
    facts = {key: model.facts.get(key) for key in ("images_seen", "step")}
    row = {"path": path, **facts, "channel": choice.channel, "rule": choice.rule, "train_dice": train_dice, **figures}
    shown = [test[k] for k in choose_examples([f.honest.dice for f in own])]
    again = (masks_of(model.masks, pairs[i].image, size, config.scale, config.batch_size) for i in shown)
    drawn = [Example(pairs[i], m, choice) for m, i in zip(again, shown, strict=True)]
    return row, drawn


if __name__ == "__main__":
    job(main, NucleiConfig, Path(pathray.__file__).parent)
