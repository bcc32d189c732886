"""Runs batches of pixels through several encoders: read ahead in threads, uploaded once, returned in input order.

Memory is bounded by a few batches for any length of input. Not here: what is read, where features go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeout
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from pathray.errors import UnreadableUnit

if TYPE_CHECKING:
    from torch import Tensor

    from pathray.device import Device
    from pathray.features.encoder import FeatureEncoder

Size = tuple[int, int] | tuple[int, int, str]  # (width, height), and how images are brought to it if not by area
T = TypeVar("T")
R = TypeVar("R")


class EncodingError(Exception):
    """An encoder failed on valid pixels. This is not the data's fault, so no slide is reported as damaged."""

    def __reduce__(self) -> tuple[Any, ...]:
        return EncodingError, self.args


@dataclass(frozen=True)
class PixelBatch:
    """Images ``[B, h, w, 3]`` uint8 by size, the input size of each encoder, and the images' `rows` ``[B]``."""

    rows: npt.NDArray[np.int64]
    pixels: Mapping[Size, npt.NDArray[np.uint8]]
    sizes: Mapping[str, Size]


def encode_batches(
    batches: Iterable[PixelBatch], encoders: Mapping[str, FeatureEncoder], device: Device
) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[np.float32]]]]:
    """(rows, features ``[B, D]`` by encoder) of every batch, in order; one is computed while the last is fetched."""
    waiting: tuple[PixelBatch, dict[str, Tensor]] | None = None
    for batch in batches:
        submitted = _submit(batch, encoders, device)
        if waiting is not None:
            yield waiting[0].rows, _fetch(waiting[1])
        waiting = batch, submitted
    if waiting is not None:
        yield waiting[0].rows, _fetch(waiting[1])


def _submit(batch: PixelBatch, encoders: Mapping[str, FeatureEncoder], device: Device) -> dict[str, Tensor]:
    try:
        placed = {size: device.to_device({"pixels": pixels})["pixels"] for size, pixels in batch.pixels.items()}
        return {name: encoders[name](placed[size]) for name, size in batch.sizes.items()}
    except Exception as e:
        raise encoding_error(e) from e


def _fetch(features: dict[str, Tensor]) -> dict[str, npt.NDArray[np.float32]]:
    try:
        return {name: values.cpu().numpy() for name, values in features.items()}
    except Exception as e:  # on CUDA, errors appear here
        raise encoding_error(e) from e


def encoding_error(e: Exception) -> EncodingError:
    """What a failure of an encoder is raised as, with advice where it ran out of memory."""
    advice = " (lower batch_size)" if "out of memory" in str(e).lower() else ""
    return EncodingError(f"encoding failed: {type(e).__name__}: {e}{advice}")


def read_ahead(
    read: Callable[[T], R],
    items: Iterable[T],
    *,
    threads: int,
    timeout_s: float,
    per_thread: int = 2,
    name: Callable[[T], str] = str,
) -> Iterator[R]:
    """The results of `read` for all items, in order, read by `threads` threads at most `per_thread` items each ahead.

    Raises what `read` raises, and UnreadableUnit (``timeout``, naming the item) if the consumer waits longer than
    `timeout_s` for an item; the item's thread is then abandoned.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pathray-read")
    source, waiting = iter(items), deque[tuple[T, Future[R]]]()
    try:
        waiting.extend((item, pool.submit(read, item)) for item in islice(source, per_thread * threads))
        while waiting:
            item, future = waiting.popleft()
            try:
                result = future.result(timeout_s)
            except FuturesTimeout as e:
                if future.done():  # the reader's own
                    raise
                raise UnreadableUnit("timeout", name(item), f"no data in {timeout_s:g} s") from e
            waiting.extend((item, pool.submit(read, item)) for item in islice(source, 1))
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
