"""Devices as the loop needs them, on the CPU; several processes are tested in train/test_exactness.py."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from pathray.device import Device, scalar, stable_seed
from pathray.errors import UserError

CPU = Device.of("cpu")


def test_auto_is_the_cpu_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PJRT_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device = Device.of("auto")
    assert (device.kind, device.rank, device.world_size, device.torch_device.type) == ("cpu", 0, 1, "cpu")
    assert not device.reduces


def test_an_accelerator_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        Device.of("cuda")
    with pytest.raises(UserError, match="unknown accelerator.*tpu"):
        Device.of("tpu")
    monkeypatch.setitem(sys.modules, "torch_xla", None)
    with pytest.raises(UserError, match="cannot import torch_xla"):
        Device.of("xla")


def test_an_accelerator_whose_processes_cannot_share_a_training_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"MPS cannot train data-parallel.*key: accelerator.*'mps'.*expected: 'cpu"):
        Device.of("mps")


def test_arrays_become_tensors_and_the_rest_passes() -> None:
    frozen = np.arange(6, dtype=np.uint8).reshape(2, 3)
    frozen.flags.writeable = False
    batch = {"x": frozen, "t": frozen.T, "bags": [np.ones((2, 3)), np.ones((5, 3))], "name": "n", "n": 3, "s": ["a"]}
    placed = CPU.to_device(batch)
    assert placed["x"].dtype == torch.uint8 and placed["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert placed["t"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert [b.shape for b in placed["bags"]] == [(2, 3), (5, 3)]
    assert (placed["name"], placed["n"], placed["s"]) == ("n", 3, ["a"])


def test_ragged_groups_are_placed_as_they_are_however_deep() -> None:
    bags = [[np.full((n, 4), n, np.float32) for n in group] for group in ((3, 1, 5), (2,))]
    batch = {"bags": bags, "more": [{"t": torch.arange(n), "name": "a"} for n in (2, 7)], "pair": (np.ones(2), "b")}
    placed = CPU.to_device(batch)
    assert [[tuple(bag.shape) for bag in group] for group in placed["bags"]] == [[(3, 4), (1, 4), (5, 4)], [(2, 4)]]
    assert all(isinstance(bag, torch.Tensor) and (bag == len(bag)).all() for group in placed["bags"] for bag in group)
    assert [(m["t"].tolist(), m["name"]) for m in placed["more"]] == [([0, 1], "a"), (list(range(7)), "a")]
    assert placed["pair"][0].tolist() == [1, 1] and placed["pair"][1] == "b"


def test_what_is_in_a_list_is_not_split_over_the_devices_of_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device("cpu", torch.device("cpu"))
    cut = []
    monkeypatch.setattr(Device, "shard", lambda self, tensor: cut.append(tuple(tensor.shape)) or tensor)
    device.to_device({"x": np.ones((4, 2)), "d": {"y": np.ones(6)}, "bags": [np.ones((3, 2)), {"z": np.ones(5)}]})
    assert cut == [(4, 2), (6,)]


def test_a_seed_is_the_same_in_every_process_and_release() -> None:
    """A constant: Python's hash is salted per process, and another value would change every resumed run."""
    assert stable_seed(1, 2, 3, 4, "student") == 5681208078528819307


def test_every_part_of_a_seed_matters_and_parts_do_not_run_into_each_other() -> None:
    parts = [
        (1, 2, 3, 4, "a"),
        (1, 2, 4, 3, "a"),
        (12, 3, 4, "a"),
        (1, 23, 4, "a"),
        ("1", 2, 3, 4, "a"),
        (1, 2, 3, 4, "b"),
    ]
    seeds = {stable_seed(*p) for p in parts}
    assert len(seeds) == len(parts) and all(0 <= s < 2**63 for s in seeds)


def test_reseeding_repeats_dropout() -> None:
    drop, x = torch.nn.Dropout(0.5), torch.ones(1000)
    CPU.seed(3, 7, 0, 1, "student")
    first = drop(x)
    assert not torch.equal(first, drop(x))
    CPU.seed(3, 7, 0, 1, "student")
    assert torch.equal(first, drop(x))


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_is_what_it_says(precision: str, dtype: torch.dtype) -> None:
    with CPU.autocast(precision):
        assert torch.nn.Linear(4, 4)(torch.ones(1, 4)).dtype == dtype


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UserError, match="fp32 or bf16 or fp16"):
        CPU.autocast("fp8")


def test_alone_everything_between_ranks_is_the_identity() -> None:
    x = torch.arange(3.0)
    assert CPU.all_reduce_sum_(x) is None and x.tolist() == [0, 1, 2]
    assert CPU.gather_sum_grad(x) is x and CPU.broadcast_object("a") == "a" and CPU.gather_objects(1) == [1]
    assert CPU.flags([2, True]).tolist() == [2.0, 1.0] and CPU.compile_count() == 0
    assert scalar(0.25, torch.device("cpu")).item() == 0.25 and CPU.memory()["memory_peak_gib"] > 0
