"""Chooses the number of units per update: fixed at a run's first start, and kept on resume with other workers.

Not here: budget and cadences (pathray.train.budget), the division of units among ranks (pathray.data.share).
"""

from __future__ import annotations

from pathray.errors import UserError


def choose_global_batch(
    given: int | None,
    before: int | None,
    first: int,
    workers: int,
    *,
    key: str,
    micro: int | None = None,
    micro_key: str = "",
) -> int:
    """The global batch: `given` in the config, else `before` (of the resumed run), else `first`.

    So the same command resumes with another number of workers. UserError naming `key` if it is not a multiple of the
    workers, and naming `micro_key` if the micro-batch `micro` does not divide a worker's share.
    """
    batch = given or before or first
    if batch % workers:
        found, expected = f"global_batch {batch}, workers {workers}", f"a multiple of {workers}"
        raise UserError("the workers must divide the global batch", key=key, found=found, expected=expected)
    if micro is not None and batch % (workers * micro):
        name = micro_key.rpartition(".")[2]
        raise UserError(
            f"workers x {name} must divide the global batch",
            key=micro_key,
            found=f"global_batch {batch}, workers {workers}, {name} {micro}",
            expected=f"{name} one of {[d for d in range(1, batch + 1) if batch % (d * workers) == 0]}",
        )
    return batch


def check_whole_batch(rows: int, global_batch: int, what: str, micro_key: str, least: int = 1) -> None:
    """UserError unless the micro-batches of all ranks, `rows` together, are the global batch, which `what` needs, and
    of `least` images."""
    if global_batch < least:
        found, expected = f"global_batch {global_batch}", f"at least {least}"
        raise UserError(f"{what} compares images", key=micro_key, found=found, expected=expected)
    if rows != global_batch:
        name = micro_key.rpartition(".")[2]
        raise UserError(
            f"{what} needs the whole global batch at once",
            key=micro_key,
            found=f"{rows} images at a time, global_batch {global_batch}",
            expected=f"workers x {name} = global_batch: more workers, or a smaller global_batch",
        )
