"""The plugins of `tuning.plugins`: evaluators by name, which judge an encoder's features on a dataset. No Ray.

An evaluator is a class with `metrics` (what can be due), `values` (what they give that a run may be stopped by, as
patterns) and `evaluate`; another one is a file and a line in EVALUATORS.
Not here: when one is due, and who runs it.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
import traceback
from collections.abc import Collection
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from pathray.errors import UserError
from pathray.evaluation.datasets import Dataset, Unfit

if TYPE_CHECKING:
    from pathray.device import Device
    from pathray.features.images import ImageSettings

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.floating[Any]]

EVALUATORS = {
    "pathorob": "pathray.evaluation.pathorob_evaluator:PathorobEvaluator",
    "probe": "pathray.evaluation.probe_evaluator:ProbeEvaluator",
}


@dataclass(frozen=True)
class Evaluation:
    """`metrics` by full name (``pathorob/camelyon/ri``; an interval's ends are ``…_low`` and ``…_high``); `notes` say
    which metrics are not there, or not of the dataset's own plan, and why. `failed` has what each metric raised that is
    not about the dataset: a mistake of the evaluator."""

    metrics: dict[str, float]
    notes: tuple[str, ...] = ()
    failed: dict[str, Exception] = field(default_factory=dict)


class Evaluator(Protocol):
    metrics: tuple[str, ...]
    values: tuple[str, ...]

    def evaluate(self, dataset: Dataset, features: Floats, due: Collection[str]) -> tuple[dict[str, float], list[str]]:
        """(values by short name, notes) of the metrics due, on features `[N, D]` of `dataset.images`."""
        ...


def load_evaluator(name: str) -> Evaluator:
    """An evaluator of that name. UserError, with the nearest right name, for one that there is not."""
    if name not in EVALUATORS:
        near = get_close_matches(name, EVALUATORS, 1)
        raise UserError("no such evaluator", key="plugins", found=name, expected=near[0] if near else list(EVALUATORS))
    module, _, kind = EVALUATORS[name].partition(":")
    return cast(Evaluator, getattr(importlib.import_module(module), kind)())


def evaluate(name: str, dataset: Dataset, features: Floats, *, due: Collection[str] | None = None) -> Evaluation:
    """The metrics `due` (all of the evaluator's, unless given) of features `[N, D]` of `dataset.images`.

    Each metric is computed on its own. One that the dataset cannot carry is left out and noted; one that raises
    anything else is in `failed` and its trace in the log. UserError naming the dataset's file and row for features that
    are not finite, Unfit for features that are all the same.
    """
    if len(features) != len(dataset.images):
        found, expected = f"{len(features)} rows", f"{len(dataset.images)}, one per image"
        raise UserError("features and images do not match", key=dataset.name, found=found, expected=expected)
    finite = np.atleast_1d(np.isfinite(features).all(axis=1))
    if not finite.all():
        bad = int(np.flatnonzero(~finite)[0])
        found = f"NaN or Inf in the features of {int((~finite).sum())} of {len(finite)} images"
        raise UserError("features must be finite", file=dataset.images[bad], row=bad, key=dataset.name, found=found)
    if _constant(features):
        message = "the encoder gives every image the same features: nothing can be judged by them"
        raise Unfit(message, key=dataset.name, found=f"{len(features)} equal rows", expected="features that differ")
    plugin = load_evaluator(name)
    wanted = plugin.metrics if due is None else due
    if unknown := sorted(set(wanted) - set(plugin.metrics)):
        raise UserError("no such metric", key=name, found=unknown[0], expected=plugin.metrics)
    metrics, notes, failed = dict[str, float](), list(dataset.notes), dict[str, Exception]()
    for metric in (m for m in plugin.metrics if m in wanted):
        try:
            values, said = plugin.evaluate(dataset, features, [metric])
            metrics |= {f"{name}/{dataset.name}/{key}": float(value) for key, value in values.items()}
            notes += said
        except Unfit as e:
            notes.append(f"{metric}: {e}")
        except UserError as e:
            failed[metric] = e
        except Exception as e:  # an evaluator's mistake costs its own metric, not the others'
            log.error("%s/%s/%s failed:\n%s", name, dataset.name, metric, traceback.format_exc())
            failed[metric] = e
    return Evaluation(metrics, tuple(dict.fromkeys(notes)), failed)


def _constant(features: Floats) -> bool:
    """Whether all rows are one point, but for rounding: ranks and clusters of them follow the order of the rows."""
    return bool(np.ptp(features, axis=0).max(initial=0.0) <= 1e-6 * np.abs(features).max(initial=0.0))


def features_of(
    dataset: Dataset, artifact: str, device: Device, settings: ImageSettings | None = None
) -> npt.NDArray[np.float32]:
    """Features `[N, D]` of `dataset.images` by an encoder artifact, as `pathray.features` extracts them (its pooling,
    precision, sizes). UserError naming the first image that cannot be read or encoded: metrics on a part of a dataset
    would not compare. A passing StorageError if their storage cannot be reached now."""
    from pathray.features.encoder import EncoderSpec, load_encoder
    from pathray.features.images import ImageJob, ImageSettings, extract_images
    from pathray.features.tables import read_table

    settings = settings or ImageSettings()
    spec = EncoderSpec.of("encoder", artifact)
    model = load_encoder(spec, device, pooling=settings.pooling, precision=settings.precision)
    with tempfile.TemporaryDirectory(prefix="pathray-") as folder:
        table = f"{folder}/features.parquet"
        names = dataset.images
        job = ImageJob(names, names, ("",) * len(names), tables=((spec.name, table),))
        specs, models = {spec.name: spec}, {spec.name: model}
        outcome = extract_images(job, specs, models, settings, device, raise_unreachable=True)
        if outcome.errors:
            first, why = next(iter(outcome.errors.items()))
            found = f"{len(outcome.errors)} of {len(names)} images fail; the first: {why}"
            raise UserError("images of the dataset cannot be encoded", file=names[first], key=dataset.name, found=found)
        return np.asarray(read_table(table).features, np.float32)
