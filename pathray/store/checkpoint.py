"""Training state on storage: named tensors in safetensors, meta in strict JSON, committed or absent. No pickle.

A checkpoint is a committed directory `<name>-<uid8>` with ``tensors.safetensors``; its meta stands in COMMITTED.json.
Names are `<tag>-latest`, `<tag>-img1000000`, `<tag>-best` …: `latest` finds the newest of a tag by its `images_seen`.
Loading fails loudly or succeeds wholly; nothing here ever falls back to fresh weights.

Not here: what the tensors are (pathray.train.state), encoders for inference (pathray.store.artifact).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from pathray.errors import UserError
from pathray.fingerprint import list_differences
from pathray.store.committed import (
    COMMITTED,
    Committed,
    CommittedWriter,
    committed_dir,
    list_committed,
    read_committed,
    remove_committed,
    sweep,
)
from pathray.store.outages import FIRST_PAUSE_S, OUTAGE_S, through_outages

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
TENSORS = "tensors.safetensors"
NAMED_AT_MOST = 8

T = TypeVar("T")
Also = Callable[[CommittedWriter, dict[str, Tensor]], None]


def save(parent: str, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Committed:
    """Write a checkpoint under `parent` and commit it. `meta` needs `images_seen`; NaN in it is refused.

    The tensors are copied to the CPU first. StorageError when it cannot be written: then nothing counts, and what was
    there before is untouched.
    """
    return read_committed(_write(parent, name, cpu_copy(tensors), dict(meta)))


def load(path: str, *, verify: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the meta of a committed checkpoint.

    MissingFile when it is not committed; UserError when it is damaged or of a newer schema.
    """
    from safetensors.torch import load_file

    committed = read_committed(path)
    version = committed.meta.get("checkpoint_schema_version", 0)
    if version > SCHEMA_VERSION:
        raise UserError(
            "the checkpoint was written by a newer version", file=path, found=version, expected=SCHEMA_VERSION
        )
    return committed.read(TENSORS, load_file, verify=verify), dict(committed.meta)


def latest(parent: str, tag: str, at_most: int | None = None) -> Committed | None:
    """The newest committed checkpoint of a tag: most `images_seen`, `at_most` if given, then the one committed last.
    None without any."""
    own = [c for c in list_committed(parent) if _tag(c.name) == tag]
    for checkpoint in own:
        if not isinstance(checkpoint.meta.get("images_seen"), int):
            file, found = f"{checkpoint.path}/{COMMITTED}", checkpoint.meta.get("images_seen")
            raise UserError("the record of a checkpoint is damaged", file=file, key="images_seen", found=found)
    early = [c for c in own if at_most is None or c.meta["images_seen"] <= at_most]
    return max(early, key=lambda c: (c.meta["images_seen"], c.created), default=None)


def prune(
    parent: str, name: str, keep_last_n: int, *, protect: Iterable[str] = (), stale_after_s: float = 3600.0
) -> list[str]:
    """Keep the newest `keep_last_n` committed checkpoints called `name`, and those whose paths are in `protect`.

    Also sweeps what was begun and never committed. Returns the paths removed. What storage refuses to remove, or a
    damaged record among the older ones, is a warning: the newer checkpoints are there, and the next call tries again.
    """
    assert keep_last_n >= 1, keep_last_n
    removed: list[str] = []
    with _warn_on_error(f"older checkpoints called {name}"):
        own = sorted(list_committed(parent, name), key=lambda c: (c.meta.get("images_seen", -1), c.created))
        for path in [c.path for c in own[:-keep_last_n] if c.path not in set(protect)]:
            with _warn_on_error(path):
                remove_committed(path)
                removed.append(path)
        sweep(parent, stale_after_s)
    return removed


