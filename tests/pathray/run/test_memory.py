"""What counts as out of memory, and which micro-batch comes next."""

from types import SimpleNamespace

import pytest
import torch

from pathray.errors import UserError
from pathray.run.memory import (
    changes_after,
    is_out_of_memory,
    next_changes,
    read_requested_changes,
    smaller_micro_batch,
)
from pathray.store.storage import Storage
from tests.builders.runs.recipes import settings


def test_a_cpu_that_cannot_allocate_is_out_of_memory():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 50)
    assert is_out_of_memory(error.value)


def test_an_accelerator_and_the_host_are_too_and_other_errors_are_not():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")) and is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm"))
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize(
    ("batch", "world", "micro", "smaller"), [(12, 1, 6, 3), (12, 1, 12, 6), (12, 2, 6, 3), (10, 1, 5, 2), (12, 1, 2, 1)]
)
def test_the_next_micro_batch_is_at_most_half_and_divides_a_ranks_share(batch, world, micro, smaller):
    now = settings(global_batch=batch, micro_batch=micro, total_images=batch)
    assert smaller_micro_batch(now, world) == smaller
    assert batch % (world * smaller) == 0


def test_one_unit_cannot_be_halved():
    with pytest.raises(UserError, match="a smaller model"):
        smaller_micro_batch(settings(global_batch=4, micro_batch=1, total_images=4), 1)


def test_a_loss_of_the_whole_global_batch_has_no_smaller_micro_batch_and_says_so():
    now = settings(global_batch=8, micro_batch=4, total_images=8, whole_batch="model.regulariser=sigreg")
    with pytest.raises(
        UserError, match="out of memory, and model.regulariser=sigreg needs the whole global batch"
    ) as e:
        smaller_micro_batch(now, 2)
    assert "more workers, a smaller global_batch" in str(e.value)


def test_in_a_group_a_note_of_the_job_tells_the_next_attempt(tmp_path):
    store, now = Storage.of(tmp_path), settings(global_batch=12, micro_batch=6, total_images=12)
    parts = SimpleNamespace(settings=now, smaller=None)
    error = MemoryError("no room")
    with pytest.raises(MemoryError, match="no room"):
        changes_after(error, store, "one", parts, SimpleNamespace(world_size=2, local_devices=1))
    assert read_requested_changes(store, "one") == {"micro_batch": 3} and read_requested_changes(store, "other") == {}
    assert changes_after(error, store, "alone", parts, SimpleNamespace(world_size=1, local_devices=1)) == {
        "micro_batch": 6 // 2
    }
    assert read_requested_changes(store, "alone") == {}


@pytest.mark.parametrize(
    ("micro", "whole", "allowed", "changes"),
    [
        (2, "", True, {"micro_batch": 1}),
        (1, "", True, {"smaller_units": 1}),
        (4, "the loss", True, {"smaller_units": 1}),
        (2, "", False, {"micro_batch": 1}),
    ],
)
def test_units_get_smaller_only_when_micro_batches_cannot(micro, whole, allowed, changes):
    now = settings(global_batch=4, micro_batch=micro, total_images=4, whole_batch=whole)
    parts = SimpleNamespace(settings=now, smaller=(lambda: None) if allowed else None)
    assert next_changes(parts, 1) == changes


def test_a_group_remembers_every_change_that_its_attempts_asked_for(tmp_path):
    store, device = Storage.of(tmp_path), SimpleNamespace(world_size=2, local_devices=1)
    for micro in (2, 1):
        now = settings(global_batch=4, micro_batch=micro, total_images=4)
        with pytest.raises(MemoryError):
            changes_after(MemoryError(), store, "one", SimpleNamespace(settings=now, smaller=lambda: None), device)
    assert read_requested_changes(store, "one") == {"micro_batch": 1, "smaller_units": 1}


def test_a_micro_batch_stays_a_multiple_of_the_devices_that_share_it():
    now = settings(global_batch=128, micro_batch=16, total_images=128)
    assert smaller_micro_batch(now, 2, devices=4) == 8
    least = settings(global_batch=128, micro_batch=4, total_images=128)
    with pytest.raises(UserError, match="one unit per device"):
        smaller_micro_batch(least, 2, devices=4)
    assert next_changes(SimpleNamespace(settings=least, smaller=lambda: None), 2, 4) == {"smaller_units": 1}
