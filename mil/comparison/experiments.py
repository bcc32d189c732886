"""What is compared: experiments, each the predictions of one or more seeds of the same slides.

Not here: how the slides of experiments are joined (mil.comparison.joining).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from mil.judging.predictions import Predictions, read_predictions
from mil.results.files import OOF
from mil.results.seeds import SEEDS
from pathray.errors import MissingFile, UserError
from pathray.store.storage import Storage, digest_bytes

TABLES = (".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.gz")
OUTPUTS = (OOF.removesuffix(".parquet"), "predictions", "preds", "preds_test")  # a file of this name is called as its
Read = Callable[[str], Predictions]  # folder


@dataclass(frozen=True)
class Experiment:
    """A name, and the predictions of each seed."""

    name: str
    seeds: tuple[Predictions, ...]

    @property
    def first(self) -> Predictions:
        return self.seeds[0]

    @property
    def files(self) -> list[str]:
        return [one.file for one in self.seeds]


def read_experiments(sources: Mapping[str, Sequence[str]], read: Read = read_predictions) -> list[Experiment]:
    """The experiments by name, from tables of predictions or folders of train_mil, one path per seed; a folder of
    several seeds gives them all. UserError for fewer than two experiments, and as in `read_predictions`."""
    if len(sources) < 2:
        found, expected = list(sources), "a=… and b=…, or predictions=[…] with at least two"
        raise UserError("a comparison needs two experiments", key="predictions", found=found, expected=expected)
    files = {name: [file for path in paths for file in list_tables(path)] for name, paths in sources.items()}
    for name, own in files.items():
        if again := sorted({file for file in own if own.count(file) > 1}):
            raise UserError(f"'{name}' has a table twice", file=again[0], expected="another table for each seed")
    return [Experiment(name, tuple(map(read, own))) for name, own in files.items()]


def list_tables(path: str) -> list[str]:
    """The table at a path; of a folder of train_mil its joined predictions, one file per seed.

    MissingFile where a folder has none; UserError where its seeds are not all trained.
    """
    if path.lower().endswith(TABLES):
        return [path]
    root = Storage.of(path)
    if not root.exists(OOF):
        raise MissingFile("no predictions", file=path, expected=f"a table, or a finished training with {OOF}")
    if root.exists(SEEDS):
        _, *others = _trained_seeds(root)
        return [root.join(OOF), *(root.join(f"seed_{seed}", OOF) for seed in others)]
    if any(name.startswith("seed_") for name in root.list()):
        expected = f"{SEEDS}, which a finished training writes; for the first seed alone name its {OOF}"
        raise UserError("the training of several seeds has not finished", file=path, expected=expected)
    return [root.join(OOF)]


def digest_tables(experiments: Sequence[Experiment]) -> dict[str, str]:
    """The SHA-256 of each table by its path."""
    out = {}
    for path in (file for one in experiments for file in one.files):
        folder, _, name = path.rpartition("/")
        out[path] = digest_bytes(Storage.of(folder or ".").read_bytes(name))
    return out


def name_experiments(paths: Sequence[Sequence[str]]) -> list[str]:
    """A name for each list of paths: the shortest end of their shared folder, or of the first path, that tells all
    apart.

    >>> name_experiments([["out/abmil/oof_predictions.parquet"], ["out/clam"], ["x/tables/dsmil.csv"]])
    ['abmil', 'clam', 'dsmil']
    """
    firsts = [_words(own[0]) for own in paths]
    shared = [_shared_words([_words(path) for path in own]) for own in paths]
    for parts in (shared, firsts):
        for count in range(1, max(map(len, parts), default=1) + 1):
            names = ["/".join(words[-count:]) for words in parts]
            if all(names) and len(set(names)) == len(names):
                return names
    return [f"{words[-1]} ({i + 1})" for i, words in enumerate(firsts)]


def _shared_words(lists: Sequence[Sequence[str]]) -> Sequence[str]:
    """What paths begin with."""
    count = next((i for i, words in enumerate(zip(*lists, strict=False)) if len(set(words)) > 1), min(map(len, lists)))
    return lists[0][:count]


def _words(path: str) -> list[str]:
    words = [word for word in PurePosixPath(path.replace(os.sep, "/")).parts if word not in ("/", "..", ".")]
    last = next((words[-1][: -len(end)] for end in sorted(TABLES, key=len)[::-1] if words[-1].endswith(end)), None)
    if last is None:
        return words
    return words[:-1] if last in OUTPUTS and len(words) > 1 else [*words[:-1], last]


def _trained_seeds(root: Storage) -> list[int]:
    try:
        content: Any = json.loads(root.read_bytes(SEEDS))
        seeds = [int(seed) for seed in content["seeds"]]
    except (ValueError, TypeError, KeyError) as e:
        raise UserError(
            "not a list of seeds", file=root.join(SEEDS), key="seeds", expected="as train_mil wrote it"
        ) from e
    for seed in seeds[1:]:
        if not root.exists(f"seed_{seed}/{OOF}"):
            raise MissingFile("predictions of a seed are missing", file=root.join(f"seed_{seed}", OOF))
    return seeds
