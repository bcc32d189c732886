"""The models that a training leaves for use: the best split's, and all of them together.

    models/best_fold   the split whose model is best on its own validation slides
    models/ensemble    the mean of all splits' models

Both have seen slides that were tested, so `oof_predictions.parquet` says nothing of them but what to expect. Not here:
a model of all slides (ray_jobs.mil.training).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from mil.artifact import MIL, load, save_copy, save_ensemble
from mil.config import LOWER_IS_BETTER, RunConfig
from mil.results.files import FOLDS
from pathray.data.splits import Split
from pathray.run.layout import ENCODER
from pathray.store.storage import Storage

MODELS, BEST, ENSEMBLE_NAME = "models", "best_fold", "ensemble"


def write_models(config: RunConfig, validated: Mapping[str, Mapping[str, float | None]]) -> dict[str, str]:
    """Write the models of finished splits; `validated` has the validation scores of each, in which it was chosen.
    Returns their folders by name. Of a single split there is no ensemble; without validation slides no best one."""
    root = Storage.of(str(config.output))
    trained = {name: load(root.join(name, ENCODER)) for name in validated}
    out = {}
    if (best := best_split(validated, config.eval.primary or "loss")) is not None:
        metric, folder = config.eval.primary or "loss", root.join(MODELS, BEST)
        save_copy(folder, trained[best], split=best, chosen_by=f"{metric} of validation", value=validated[best][metric])
        out[BEST] = folder
    if len(trained) > 1:
        out[ENSEMBLE_NAME] = root.join(MODELS, ENSEMBLE_NAME)
        save_ensemble(out[ENSEMBLE_NAME], trained)
    return out


def best_passes(config: RunConfig, splits: Mapping[str, Split]) -> float:
    """The median over splits of the passes over the training slides that their exported states had seen."""
    root = Storage.of(str(config.output))
    seen = {name: MIL.describe(root.join(name, ENCODER))["provenance"]["images_seen"] for name in splits}
    return float(np.median([seen[name] / split.rows("train").size for name, split in splits.items()]))


def mean_validation(outputs: Sequence[str], splits: Mapping[str, Split]) -> dict[str, float]:
    """`images_seen`, the slides that all runs in these folders have trained on, and `val/<score>`: the mean of each
    validation score over them, where all of them define it."""
    roots = [Storage.of(output) for output in outputs]
    each = [found for root in roots for found in json.loads(root.read_bytes(FOLDS))["validation"].values()]
    seen = sum(MIL.describe(r.join(name, ENCODER))["provenance"]["images_seen"] for r in roots for name in splits)
    names = [name for name in each[0] if all(found.get(name) is not None for found in each)]
    return {"images_seen": seen} | {f"val/{name}": float(np.mean([found[name] for found in each])) for name in names}


def best_split(validated: Mapping[str, Mapping[str, float | None]], metric: str) -> str | None:
    """The split with the best validation score; the first of equal ones, None where none is defined."""
    sign = 1.0 if metric in LOWER_IS_BETTER else -1.0
    values = {name: found.get(metric) for name, found in validated.items()}
    defined = {name: sign * value for name, value in values.items() if value is not None and np.isfinite(value)}
    return min(defined, key=lambda name: defined[name]) if defined else None
