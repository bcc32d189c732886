"""The names of the files and folders in a run's folder, each defined here once. Imports nothing.

A run's folder is local or a URL (pathray.store.storage). Two names belong to lower layers: the notes of crashes
(pathray.data.crashes) and summary.md, which every job writes (pathray.reports.summary). Sciences may add artifacts of
their own next to `ENCODER`.
"""

from __future__ import annotations

CONFIG = "config_resolved.yaml"
PLAN = "plan"
INDEXES = "indexes"  # what was built before the plan
INDEX_FILE, CATALOG_FILE = "slide_metadata.parquet", "anchor_catalog_manifest.json"
SLIDE_INDEX, ANCHOR_CATALOG = f"{INDEXES}/{INDEX_FILE}", f"{INDEXES}/{CATALOG_FILE}"
CHECKPOINTS = "checkpoints"
ENCODER = "encoder"  # the artifact of a finished run, and the encoder inside a snapshot
STOP = "STOP"
OWNER = "owner.json"  # who trains here (pathray.run.fence)
METRICS = "metrics.jsonl"
LOG = "log.txt"
PROGRESS = "progress.json"  # the last sign of life of a local run
QUARANTINE = "quarantine"  # parts of the report of unreadable units
QUARANTINE_REPORT = "quarantine.parquet"
FIGURES = "figures"
RESULTS = "metrics.json"  # of a supervised run, after its evaluation
EVALUATIONS = "robustness.jsonl"
EVALUATION = "robustness"  # pictures and report of the evaluations
EVALUATION_REPORT = f"{EVALUATION}/report.html"
LIVE_EVALUATOR = f"{EVALUATION}/evaluator.json"  # the evaluator that owns this run
DECISION = "early_stopping.json"
MASK_PICTURES = "visualizations/masks"
SINGLE_WORKER = "single_worker.json"  # why one worker trains instead of several (ray_jobs.train.group_start)
MLFLOW_RUN = "mlflow_run.json"  # which run of MLflow this one is
MLFLOW_LOCK = ".mlflow.lock"
WANDB_RUN = "wandb_run.json"  # which run of W&B this one is, and what it has been told
RAY = "ray"  # what Ray Train keeps of its attempts
HANG = "hang-rank"  # how the notes of steps that hung begin


def fatal_note(fit_id: str) -> str:
    """The note by which one rank tells the next attempt that an error would only come again."""
    return f"{RAY}/fatal-{fit_id}.json"


def group_note(fit_id: str) -> str:
    """The note that all workers of a job have met."""
    return f"{RAY}/met-{fit_id}.json"


def memory_note(fit_id: str) -> str:
    """The note by which one rank tells the next attempt to train with a smaller micro-batch."""
    return f"{RAY}/memory-{fit_id}.json"


def hang_note(rank: int) -> str:
    """The note of a rank that ended because a step hung."""
    return f"{RAY}/{HANG}{rank:05d}.json"
