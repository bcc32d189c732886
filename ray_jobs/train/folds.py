"""Folds of a cross-validation, of any science: a run per fold, several at a time on one Ray, each in a thread.

Not here: what one fold trains and what the folds say together (the science's job), how splits are made
(pathray.data.splits).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pathray.config.load import is_set
from pathray.errors import MissingFile, UserError
from pathray.store.outages import through_outages

if TYPE_CHECKING:
    from pathray.store.storage import Storage
    from ray_jobs.tune.mlflow import Parent

log = logging.getLogger(__name__)
POLL_S = 0.5
Train = Callable[[Any], object]  # the config of one fold → its run, to the end or until it is asked to stop


@dataclass
class Fold:
    """One fold's run: its folder, its file of the split and its config."""

    name: str
    config: Any
    folder: str
    split: str
    thread: threading.Thread | None = None
    error: BaseException | None = None
    unasked: bool = False  # whether storage refused the last request to stop

    def start(self, train: Train) -> None:
        def work() -> None:
            try:
                train(self.config)
            except BaseException as e:  # carried to the main thread, which raises it when the others have ended
                self.error = e

        log.info("%s begins", self.name)
        self.thread = threading.Thread(target=work, name=f"pathray-{self.name}", daemon=True)
        self.thread.start()

    def ask_to_stop(self) -> None:
        """Request a stop. Trouble with storage ends no fold: it is logged once, and the next call tries again."""
        from pathray.run.stop import request_stop
        from pathray.store.storage import StorageError

        try:
            request_stop(self.folder)
            self.unasked = False
        except StorageError as e:
            if not self.unasked:
                log.warning("could not ask %s to stop; retrying: %s", self.name, e)
            self.unasked = True

    def below(self, parent: Parent) -> Fold:
        """The same, its MLflow run being a child of the cross-validation's."""
        if parent.run_id:
            own = replace(self.config.logging, tracking_uri=parent.uri, mlflow_parent=parent.run_id)
            self.config = replace(self.config, logging=own)
        return self

    @property
    def is_running(self) -> bool:
        return self.thread is not None and self.thread.is_alive()


def find_splits(splits: str) -> dict[str, str]:
    """Name and file of each fold in the folder `splits`, in the order of their numbers. MissingFile when there is none.

    UserError when no folder is given."""
    from pathray.store.storage import Storage

    if not is_set(splits):
        raise UserError("no folds were selected", key="splits", expected="a folder written by make_splits")
    store = Storage.of(splits)
    names = [n.removesuffix(".csv") for n in store.list() if n.startswith("fold_") and n.endswith(".csv")]
    if not names:
        raise MissingFile("no folds here", file=store.url, key="splits", expected="fold_0.csv, fold_1.csv …")
    return {name: store.join(f"{name}.csv") for name in sorted(names, key=lambda n: (len(n), n))}


def check_apart(folds: Sequence[Fold], tested: Mapping[str, set[str]]) -> None:
    """UserError where a group tests in two folds, as when files of another number of folds were left in the folder: it
    would count twice. `tested`: the groups that test, by fold."""
    first: dict[str, str] = {}
    for fold in folds:
        for group in sorted(tested[fold.name]):
            if (earlier := first.setdefault(group, fold.name)) != fold.name:
                found, expected = f"{group}, which {earlier} tests, too", "folds of one make_splits alone"
                raise UserError("a group tests twice", file=fold.split, key="split", found=found, expected=expected)


def train_all(root: Storage, folds: Sequence[Fold], at_a_time: int, train: Train) -> None:
    """All folds, `at_a_time` of them together, on the running Ray. A STOP of the whole, which a signal writes, goes to
    each that runs; the first error is raised when all have ended. Storage that is away ends no fold."""
    from pathray.run.layout import STOP
    from pathray.run.stop_poll import StopPoll
    from ray_jobs.train.driver import stop_on_signals

    through_outages(lambda: root.remove(STOP), "the start of the folds")
    waiting = list(folds)
    with stop_on_signals(root), StopPoll(root) as poll:
        while waiting or any(fold.is_running for fold in folds):
            running = [fold for fold in folds if fold.is_running]
            begins = bool(waiting) and len(running) < at_a_time
            stopping = poll.look_now() if begins else poll.is_requested()  # no fold begins after a STOP
            if stopping:
                waiting.clear()
                for fold in running:
                    fold.ask_to_stop()  # again and again: a run that only begins removes an older one
            while waiting and len(running) < at_a_time:
                running.append(waiting.pop(0))
                running[-1].start(train)
            time.sleep(4 * POLL_S if stopping else POLL_S)
    failed = [fold for fold in folds if fold.error is not None]
    for fold in failed:
        log.error("%s failed: %s", fold.name, fold.error)
    if failed and failed[0].error is not None:
        raise failed[0].error
