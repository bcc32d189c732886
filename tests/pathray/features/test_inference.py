import threading
import time

import numpy as np
import pytest

from pathray.device import Device
from pathray.errors import UnreadableUnit
from pathray.features.inference import EncodingError, PixelBatch, encode_batches, read_ahead

CPU = Device.of("cpu")


def test_results_come_in_order_whatever_is_read_first():
    def read(i):
        time.sleep(0.02 if i % 3 == 0 else 0)
        return i * i

    assert list(read_ahead(read, range(30), threads=3, timeout_s=10)) == [i * i for i in range(30)]


def test_reading_stays_a_few_items_ahead_of_the_consumer():
    taken = []
    results = read_ahead(lambda i: i, (taken.append(i) or i for i in range(1000)), threads=2, timeout_s=10)
    assert next(results) == 0 and len(taken) <= 5
    assert [next(results) for _ in range(3)] == [1, 2, 3] and len(taken) <= 8
    results.close()
    assert len(taken) <= 8


def test_what_a_read_raises_is_raised_and_nothing_is_read_after_it():
    seen = []

    def read(i):
        seen.append(i)
        if i == 3:
            raise UnreadableUnit("decode", "a.svs", "tile 3")
        return i

    results = read_ahead(read, range(100), threads=1, timeout_s=10)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UnreadableUnit, match="tile 3"):
        next(results)
    time.sleep(0.05)
    assert max(seen) <= 6


def test_a_read_that_hangs_is_named_and_does_not_hold_up_the_rest():
    release = threading.Event()

    def read(i):
        if i == 1:
            release.wait(30)
        return i

    started = time.monotonic()
    with pytest.raises(UnreadableUnit, match=r"timeout: item 1: no data in 0\.2 s"):
        list(read_ahead(read, range(4), threads=2, timeout_s=0.2, name=lambda i: f"item {i}"))
    assert time.monotonic() - started < 10
    release.set()


def batches(count):
    for i in range(count):
        x = np.full((2, 4, 4, 3), i, np.uint8)
        yield PixelBatch(np.arange(2 * i, 2 * i + 2), {(4, 4): x, (2, 2): x[:, :2, :2] + 1}, {"a": (4, 4), "b": (2, 2)})


def test_each_encoder_gets_the_size_that_is_its_own_and_results_keep_their_rows():
    encoders = {"a": lambda x: x.float().sum((1, 2)), "b": lambda x: x.float().mean((1, 2))}
    found = list(encode_batches(batches(3), encoders, CPU))
    assert [rows.tolist() for rows, _ in found] == [[0, 1], [2, 3], [4, 5]]
    for i, (_, features) in enumerate(found):
        np.testing.assert_array_equal(features["a"], np.full((2, 3), 16.0 * i))
        np.testing.assert_array_equal(features["b"], np.full((2, 3), i + 1.0))


def test_at_most_two_batches_are_alive():
    pulled = []

    def counted():
        for i, batch in enumerate(batches(50)):
            pulled.append(i)
            yield batch

    results = encode_batches(counted(), {"a": lambda x: x.float(), "b": lambda x: x.float()}, CPU)
    next(results)
    assert pulled == [0, 1]


def test_an_encoder_that_fails_is_not_taken_for_bad_data():
    def broken(x):
        raise RuntimeError("CUDA out of memory. Tried to allocate")

    with pytest.raises(EncodingError, match=r"out of memory.*lower batch_size"):
        list(encode_batches(batches(1), {"a": broken, "b": broken}, CPU))
