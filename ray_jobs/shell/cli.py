"""The shell around every job: command line in, exit code out. Not here: what a job does (its own file).

A job is a module of this package with a docstring, a `main(loaded) -> Outputs | None`, and these last lines:

    if __name__ == "__main__":
        job(main, SCHEMA, CONFIGS_DIR, GROUPS)

Exit codes: 0 done · 2 the user can fix it (one line on stderr, no trace) · 1 any other error (with a trace) · 130 and
143 stopped by Ctrl-C and SIGTERM. The last line on stdout names the outputs.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pathray.config.load import Group, Loaded, is_set, load_config
from pathray.errors import UserError, user_error_in
from pathray.reports.progress import Progress
from pathray.urls import public_text
from ray_jobs.shell.quiet import own_stderr, to_terminal


@dataclass
class Outputs:
    """A job's outputs by name. `exit_code` ≠ 0 means that it finished, but the result is not good enough."""

    paths: Mapping[str, object] = field(default_factory=dict)
    exit_code: int = 0

    def line(self) -> str:
        return "outputs: " + (" ".join(f"{name}={path}" for name, path in self.paths.items()) or "none")


Main = Callable[[Loaded[Any]], Outputs | None]


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised on the main thread so that every `finally` runs. It is a KeyboardInterrupt because only that
    ends a call into Ray's compiled code; Ray then raises its own KeyboardInterrupt."""


OUTPUTS = ("output", "output_dir", "report")  # the keys of all jobs that name outputs
GRACE_S, AGAIN_S = 10.0, 1.0  # after a signal, and after a repeated one, the process ends within this time
SIGNALS = ((Terminated, "terminated", signal.SIGTERM), (KeyboardInterrupt, "interrupted", signal.SIGINT))


def job(main: Main, schema: type[Any], configs_dir: Path | str, groups: Sequence[Group] = ()) -> NoReturn:
    """Run `main` with the config from this process's command line, and exit with the job's exit code."""
    code = run_job(main, schema, sys.argv[1:], configs_dir, groups)
    sys.stdout.flush()
    raise SystemExit(code)


def run_job(
    main: Main, schema: type[Any], argv: Sequence[str], configs_dir: Path | str, groups: Sequence[Group] = ()
) -> int:
    """Run a job without exiting; returns the exit code. `--help` raises `SystemExit(0)`."""
    own_stderr()
    _log_to_stderr()
    received: list[int] = []
    try:
        with _signals_raise(received):
            main, schema = _importable(main), _importable(schema)
            if {"--help", "-h"} & set(argv):
                print(f"{sys.modules[main.__module__].__doc__ or ''}".strip(), end="\n\n")
            loaded = load_config(schema, argv, configs_dir=configs_dir, groups=groups)
            if loaded.print_config:
                print(public_text(loaded.yaml), end="")
                return 0
            for note in loaded.notes:
                logging.getLogger(__name__).warning("%s", note)
            if not loaded.dry_run:
                _check_outputs(loaded.config)
            outputs = main(loaded)
    except (KeyboardInterrupt, SystemError) as e:
        return _signal_exit_code(e, received) or _report(e)
    except BrokenPipeError:  # `… | head` closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as e:
        return _report(e)
    if outputs is not None:
        print(outputs.line())
        return outputs.exit_code
    return 0


def _check_outputs(config: Any) -> None:
    """UserError, before the job starts, if its outputs cannot be written. Removes half-written files of earlier
    starts."""
    from pathray.data.leftovers import sweep_leftovers
    from pathray.store.storage import check_writable
    from pathray.urls import is_url
    from ray_jobs.shell.submitted import check_kept

    for key in OUTPUTS:
        path = getattr(config, key, None)
        if isinstance(path, str) and is_set(path) and path:
            check_kept(path, key)
            check_writable(path, key)
            if not is_url(path):
                sweep_leftovers(path)


class PublicFormatter(logging.Formatter):
    """Formats records as lines without logins and signatures, from any logger."""

    def format(self, record: logging.LogRecord) -> str:
        return public_text(super().format(record))


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PublicFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("numexpr").setLevel(logging.WARNING)  # says at its import how many threads it takes


def _signal_exit_code(error: BaseException | None, received: Sequence[int]) -> int:
    """The exit code of the signal that caused an error, from the last signal received or from the type of the error; 0
    for other errors. In Ray's compiled code a SystemError may replace the signal's exception, which is then its
    cause."""
    while error is not None:
        for kind, word, number in SIGNALS:
            if isinstance(error, kind) and number in (received[-1:] or [number]):
                print(word, file=sys.stderr)
                return 128 + number
        if isinstance(error, KeyboardInterrupt):  # raised by Ray after a SIGTERM
            print("terminated", file=sys.stderr)
            return 128 + signal.SIGTERM
        error = error.__cause__ or error.__context__
    return 0


def _report(error: BaseException) -> int:
    users = user_error_in(error)
    if users is None:
        print(public_text("".join(traceback.format_exception(error))), end="", file=sys.stderr)
        return 1
    print(f"error: {users}", file=sys.stderr)
    return 2


def _importable(thing: Any) -> Any:
    """The object of ``__main__`` under its module's real name, because workers can unpickle only that."""
    if thing.__module__ != "__main__":
        return thing
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        raise UserError("start the job as a module", expected="python -m ray_jobs.JOB")
    return getattr(importlib.import_module(spec.name), thing.__name__)


@contextmanager
def _signals_raise(received: list[int]) -> Iterator[None]:
    """Make SIGINT and SIGTERM raise on the main thread and append them to `received`, even if the parent process
    ignored or blocked them (background jobs, nohup). If a destructor or compiled code swallows the exception, the
    process still ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over, retold = threading.Event(), threading.Event()
    raised: dict[int, type[KeyboardInterrupt]] = {number: kind for kind, _, number in SIGNALS}

    def handle(signum: int, frame: object) -> None:
        first = not received or retold.is_set()
        retold.clear()
        if not received:
            to_terminal(_words(signum))
        received.append(signum)
        grace_s = GRACE_S if first else min(AGAIN_S, GRACE_S)
        threading.Thread(target=_end_anyway, args=(signum, over, grace_s), name="pathray-end", daemon=True).start()
        raise raised[signum]

    def raise_in_main(unraisable: Any) -> None:
        hook(unraisable)
        for kind, _, number in SIGNALS:
            if issubclass(unraisable.exc_type, kind) and not over.is_set():
                retold.set()
                main = threading.main_thread().ident or 0
                threading.Timer(0.2, signal.pthread_kill, args=(main, number)).start()
                return

    hook, before = sys.unraisablehook, {number: signal.signal(number, handle) for number in raised}
    sys.unraisablehook = raise_in_main
    signal.pthread_sigmask(signal.SIG_UNBLOCK, raised)
    try:
        yield
    finally:
        over.set()
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _words(signum: int) -> str:
    """The message at the first signal: what ends, what is waited for, and for how long at most."""
    doing = " and ".join(str(progress) for progress in list(Progress.shown)) or "the job"
    return (
        f"{signal.Signals(signum).name}: ending {doing}; waiting up to {GRACE_S:.0f} s for work in progress and Ray's "
        "processes to stop; repeat the signal to end at once"
    )


def _end_anyway(signum: int, over: threading.Event, grace_s: float) -> None:
    if not over.wait(grace_s):
        to_terminal(f"{signal.Signals(signum).name}: work in progress did not stop in time")
        os._exit(128 + signum)
