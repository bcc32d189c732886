"""A finished training as an analysis reads it: which slides were tested, by the model of which split, with what result.

Not here: attention (.attention), which slides are shown (.choosing).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mil.judging.predictions import NUMBER, PROBABILITY, RISK
from mil.results import EMBEDDINGS, OOF, TEST
from mil.splits import outer_of
from pathray.errors import MissingFile, UserError
from pathray.run.layout import CONFIG, ENCODER
from pathray.store.sealed_parquet import of_bytes
from pathray.store.storage import Storage

if TYPE_CHECKING:
    from mil.artifact import Trained

Floats = npt.NDArray[np.float64]
SEVERAL = "several"


@dataclass(frozen=True)
class JudgedSlide:
    """A slide, its patient, its truth as text ("" if unknown), the split whose model is shown, and the prediction:
    `values` `[K]` under the names of their columns, as in the training's table.

    Inner and repeated splits test a slide several times, and the table has the mean: `said` has what the shown model
    alone said, `others` the other splits that tested the slide.
    """

    slide_id: str
    patient: str
    truth: str
    split: str
    values: Mapping[str, float]
    said: Mapping[str, float] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    @property
    def fold(self) -> str:
        """The split that tested the slide; of inner splits their outer one, of repeated ones `SEVERAL`."""
        names = {outer_of(name) for name in (self.split, *self.others)}
        return names.pop() if len(names) == 1 else SEVERAL

    @property
    def predicted(self) -> str:
        """The likeliest class; else the number."""
        name = max(self.values, key=lambda key: self.values[key])
        return name.removeprefix(PROBABILITY) if name.startswith(PROBABILITY) else f"{self.values[name]:.4g}"


@dataclass(frozen=True)
class TrainedRun:
    """The output of a training: tested slides by id, and the splits' names in order."""

    root: Storage
    slides: Mapping[str, JudgedSlide]
    splits: tuple[str, ...]

    def settings(self) -> dict[str, Any]:
        """The resolved config of the first split. UserError where it is not one of a MIL training."""
        import yaml

        file = self.root.join(self.splits[0], CONFIG)
        try:
            found = yaml.safe_load(self.root.read_bytes(f"{self.splits[0]}/{CONFIG}"))
            found["data"]["store"], found["data"]["csv"]
        except (yaml.YAMLError, LookupError, TypeError) as e:
            raise UserError("not the config of a MIL training", file=file, found=str(e)[:200]) from e
        return dict(found)

    def model(self, split: str) -> Trained:
        """MissingFile, UserError as in `mil.artifact.load`."""
        from mil.artifact import load

        return load(self.root.join(split, ENCODER))

    def embeddings(self, split: str) -> tuple[list[str], npt.NDArray[np.float32]]:
        """Ids and embeddings `[N, E]` of the slides that a split tests. UserError where they do not belong together."""
        import io

        names = _table(self.root.at(split), TEST)["slide_id"].to_pylist()
        file = self.root.join(split, EMBEDDINGS)
        try:
            every = np.load(io.BytesIO(self.root.read_bytes(f"{split}/{EMBEDDINGS}")), allow_pickle=False)
        except UserError:
            raise
        except ValueError as e:
            raise UserError("the embeddings are damaged", file=file, found=str(e)[:200]) from e
        if every.ndim != 2 or len(every) < len(names):
            expected = f"a row for each of {len(names)} tested slides"
            raise UserError("the embeddings are of other slides", file=file, found=list(every.shape), expected=expected)
        return [str(name) for name in names], np.asarray(every[len(every) - len(names) :], np.float32)


def open_run(folder: str) -> TrainedRun:
    """The training in a folder or URL. MissingFile where it has not ended or is none."""
    root = Storage.of(folder)
    if not root.exists(OOF):
        expected = f"the output of a finished train_mil, with {OOF}"
        raise MissingFile("no finished training here", file=folder, key="run", expected=expected)
    joined = _table(root, OOF)
    names = sorted((name for name in root.list() if root.exists(f"{name}/{TEST}")), key=_by_number)
    tested = {name: _said(table) for name in names if (table := _table(root.at(name), TEST)).num_rows}
    slides = _judged(joined, tested)
    if not slides:
        raise UserError("the training has tested no slide", file=folder, key="run", expected="splits with test slides")
    return TrainedRun(root, slides, tuple(tested))


def _judged(joined: pa.Table, tested: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, JudgedSlide]:
    """The slides of the table of predictions, each with the first of the splits that tested it."""
    truth, values = _truth(joined), _said(joined)
    patients = dict(
        zip(map(str, joined["slide_id"].to_pylist()), map(str, joined["patient_id"].to_pylist()), strict=True)
    )
    out = {}
    for name in sorted(values):
        by = [split for split, found in tested.items() if name in found]
        if by:
            said = tested[by[0]][name]
            out[name] = JudgedSlide(name, patients[name], truth[name], by[0], values[name], said, tuple(by[1:]))
    return out


def _said(table: pa.Table) -> dict[str, dict[str, float]]:
    """The predictions of each slide, by the names of their columns."""
    columns = [key for key in table.column_names if key.startswith(PROBABILITY) or key in (NUMBER, RISK)]
    rows = table.select(["slide_id", *columns]).to_pylist()
    return {str(row["slide_id"]): {key: float(row[key]) for key in columns} for row in rows}


def _truth(table: pa.Table) -> dict[str, str]:
    """The label of each slide; of survival its time and whether it was observed."""
    if "label" in table.column_names:
        labels = [f"{x:g}" if isinstance(x, float) else str(x) for x in table["label"].to_pylist()]
    elif "time" in table.column_names:
        rows = zip(table["time"].to_pylist(), table["event"].to_pylist(), strict=True)
        labels = [f"{time:g} ({'observed' if event else 'censored'})" for time, event in rows]
    else:
        labels = [""] * table.num_rows
    return dict(zip(map(str, table["slide_id"].to_pylist()), labels, strict=True))


def _table(store: Storage, name: str) -> pa.Table:
    table = of_bytes(store.read_bytes(name), store.join(name), "table of predictions")
    if "slide_id" not in table.column_names:
        raise UserError("not a table of predictions", file=store.join(name), found=table.column_names)
    return table


def _by_number(name: str) -> tuple[Any, ...]:
    """fold_2 before fold_10."""
    head, _, number = name.rpartition("_")
    return (head, int(number), "") if number.isdigit() else (name, -1, "")
