"""Whether an exported file predicts as the model does: bags of every awkward length, and a padded batch.

Differences are of the largest element. Not here: how files are made (mil.export.formats).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mil.export.formats import FILES, Run, open_format
from mil.export.predictor import ATTENTION, PROBABILITIES, Output, SlidePredictor
from pathray.errors import UserError

LENGTHS = (1, 2, 255, 256, 257, 5000)
BATCH = (130, 257, 5)  # in one padded batch
BATCHES = (*((length,) for length in LENGTHS), BATCH)
ABSOLUTE, RELATIVE = 1e-5, 1e-4  # of probabilities and attention; of the others


def check_parity(
    predictor: SlidePredictor, width: int, folder: Path, formats: Sequence[str]
) -> dict[str, dict[str, float]]:
    """The largest difference of each output, per format: of embeddings relative to the largest value of the same bags,
    of a regression's numbers in deviations of the label, of the others absolute.

    UserError that names the format, the number of tiles, the output and the difference, if one is above its tolerance
    or not finite, or if a file cannot be loaded or run.
    """
    runs = {name: _open(name, folder / FILES[name]) for name in formats}
    worst: dict[str, dict[str, float]] = {name: {o.name: 0.0 for o in predictor.outputs} for name in formats}
    for lengths in BATCHES:
        bags = random_bags(lengths, width)
        with torch.no_grad():
            wanted = predictor(*bags)
        for name, run in runs.items():
            found = _run(run, bags, name, lengths)
            for output, a, b in zip(predictor.outputs, found, wanted, strict=True):
                difference = _difference(output, a, b)
                _check(name, lengths, output.name, difference)
                worst[name][output.name] = max(worst[name][output.name], difference)
    for name, run in runs.items():
        _check_empty(predictor, run, width, name)
    return worst


def _check_empty(predictor: SlidePredictor, run: Run, width: int, name: str) -> None:
    """A slide without a tile is NaN, never a prediction, and leaves the others of its batch alone."""
    features, mask, coords = random_bags((7, 3), width)
    with torch.no_grad():
        wanted = predictor(features[:1], mask[:1], coords[:1])
    found = _run(run, (features, mask & torch.tensor([[True], [False]]), coords), name, (7, 0))
    for output, a, b in zip(predictor.outputs, found, wanted, strict=True):
        _check(name, (7, 0), output.name, _difference(output, a[:1], b))
        if output.name != ATTENTION and not bool(a[1].isnan().all()):
            message, value = f"{output.name} of a slide without tiles must be NaN", a[1].flatten()[0].item()
            raise UserError(message, file=FILES[name], key=_case(name, (7, 0)), found=value, expected="NaN")


def random_bags(lengths: Sequence[int], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of bags with normal features on a grid of tiles far from the origin. Real tiles of a padded batch are
    anywhere, and padding is NaN: what it holds must not matter."""
    generator = torch.Generator().manual_seed(sum(lengths))
    B, N = len(lengths), max(lengths)
    side = int(N**0.5) + 1
    cell = torch.arange(N).repeat(B, 1)
    coords = torch.stack([cell % side, cell // side], dim=2) * 1.0 + 100.25
    place = torch.rand(B, N, generator=generator).argsort(dim=1)
    mask = place < torch.tensor(lengths)[:, None]
    features = torch.randn(B, N, width, generator=generator)
    padding = ~mask[..., None]
    return features.masked_fill(padding, torch.nan), mask, coords.masked_fill(padding, torch.nan)


def _open(name: str, file: Path) -> Run:
    try:
        return open_format(name, file)
    except Exception as e:  # each runtime has errors of its own
        message, reason = "the exported file cannot be loaded", f"{type(e).__name__}: {' '.join(str(e).split())[-300:]}"
        raise UserError(message, file=file.name, key=name, found=reason) from e


def _run(run: Run, bags: tuple[Tensor, Tensor, Tensor], name: str, lengths: Sequence[int]) -> Sequence[Tensor]:
    try:
        with torch.no_grad():
            return run(*bags)
    except Exception as e:  # each runtime has errors of its own
        message, reason = "the exported file does not run", f"{type(e).__name__}: {' '.join(str(e).split())[-300:]}"
        raise UserError(message, file=FILES[name], key=_case(name, lengths), found=reason) from e


def _difference(output: Output, found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape or not bool(found.isfinite().all()):
        return float("inf")
    unit = output.unit or float(wanted.abs().max().clamp(min=1e-6))
    return float((found - wanted).abs().max()) / unit


def _check(name: str, lengths: Sequence[int], output: str, difference: float) -> None:
    allowed = tolerance(output)
    if not difference <= allowed:
        message = f"the exported file does not predict as the model: {output} differ"
        expected = f"a difference of at most {allowed:g}"
        raise UserError(message, file=FILES[name], key=_case(name, lengths), found=difference, expected=expected)


def tolerance(output: str) -> float:
    return ABSOLUTE if output in (PROBABILITIES, ATTENTION) else RELATIVE


def _case(name: str, lengths: Sequence[int]) -> str:
    tiles = f"N={lengths[0]}" if len(lengths) == 1 else f"a batch of N={', '.join(map(str, lengths))}"
    return f"{name}, {tiles}"
