"""Buckets of the overlapped sync; sums over ranks are tested in test_exactness.py."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pathray.device import Device
from pathray.train.sync import FlatSync, OverlapSync, _buckets, gradient_sync

CPU = Device.of("cpu")


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 120))
def test_buckets_cover_every_parameter_once_from_the_last_to_the_first(sizes: list[int], at_most: int) -> None:
    buckets = _buckets(sizes, at_most)
    assert [i for first, end, _ in reversed(buckets) for i in range(first, end)] == list(range(len(sizes)))
    for first, end, part in buckets:
        assert part.start == sum(sizes[:first]) and part.stop == sum(sizes[:end])
        assert part.stop - part.start <= at_most or end - first == 1


def test_both_syncs_give_the_accumulated_gradient_and_release_it() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(2, 5))
    params, x = list(model.parameters()), torch.randn(6, 4)
    (model[1](model[0](x)).square().sum() * 2).backward()
    expected = torch.cat([torch.zeros_like(p).view(-1) if p.grad is None else p.grad.view(-1) for p in params])
    for sync in (FlatSync(params, CPU), OverlapSync(params, CPU, bucket_bytes=32)):
        for _ in range(2):
            sync.begin()
            for last in (False, True):
                if last:
                    sync.last_micro()
                model[1](model[0](x)).square().sum().backward(inputs=params)
            gradient, totals = sync.reduce(torch.tensor([3.0, 4.0]))
            torch.testing.assert_close(gradient, expected)
            assert totals.tolist() == [3.0, 4.0] and all(p.grad is None for p in params)


def test_alone_there_is_nothing_to_overlap() -> None:
    assert isinstance(gradient_sync("overlap", [nn.Parameter(torch.zeros(1))], CPU), FlatSync)
