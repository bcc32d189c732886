"""Probes of frozen OCT encoders: features through Ray, fits in the job's process, tables and pictures in `output`.

Not here: the command (ray_jobs.finetune_oct), the fits (oct.downstream.probing).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pathray.reports.summary import Picture, write_summary
from pathray.store.storage import Storage
from ray_jobs.oct_downstream.features import ensure_features
from ray_jobs.shell.cli import Outputs

if TYPE_CHECKING:
    from oct.downstream.cohort import Cohort
    from oct.downstream.config import DownstreamConfig
    from oct.downstream.features import Features, FeatureSource
    from oct.downstream.probing import Predictions
    from pathray.data.splits import Split
    from pathray.stats.bootstrap import Interval

log = logging.getLogger(__name__)
RANDOM = "random weights"


def probe(config: DownstreamConfig, cohort: Cohort, splits: Sequence[Split]) -> Outputs:
    """Linear and attentive probes of one encoder, next to random weights."""
    from oct.downstream import results

    store, model = Storage.of(str(config.output)), config.model
    found: dict[str, Predictions] = {}
    weights = [model.weights] + (["random"] if config.probe.baseline and model.weights != "random" else [])
    features = {}
    for kind in weights:
        source = source_of(config, cohort, str(model.encoder), kind, tokens=config.probe.attentive)
        name = RANDOM if kind == "random" else kind
        features[name] = features_of(config, cohort, source, name)
    readable, kept, parts = usable(cohort, features, splits)
    failed = failures(features)
    for name, own in kept.items():
        found |= {f"{probe}, {name}": one for probe, one in fits(config, readable, own, parts).items()}
    scores = judge(config, readable, found)
    for name, judged in scores.items():
        log.info("%s: %s", name, ", ".join(f"{metric} {results.show(i)}" for metric, i in judged.items()))
    return _leave(config, store, readable, found, scores, failed)


def sweep(config: DownstreamConfig, cohort: Cohort, splits: Sequence[Split], metric: str) -> Outputs:
    """A linear probe of every snapshot of a run: a leaderboard, and a curve over the volumes seen."""
    from oct.downstream.snapshots import CURVE, Standing, draw_curve, find_snapshots, ranked, write_leaderboard

    store, snapshots = Storage.of(str(config.output)), find_snapshots(str(config.model.run))
    every = [(s.path, "pretrained", s.name) for s in snapshots] + [(snapshots[0].path, "random", RANDOM)]
    features = {
        name: features_of(config, cohort, source_of(config, cohort, path, weights, tokens=False), name)
        for path, weights, name in every
    }
    readable, kept, parts = usable(cohort, features, splits)
    failed = failures(features)
    judged = {name: fits(config, readable, own, parts, attentive=False)["linear"] for name, own in kept.items()}
    resamples, seed, floor = config.probe.resamples, config.data.seed, judged[RANDOM]
    random = floor.judge(readable, resamples, seed)
    standings = [
        Standing(s, judged[s.name].judge(readable, resamples, seed),
                 judged[s.name].compare(floor, readable, resamples, seed))
        for s in snapshots
    ]  # fmt: skip
    board = write_leaderboard(store, standings, metric)
    store.write_bytes(CURVE, draw_curve(standings, random, metric, 0.0 if cohort.classes else -1.0))
    from oct.downstream.results import show, summary_of

    for place, one in enumerate(ranked(standings, metric), 1):
        log.info("%d. %s: %s %s, %s above random weights", place, one.snapshot.name, metric, show(one.scores[metric]),
                 show(one.above_random[metric]))  # fmt: skip
    scores = {one.snapshot.name: one.scores for one in ranked(standings, metric)} | {RANDOM: random}
    summary = summary_of(
        "Checkpoint sweep", readable, scores, failed=failed, facts={"run": config.model.run, "ranked by": metric},
        settings=settings_of(config), files={"leaderboard": board}, pictures=[Picture(store.join(CURVE), "Probe")],
    )  # fmt: skip
    write_summary(store.url, summary)
    return Outputs({"leaderboard": board, "curve": store.join(CURVE)})


def source_of(config: DownstreamConfig, cohort: Cohort, encoder: str, weights: str, *, tokens: bool) -> FeatureSource:
    from oct.downstream.features import FeatureSource

    data, pool = config.data, config.probe.pool
    folder = Storage.of(str(config.output)).join("features")
    return FeatureSource(
        encoder, weights, data.seed, (pool[0], pool[1], pool[2]) if tokens else None, cohort.root, folder,
        data.cache_dir, data.cache_gb,
    )  # fmt: skip


def features_of(config: DownstreamConfig, cohort: Cohort, source: FeatureSource, name: str) -> Features:
    """Those of all volumes of the cohort. UserError when too many of them cannot be read."""
    from oct.downstream.features import check_readable, check_size

    check_size(source, len(cohort.volumes), config.probe.most_gb)
    features = ensure_features(source, cohort.volumes, config.scaling, name)
    check_readable(features, config.data.max_corrupt_fraction, config.data.index)
    return features


def usable(
    cohort: Cohort, features: dict[str, Features], splits: Sequence[Split]
) -> tuple[Cohort, dict[str, Features], list[Split]]:
    """Cohort, features and splits without volumes that an encoder has no features of, and without units that have no
    others: all encoders are judged on the same."""
    import numpy as np

    from oct.downstream.features import Features as Kept
    from oct.downstream.folds import check_parts
    from pathray.data.splits import Split as Part

    readable = np.all([own.readable for own in features.values()], axis=0)
    units = np.unique(cohort.unit[readable])
    kept = {}
    for name, own in features.items():
        tokens = None if own.tokens is None else [t for t, ok in zip(own.tokens, readable, strict=True) if ok]
        kept[name] = Kept(own.mean[readable], tokens, own.failed)
    left, parts = cohort.only(readable), [Part(split.of[units], split.meta) for split in splits]
    check_parts(left, parts)
    return left, kept, parts


def failures(features: dict[str, Features]) -> list[tuple[str, str]]:
    """Path and reason of every volume that an encoder has no features of, once."""
    return list({path: (path, why) for own in features.values() for path, why in own.failed}.values())


def fits(
    config: DownstreamConfig, cohort: Cohort, features: Features, splits: Sequence[Split], attentive: bool = True
) -> dict[str, Predictions]:
    """Predictions of each probe that is asked for."""
    from oct.downstream.probing import probe_attentive, probe_linear

    seed = config.data.seed
    found = {"linear": probe_linear(cohort, features, splits, config.probe, seed)}
    if attentive and config.probe.attentive:
        found["attentive"] = probe_attentive(cohort, features, splits, config.probe, seed)
    return found


def judge(config: DownstreamConfig, cohort: Cohort, found: dict[str, Predictions]) -> dict[str, dict[str, Interval]]:
    """The scores of every model, and the differences to the same probe on random weights."""
    resamples, seed = config.probe.resamples, config.data.seed
    scores = {name: one.judge(cohort, resamples, seed) for name, one in found.items()}
    for name, one in found.items():
        floor = f"{name.partition(',')[0]}, {RANDOM}"
        if floor in found and floor != name:
            scores[f"{name} − {RANDOM}"] = one.compare(found[floor], cohort, resamples, seed)
    return scores


def settings_of(config: DownstreamConfig) -> dict[str, object]:
    data = config.data
    keys: dict[str, object] = {"data.index": data.index, "data.labels": data.labels, "data.label": data.label}
    split = {"data.split_file": data.split_file} if data.split_file else {"data.folds": data.folds}
    encoder = config.model.run if config.kind == "sweep" else config.model.encoder
    return {
        **keys,
        **split,
        "data.seed": data.seed,
        "model.encoder": encoder,
        "probe.resamples": config.probe.resamples,
    }


def _leave(
    config: DownstreamConfig, store: Storage, cohort: Cohort, found: dict[str, Predictions],
    scores: dict[str, dict[str, Interval]], failed: list[tuple[str, str]],
) -> Outputs:  # fmt: skip
    from oct.downstream import results

    predictions = results.write_predictions(store, cohort, found)
    chosen: dict[str, Any] = {name: one.chosen for name, one in found.items()}
    metrics = results.write_metrics(store, cohort, scores, {"kind": config.kind, "chosen": chosen})
    models = {name: own for name, own in scores.items() if name in found}
    store.write_bytes(results.CHART, results.draw_scores(models, "Probes of a frozen encoder"))
    facts: dict[str, object] = {"encoder": config.model.encoder}
    files = {"predictions": predictions, "metrics": metrics}
    picture = Picture(store.join(results.CHART), "Scores with 95% intervals over persons")
    write_summary(
        store.url,
        results.summary_of("Probe", cohort, scores, failed=failed, facts=facts, settings=settings_of(config),
                           files=files, pictures=[picture]),
    )  # fmt: skip
    return Outputs({"metrics": metrics, "predictions": predictions})