def check_identity(meta: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """UserError naming every key in which the checkpoint's identity differs from this run's, with both values."""
    if "identity" not in meta:
        raise UserError("the checkpoint does not say which run it belongs to", key="identity")
    rows = list_differences(meta["identity"], identity)
    if rows:
        more = f" and {len(rows) - NAMED_AT_MOST} more" if len(rows) > NAMED_AT_MOST else ""
        text = "; ".join(f"{key}: {old!r} in the checkpoint, {new!r} now" for key, old, new in rows[:NAMED_AT_MOST])
        raise UserError(
            f"the checkpoint belongs to another run: {text}{more}",
            key=rows[0][0],
            expected="the same values (only placement may change on resume), or another output folder; if it is meant: "
            f"checkpoint.resume_changes=[{', '.join(key for key, _, _ in rows[:NAMED_AT_MOST])}]",
        )


def check_tensors(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str = "the checkpoint"
) -> None:
    """UserError unless both hold the same names with the same shapes and types; names the first that do not."""
    problems = [f"{name}: missing" for name in expected if name not in found]
    problems += [f"{name}: unexpected" for name in found if name not in expected]
    for name in expected:
        if name in found and _form(found[name]) != _form(expected[name]):
            problems.append(f"{name}: {_form(found[name])} in {source}, {_form(expected[name])} here")
    if problems:
        more = f" and {len(problems) - NAMED_AT_MOST} more" if len(problems) > NAMED_AT_MOST else ""
        raise UserError(f"{source} holds another model: {'; '.join(problems[:NAMED_AT_MOST])}{more}")


def cpu_copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU that share no memory with anything: training may continue while they are written."""
    form = torch.contiguous_format
    return {name: t.detach().to("cpu", copy=True, memory_format=form) for name, t in tensors.items()}


class AsyncSaver:
    """Saves in the background from a copy taken at once, one at a time; an error is raised once, at the next `check`,
    `save` or `close`.

    Storage that is away is tried again for `outage_s` seconds, with growing pauses from `first_pause_s` on, while
    training continues. What a retry cannot mend (a full disk) is an error at once.
    """

    def __init__(self, *, outage_s: float = OUTAGE_S, first_pause_s: float = FIRST_PAUSE_S) -> None:
        self._outage_s, self._first_pause_s = outage_s, first_pause_s
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.last: Committed | None = None

    def save(
        self,
        parent: str,
        name: str,
        tensors: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        also: Also | None = None,
        before_commit: Callable[[], object] | None = None,
        after_commit: Callable[[], object] | None = None,
    ) -> None:
        """Copy the tensors now, write them while training continues. Waits for a save that is still being written.

        also(directory, copies) writes further files into the directory before it is committed. before_commit() comes
        last, in the background, too: what has to be on storage before the checkpoint counts, and whether this process
        may still write; what it raises ends the save. after_commit() follows, also in the background.
        """
        self.wait()
        copies, own = cpu_copy(tensors), dict(meta)

        def write() -> None:
            try:
                path = self._through_outages(lambda: _write(parent, name, copies, own, also, before_commit))
                self.last = self._through_outages(lambda: read_committed(path))
                if after_commit is not None:
                    after_commit()
            except BaseException as e:  # raised by the next wait()
                self._error = e

        # who needs the checkpoint waits or closes; a process that is ended at once waits for no storage
        self._thread = threading.Thread(target=write, name="pathray-save", daemon=True)
        self._thread.start()

    def _through_outages(self, action: Callable[[], T]) -> T:
        return through_outages(action, "the checkpoint", outage_s=self._outage_s, first_pause_s=self._first_pause_s)

    def check(self) -> None:
        """Raise what a save that has ended met; never waits: does nothing while one is being written."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written; raises what the last save met."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    close = wait

    def __enter__(self) -> AsyncSaver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.close()
            return
        with contextlib.suppress(Exception):  # the error that ends the block matters more
            self.close()


def _write(
    parent: str,
    name: str,
    tensors: dict[str, Tensor],
    meta: dict[str, Any],
    also: Also | None = None,
    before_commit: Callable[[], object] | None = None,
) -> str:
    """The path of the checkpoint, committed."""
    from safetensors.torch import save_file

    assert isinstance(meta.get("images_seen"), int), "a checkpoint says how many images it has seen"
    with committed_dir(parent, name, {**meta, "checkpoint_schema_version": SCHEMA_VERSION}) as directory:
        with directory.local_file(TENSORS) as path:
            save_file(tensors, path)
        if also is not None:
            also(directory, tensors)
        if before_commit is not None:
            before_commit()
    return directory.path


@contextlib.contextmanager
def _warn_on_error(what: str) -> Iterator[None]:
    """Storage that refuses, and a damaged record, are a line in the log and not an error."""
    try:
        yield
    except (UserError, OSError) as e:
        log.warning("%s cannot be removed now: %s", what, e)


def _tag(name: str) -> str:
    return name.rpartition("-")[0]


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
