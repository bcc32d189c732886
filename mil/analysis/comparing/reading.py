"""The predictions of several models: files, tables of other programs, or outputs of train_mil with all their seeds.

Not here: joining them by slide (.joining), comparing (.comparison).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from mil.judging.predictions import Predictions, read_predictions
from mil.results import OOF
from pathray.errors import MissingFile, UserError
from pathray.store.storage import Storage
from pathray.urls import is_url, public

NAMED = re.compile(r"(?P<name>[\w.+-]{1,60})=(?P<path>.+)")
SEED = re.compile(r"seed_\d+")
Models = dict[str, list[str]]


def models_of(a: object, b: object, predictions: Sequence[str]) -> Models:
    """The files or folders of each model by its name. `a` and `b` are one model each: an entry, or a list of its seeds;
    in `predictions` entries of one name are seeds of one model. UserError for fewer than two models, names that are
    used twice, and an entry that is there twice."""
    if (a is None) != (b is None) or (a is None) == (not predictions):
        found = ", ".join(key for key, value in (("a", a), ("b", b), ("predictions", predictions)) if value) or "none"
        raise UserError("what is compared?", key="a", found=found, expected="a=… b=…, or predictions=[NAME=…, NAME=…]")
    out: Models = {}
    if not predictions:
        for key, given in (("a", a), ("b", b)):
            _add(out, key, [str(entry) for entry in given] if isinstance(given, list) else [str(given)])
    for entry in predictions:
        name, path = _split(entry)
        out.setdefault(name, []).append(path)
    _check(out)
    return out


def read_models(models: Mapping[str, Sequence[str]], *, label: str, patient: str) -> dict[str, list[Predictions]]:
    """Every model's tables, one per seed. MissingFile, and UserError as in `read_predictions`, also for predictions of
    survival and for models that predict different kinds of things."""
    tables = {name: [path for entry in entries for path in tables_of(entry)] for name, entries in models.items()}
    found = {name: [read_predictions(p, label=label, patient=patient) for p in paths] for name, paths in tables.items()}
    for one in (one for each in found.values() for one in each):
        if getattr(one, "events", None) is not None:
            expected = "predictions of classes or numbers"
            raise UserError("predictions of survival are not compared", file=one.file, found="risk", expected=expected)
    return found


def tables_of(entry: str) -> list[str]:
    """The table at a path; of an output of train_mil, that of each of its seeds."""
    if not _is_folder(entry):
        return [entry]
    root = Storage.of(entry)
    folders = [root, *(root.at(name) for name in root.list() if SEED.fullmatch(name))]
    found = [one.join(OOF) for one in folders if one.exists(OOF)]
    if not found:
        raise MissingFile("the folder has no predictions", file=public(entry), expected=f"{OOF}, as train_mil leaves")
    return found


def _is_folder(entry: str) -> bool:
    return not os.path.splitext(entry)[1] if is_url(entry) else os.path.isdir(entry)


def _add(out: Models, key: str, entries: Sequence[str]) -> None:
    """One model, named by its first entry that has a name, else by its key."""
    pairs = [_split(entry) for entry in entries]
    given = [name for entry, (name, _) in zip(entries, pairs, strict=True) if NAMED.fullmatch(entry)]
    names = given or [name for name, _ in pairs]
    name = names[0] if len(set(names)) == 1 else f"{key}: {names[0]} …"
    if name in out:
        name = f"{name} ({key})"
    out[name] = [path for _, path in pairs]


def _split(entry: str) -> tuple[str, str]:
    """`NAME=PATH`, or a path: its name is that of the file, or of the folder where the file's name is train_mil's."""
    if (match := NAMED.fullmatch(entry)) is not None:
        return match["name"], _absolute(match["path"])
    folder, _, file = entry.rstrip("/").rpartition("/")
    name = folder.rpartition("/")[2] if file == OOF and folder else os.path.splitext(file)[0]
    return name, _absolute(entry)


def _absolute(path: str) -> str:
    return path if is_url(path) else os.path.abspath(path)


def _check(models: Models) -> None:
    if len(models) < 2:
        found, expected = list(models), "two models or more, such as predictions=[NAME=…, OTHER=…]"
        raise UserError("nothing to compare", key="predictions", found=found, expected=expected)
    for name, paths in models.items():
        if again := sorted({path for path in paths if paths.count(path) > 1}):
            raise UserError("a seed is there twice", file=public(again[0]), key=name, expected="each seed once")
