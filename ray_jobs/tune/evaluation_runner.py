"""Evaluations beside a training, or of a run on storage, as trials of one Ray Tune run that watches its snapshots.

    with Evaluators(run_dir, tuning, identity=…, tag=…, request=…) as evaluators:
        …the training…
        evaluators.drain()

Tune runs in a thread of the driver; a trial is a process of its own with its own resources, so neither the interpreter
nor the accelerator of the training is touched. The state is what is on storage (pathray.evaluation.results): drivers
and evaluators may be killed at any time. An evaluator's trouble is logged and recorded, never the training's.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pathray.errors import UserError
from pathray.evaluation.attempts import Attempts
from pathray.evaluation.early_stopping import EARLY_STOPPED
from pathray.evaluation.settings import TuningConfig
from pathray.run.layout import ENCODER, RAY
from pathray.store.outages import OUTAGE_S, through_outages
from pathray.store.storage import StorageError
from ray_jobs.tune.evaluation_resources import Request

log = logging.getLogger(__name__)

LOCAL_LOOK_S, REMOTE_LOOK_S = 1.0, 15.0
RESTART_AFTER_S, RESTARTS = 10.0, 5  # without an evaluation between them
ERROR_PAUSE_S, ERRORS = 10.0, 3  # of the bookkeeping itself, before evaluations end with the next one
REPORT_EVERY_S = 600.0
ALIVE_S = 5.0


@dataclass(frozen=True)
class _Finished:
    """An evaluation that has come to an end, well or not, and what its process said."""

    snapshot: Any
    due: dict[str, list[str]]
    took_s: float
    result: Mapping[str, Any]

    @property
    def images(self) -> int:
        return int(self.snapshot.images_seen)


class Evaluators:
    """Evaluations of the run in `run_dir` (an absolute path or a URL). `identity`: its identity's hash, None for
    whatever run is there. `owner`: this process trains the run, so it also removes snapshots.
    `limited`: drop what waits beyond `max_pending_jobs`."""

    def __init__(
        self,
        run_dir: str,
        tuning: TuningConfig,
        request: Request,
        *,
        identity: str | None,
        tag: str | None = None,
        owner: bool = True,
        limited: bool = True,
        snapshots: list[Any] | None = None,
    ) -> None:
        from pathray.evaluation.judge import cadences
        from pathray.evaluation.results import Results

        self.tuning, self.request, self.tag, self.owner = tuning, request, tag, owner
        self.results = Results(run_dir, identity, tuning.early_stopping)
        self.run_dir = self.results.store.url
        self.cadences = cadences(tuning.plugins)
        self.limited, self.given = limited, snapshots
        self.key = uuid.uuid4().hex[:8]
        self.running: dict[str, tuple[Any, dict[str, list[str]], float]] = {}
        self.unrecorded: list[_Finished] = []
        self.over, self.abandoned = threading.Event(), threading.Event()
        self.failure: UserError | None = None
        self.owed = dict[str, Callable[[], Any]]()  # by name, what storage has not taken yet
        self.claimed = self.current = False
        self.troubled: float | None = None
        self.errors, self.again_at, self.ended = 0, 0.0, False  # of the bookkeeping itself
        self.judged = 0  # evaluations of this process that have come to an end, well or not
        self.newest, self.new_at = 0, time.monotonic()
        self._looked, self._seen, self._reported = 0.0, list[Any](), time.monotonic()
        self._thread: threading.Thread | None = None
        self._pulse: threading.Thread | None = None

    def __enter__(self) -> Evaluators:
        from ray_jobs.tune.searchers import WATCHES

        if self.request.advice:
            log.warning("%s", self.request.advice)
        self.claimed = through_outages(partial(self.results.claim, self.key), "the evaluator")
        if not self.claimed:
            log.warning("another evaluator is, or was a minute ago, at work on %s: waiting for it", self.run_dir)
        WATCHES[self.key] = self
        self._thread = threading.Thread(target=self._run, name="pathray-evaluators", daemon=True)
        self._pulse = threading.Thread(target=self._claim, name="pathray-evaluators-alive", daemon=True)
        self._thread.start()
        self._pulse.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Ends at once what `drain` has not waited for: it is on storage, and the next start resumes it."""
        from ray_jobs.tune.searchers import WATCHES

        self.abandoned.set()
        self.over.set()
        if self._thread is not None:
            self._thread.join(timeout=30.0)
        WATCHES.pop(self.key, None)
        if self._pulse is not None:
            self._pulse.join(timeout=30.0)  # it would claim again what is released
        for snapshot, _, _ in self.running.values():
            self._safely(Attempts(self.results.store, _name(snapshot)).forgive)
        self._release()

    @property
    def is_working(self) -> bool:
        """Whether evaluations run, or may."""
        return self._thread is not None and self._thread.is_alive()

    def drain(self) -> None:
        """No further snapshots will come: wait until those that are there have been judged. Then write the report."""
        self.over.set()
        waiting = len(self._safely(self._waiting_snapshots) or ())
        if self.limited:
            waiting = min(waiting, self.tuning.execution.max_pending_jobs)
        if waiting or self.running:
            count = waiting + len(self.running)
            log.info("%d evaluations are still to come; Ctrl-C ends now, and the next start evaluates them", count)
        while self._thread is not None and self.is_working:
            self._thread.join(0.5)
        self.report(wait=True)
        if self.failure is not None:
            raise self.failure

    def report(self, *, wait: bool = False) -> str | None:
        """The robustness report as a page; None while nothing was judged. `wait`: until storage takes it."""
        if not self.results.rows:
            return None
        from pathray.evaluation.report import write_report

        self._reported = time.monotonic()
        write = partial(write_report, self.run_dir)
        page: str | None = self._safely(partial(through_outages, write, "the report") if wait else write)
        return page

    # --- asked by Tune ----------------------------------------------------------------------------------------------

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """See ray_jobs.tune.searchers.Watched. What raises here is logged: Tune would end with it.
        Storage is asked again for as long as it takes, anything else a few times."""
        from ray_jobs.tune.searchers import FINISHED

        if self.abandoned.is_set() or self.failure is not None or self.ended:
            return FINISHED
        if not self.claimed:
            self.current = False
            return None
        if time.monotonic() < self.again_at:
            return None
        looked, over = self._looked, self.over.is_set()  # before looking: what is committed by now is found
        try:
            self._catch_up()
            self._record_finished()
            self._make_up()
            found = self._next(trial_id, look=over and not self.running)
        except OSError as e:
            return FINISHED if self._gives_up(e, over) else None
        except Exception as e:
            return FINISHED if self._ends_with(e) else None
        self.troubled = None
        if self._looked != looked:
            self.errors = 0
        if found is not None:
            return found
        return FINISHED if over and not self.running else None

    def record_trial(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None:
        """See ray_jobs.tune.searchers.Watched."""
        if trial_id not in self.running:
            return  # of a Tune run that broke: the snapshot is evaluated anew
        snapshot, due, began = self.running.pop(trial_id)
        result = result or {}
        if self.abandoned.is_set() and (error or "judged" not in result):
            return  # the next start evaluates it
        self.judged += 1
        self.unrecorded.append(_Finished(snapshot, due, time.monotonic() - began, result))
        self._safely(self._record_finished)  # what storage does not take now is recorded at the next look

    def _record_finished(self) -> None:
        """Record what has come to an end. StorageError while storage is away: it is then kept for the next time."""
        while self.unrecorded:
            done = self.unrecorded[0]
            self.results.reload()  # another evaluator may have been first
            if not self._has_row(done.snapshot):
                try:
                    self._note(done)
                except StorageError:
                    if not self._has_row(done.snapshot):
                        raise
                except Exception as e:  # an evaluator's result that is no row: without one it would be tried for ever
                    log.warning("the evaluation at %s images is damaged", f"{done.images:,}", exc_info=True)
                    if not self._has_row(done.snapshot):
                        why = {"error": f"{type(e).__name__}: {e}", "trace": traceback.format_exc()}
                        self._note(replace(done, result=why))
            self.unrecorded.pop(0)
            self._safely(Attempts(self.results.store, _name(done.snapshot)).clear)

    def _has_row(self, snapshot: Any) -> bool:
        return any(row["images_seen"] == snapshot.images_seen for row in self.results.rows)

    def _catch_up(self) -> None:
        """At the start, and whenever the run becomes ours: what others recorded until then counts."""
        if not self.current:
            self.results.reload()
            if self.owner and self.tag is not None:
                self.results.cut_back(self.tag)
            self.current = True
            self._now_or_later("the decision", self.results.settle)
            decision = self.results.decision()
            if self.owner and decision is not None and decision.stop and self.tuning.early_stopping.stop_training:
                self._stop_training(EARLY_STOPPED)  # decided before, but the job died before the training had ended

    def _gives_up(self, error: Exception, over: bool) -> bool:
        """Log it; whether the end of the job has waited for long enough for storage that does not answer."""
        if self.troubled is None:
            log.warning("snapshots could not be read; retrying: %s", error, exc_info=not isinstance(error, UserError))
            self.troubled = time.monotonic()
        if over and time.monotonic() - self.troubled >= OUTAGE_S:
            log.error("the next start evaluates what has not been evaluated yet")
            return True
        self.abandoned.wait(LOCAL_LOOK_S if over else 0.0)
        return False

    def _ends_with(self, error: Exception) -> bool:
        """Log an unexpected error. True once there were more than ERRORS in a row, which ends evaluations."""
        self.errors += 1
        if self.errors > ERRORS:
            self.ended = True
            message = "evaluations end: %s; python -m ray_jobs.evaluate watch=%s resumes them"
            log.error(message, error or type(error).__name__, self.run_dir, exc_info=error)
            return True
        self.again_at = time.monotonic() + ERROR_PAUSE_S
        message = "snapshots could not be evaluated; retrying in %.0f s: %s"
        log.warning(message, ERROR_PAUSE_S, error or type(error).__name__, exc_info=error)
        return False

    def _next(self, trial_id: str, look: bool) -> dict[str, Any] | None:
        from pathray.evaluation.backlog import Record, decide

        every = LOCAL_LOOK_S if self.results.store.local else REMOTE_LOOK_S
        if not look and time.monotonic() - self._looked < every:
            return None
        self._looked, self._seen = time.monotonic(), self._snapshots()
        running = [Record(s.images_seen, s.index, "running", due) for s, due in self._in_work()]
        limit = self.tuning.execution.max_pending_jobs if self.limited else None
        chosen = decide(self._seen, self.results.records(), running, self.cadences, limit)
        if chosen.drop and self.tuning.execution.fail_on_backlog:
            self._fail_on_backlog(len(chosen.drop))
            return None
        for snapshot in chosen.drop:
            self._record(snapshot, "dropped", {}, {"tune/queue_depth": chosen.waiting + 1})
            log.warning("the evaluation at %s images is dropped: newer ones wait", f"{snapshot.images_seen:,}")
        if chosen.next is None or self.running:  # one at a time; asked all the same, so that the queue stays short
            return None
        if not chosen.due:
            self._record(chosen.next, "ok", {}, {"notes": ["no metric was due"]})
            return None
        self.running[trial_id] = (chosen.next, chosen.due, time.monotonic())
        return {
            "encoder": f"{chosen.next.path}/{ENCODER}" if self.given is None else chosen.next.path,
            "due": json.dumps(chosen.due),
            "snapshot": _name(chosen.next),
            "images_seen": chosen.next.images_seen,
            "neighbours": json.dumps(self.results.neighbours()),
        }

    def _snapshots(self) -> list[Any]:
        found = self.results.snapshots() if self.given is None else self.given
        newest = max((s.images_seen for s in found), default=0)
        if newest > self.newest:
            self.newest, self.new_at = newest, time.monotonic()
        return found

    def _waiting_snapshots(self) -> list[Any]:
        done = {r.images_seen for r in self.results.records()} | {s.images_seen for s, _ in self._in_work()}
        return [s for s in self._snapshots() if s.images_seen not in done]

    def _in_work(self) -> list[tuple[Any, dict[str, list[str]]]]:
        """Snapshots that have no row yet and are not waiting either, with the metrics that are due on them."""
        ended = [(done.snapshot, done.due) for done in self.unrecorded]
        return [*((snapshot, due) for snapshot, due, _ in self.running.values()), *ended]

    # --- results ----------------------------------------------------------------------------------------------------

    def _note(self, done: _Finished) -> None:
        snapshot, due, result, images = done.snapshot, done.due, done.result, done.images
        row: dict[str, Any] = {"tune/evaluator_s": result.get("evaluator_s", done.took_s), "tune/trial_s": done.took_s}
        if "judged" in result:
            judged = json.loads(result["judged"])
            failed = judged.get("failed") or {}
            parts = {"failed": failed} if failed else {}
            self._record(snapshot, "ok", due, {**row, "notes": judged["notes"], **parts, **judged["metrics"]})
            for what, why in failed.items():
                log.warning("%s failed at %s images, the other metrics are there: %s", what, f"{images:,}", why)
        else:
            why, trace = result.get("error") or "the evaluator's process died", result.get("trace", "")
            self._record(snapshot, "failed", due, {**row, "error": why, **({"trace": trace} if trace else {})})
            log.warning("the evaluation at %s images failed: %s\n%s", f"{images:,}", why, trace)
        decision = self.results.decision()
        self._now_or_later("the decision", self.results.settle)
        self._tell(snapshot, decision)
        if self.owner:
            self._safely(partial(self.results.prune, self.tuning.execution.keep_last_n_snapshots, self.tag))
        if decision is not None and decision.stop and self.tuning.early_stopping.stop_training:
            best = (
                "never a number" if decision.best is None else f"{decision.best:.4f} at {decision.best_images:,} images"
            )
            key = self.tuning.early_stopping.selection.key
            log.warning("early stopping: %s was best with %s, decided at %s", key, best, f"{images:,}")
            self._stop_training(EARLY_STOPPED)
        if time.monotonic() - self._reported >= REPORT_EVERY_S:
            self.report()

    def _record(self, snapshot: Any, status: str, due: dict[str, list[str]], more: dict[str, Any]) -> None:
        lag = {
            "tune/queue_depth": len([s for s in self._waiting_snapshots() if s.images_seen != snapshot.images_seen]),
            "tune/dropped": self.results.n_dropped() + (status == "dropped"),
            "tune/lag_images": max(0, self.newest - snapshot.images_seen),
            "tune/lag_s": max(0.0, time.time() - snapshot.created) if snapshot.created else 0.0,
        }
        self.results.record(snapshot, status, due, **{**lag, **more})

    def _tell(self, snapshot: Any, decision: Any) -> None:
        row = self.results.rows[-1]
        if row["status"] != "ok":
            return
        names = sorted(k for k, v in row.items() if "/" in k and not k.startswith("tune/") and isinstance(v, float))
        main = [
            k for k in names if k.rpartition("/")[2] in ("ri", "apd_avg", "clustering_score", "linear_id", "knn_id")
        ]
        figures = " · ".join(f"{k} {row[k]:.3f}" for k in main or names[:4])
        best = f" (best so far at {decision.best_images:,})" if decision and decision.best_images is not None else ""
        log.info(
            "evaluation %d at %s images: %s%s; %.0f s, %d waiting, %d dropped",
            snapshot.index,
            f"{snapshot.images_seen:,}",
            figures or "nothing could be judged",
            best,
            row["tune/evaluator_s"],
            row["tune/queue_depth"],
            row["tune/dropped"],
        )
        told = {note for before in self.results.rows[:-1] for note in before.get("notes") or ()}
        for note in row.get("notes") or ():
            if note not in told:
                log.info("not judged, or not as planned: %s", note)

    def _fail_on_backlog(self, count: int) -> None:
        found = f"{count + self.tuning.execution.max_pending_jobs} waiting evaluations"
        expected = f"at most {self.tuning.execution.max_pending_jobs}: a longer tune_every, or fail_on_backlog=false"
        message = "evaluations fall behind the training, which was stopped"
        self.failure = UserError(
            message, file=self.run_dir, key="tuning.execution.fail_on_backlog", found=found, expected=expected
        )
        self._stop_training("backlog")

    def _stop_training(self, reason: str) -> None:
        """Only while somebody trains: a STOP that nobody reads would end the next start."""
        if self.over.is_set():
            return
        from pathray.run.stop import request_stop

        log.warning("asking the training to stop at its next poll: %s", reason.replace("_", " "))
        wish = partial(request_stop, self.run_dir, reason)
        self._now_or_later("the stop", lambda: None if self.over.is_set() else wish())

    # --- threads ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Tune, started again when it breaks: it must not take the training along, nor leave it without evaluations."""
        attempt = failures = judged = 0
        while failures <= RESTARTS:
            try:
                self._tune(attempt)
                return
            except Exception as e:
                self.running.clear()
                failures = 1 if self.judged > judged else failures + 1
                attempt, judged = attempt + 1, self.judged
                log.warning("evaluations are interrupted: %s", type(e).__name__, exc_info=True)
                if self.over.wait(RESTART_AFTER_S) and self.abandoned.is_set():
                    return
        log.error("no evaluations any more; python -m ray_jobs.evaluate watch=%s resumes them", self.run_dir)

    def _tune(self, attempt: int) -> None:
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("TUNE_WARN_THRESHOLD_S", "30")
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # with the new one, verbose=0 still prints
        for name in ("analysis.experiment_analysis", "tune"):  # they look for logs that are off, and say where none are
            logging.getLogger(f"ray.tune.{name}").setLevel(logging.ERROR)
        from ray import tune

        from ray_jobs.tune.evaluation_trial import TrialSpec, evaluation_trial
        from ray_jobs.tune.searchers import SnapshotSearcher

        execution, store = self.tuning.execution, self.results.store
        spec = TrialSpec(
            tuple(self.tuning.plugins),
            self.run_dir,
            self.request.accelerator,
            max(1, int(execution.cpus)),
            execution.max_retries,
        )
        name = f"evaluations-{self.key}-{attempt}"
        tuner = tune.Tuner(
            tune.with_resources(partial(evaluation_trial, spec=spec), dict(self.request.resources)),
            tune_config=tune.TuneConfig(
                search_alg=SnapshotSearcher(self.key),
                num_samples=-1,
                reuse_actors=all(plugin.feature_persistent_workers for plugin in self.tuning.plugins),
                trial_dirname_creator=_folder,
                trial_name_creator=_folder,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=store.path(RAY),
                storage_filesystem=store.pyarrow_fs(),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=execution.max_retries),
            ),
        )
        tuner.fit()
        self._safely(partial(store.remove, f"ray/{name}"))

    def _claim(self) -> None:
        """The sign of life, for as long as there is life: others wait for it, in sync mode the training does."""
        while not self.abandoned.wait(ALIVE_S):
            if not self.is_working:
                self._release()
                return
            claimed = self._safely(partial(self.results.claim, self.key))
            self.claimed = self.claimed if claimed is None else claimed

    def _release(self) -> None:
        if self.claimed:
            self.claimed = False
            self._safely(self.results.release)

    def _now_or_later(self, what: str, action: Callable[[], Any]) -> None:
        """`_safely`, and once more at each later look until storage that is away has taken it."""
        self.owed[what] = action
        self._safely(partial(self._make_up, what))

    def _make_up(self, *names: str) -> None:
        """Do what is owed. StorageError while storage is away: it is then kept for the next time."""
        for what in names or tuple(self.owed):
            try:
                self.owed[what]()
            except StorageError as e:
                if e.passing:
                    raise
                log.warning("%s: %s", what, e)
            except BaseException:
                del self.owed[what]
                raise
            del self.owed[what]

    def _safely(self, action: Any) -> Any:
        """What it gives; None after an error, which is logged: bookkeeping must not end a run."""
        try:
            return action()
        except Exception as e:
            log.warning("%s", e or type(e).__name__, exc_info=not isinstance(e, UserError))
            return None


def _name(snapshot: Any) -> str:
    return str(snapshot.path.rpartition("/")[2])


def _folder(trial: Any) -> str:
    return f"img{trial.config['images_seen']}-{trial.trial_id}"
