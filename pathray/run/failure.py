"""A failure of storage that ends a run on all its ranks together, instead of one rank's death under the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pathray.errors import UserError
from pathray.run.fence import Superseded
from pathray.store.storage_errors import storage_error


class RunFailed(UserError):
    """All ranks ended with this together: starting them again would only meet it again."""


class SharedFailure:
    """What storage refuses (a full disk …) ends the run on all ranks, at the next poll.

    A restarted group would train up to the next save only to meet it again. Only rank 0 is asked whether to stop, and
    only rank 0 saves: on the others the error ends the rank, and so the group.
    """

    def __init__(self, rank: int, run_dir: str) -> None:
        self.rank, self.run_dir = rank, run_dir
        self.error: UserError | None = None

    @contextmanager
    def keep_error(self) -> Iterator[None]:
        """Keeps an OSError of the block for the end of the run (rank 0), or raises it (other ranks)."""
        try:
            yield
        except Superseded as e:  # on any rank: it writes no more, and rank 0 ends the run when it looks itself
            self.error = self.error or e
        except OSError as e:
            error = e if isinstance(e, UserError) else storage_error(e, self.run_dir, writing=True)
            if self.rank != 0:
                raise error from e
            self.error = self.error or error

    def check(self) -> None:
        """Raise what was kept, as a RunFailed."""
        if self.error is not None:
            raise RunFailed(self.error.message, **self.error.where) from self.error
