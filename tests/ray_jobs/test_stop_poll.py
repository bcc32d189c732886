"""Asking the run folder whether to stop, on storage that is out of reach for a while. Starts no Ray."""

from core.errors import UserError
from core.storage import StorageError
from ray_jobs.train_worker import _Worker


class Store:
    def __init__(self, *answers):
        self.answers = list(answers)

    def exists(self, name):
        assert name == "STOP"
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_storage_out_of_reach_does_not_end_a_run_that_asks_whether_to_stop():
    worker = _Worker.__new__(_Worker)
    worker.failed, worker.store = None, Store(False, StorageError("cannot read: 503", file="gs://b/STOP"), True)
    assert [worker._stop_requested() for _ in range(3)] == [False, False, True]
    worker.failed = UserError("the disk is full")
    assert worker._stop_requested() and worker.store.answers == []
