"""Which unit stands at which position, and the randomness that belongs to a position. No state, no tables of rows.

A *position* is the place of a unit in the endless training sequence; a *row* is its place in the plan. `Order` maps one
to the other with keyed permutations, so one integer (the position reached) is the whole data state of a run. Everything
random about a unit comes from `rng(seed, purpose, position, attempt)`.

Not here: positions that hold several rows (pathray.data.groups), who reads the rows (pathray.data.share,
pathray.data.stream) and what they hold (pathray.data.plan).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pathray.errors import UserError

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

ROUNDS = 8
MAX_CYCLE = 1 << 16
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def rng(seed: int, purpose: str, position: int, attempt: int = 0, slot: int = 0) -> np.random.Generator:
    """The generator of one unit for one purpose (``"boxes"``, ``"augment"`` …): equal arguments, equal draws, anywhere.

    `slot` is the unit's place in its group, where positions hold groups. `purpose` is hashed with crc32, which, unlike
    `hash`, is not salted per process.
    """
    entropy = (int(seed) & 0xFFFFFFFFFFFFFFFF, zlib.crc32(purpose.encode()), int(position), int(attempt))
    place = (int(slot),) if slot else ()  # a unit that is alone draws as before there were groups
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy + place)))


def unit_seeds(seed: int, purpose: str, positions: npt.ArrayLike) -> Ints:
    """One non-negative int64 seed per position `[N]`, vectorised: for device-side augmentation that draws by itself."""
    key = key_of(seed, zlib.crc32(purpose.encode()))
    return (_mix(np.asarray(positions, np.uint64) * _GOLDEN + key) >> np.uint64(1)).astype(np.int64)


def permute(index: npt.ArrayLike, n: int | Ints, key: int | Words) -> Ints:
    """Keyed bijection of 0…n−1 applied to `index`; `n` and `key` may differ per element.

    A balanced Feistel network over the next even power of two, walked along its cycle until it falls below n (Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains"). O(1) memory per element whatever n.
    """
    x, size, k = (np.atleast_1d(a).astype(np.uint64) for a in np.broadcast_arrays(index, n, key))
    assert np.all(x < size), "index outside 0…n-1"
    out = np.empty(x.shape, np.uint64)
    todo = np.arange(x.size)
    bits = np.maximum(np.ceil(np.log2(np.maximum(size, 2).astype(np.float64))), 1).astype(np.uint64)
    bits += ((np.uint64(1) << bits) < size).astype(np.uint64)
    half = (bits + np.uint64(1)) // np.uint64(2)
    while todo.size:
        x = _feistel(x, half, k)
        done = x < size
        out[todo[done]] = x[done]
        again = ~done
        todo, x, size, k, half = todo[again], x[again], size[again], k[again], half[again]
    return out.astype(np.int64)


def _feistel(x: Words, half: Words, key: Words) -> Words:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for i in range(ROUNDS):
        mixed = _mix(right + key + np.uint64((i + 1) * int(_GOLDEN) % 2**64)) & mask
        left, right = right, left ^ mixed
    return (left << half) | right


def _mix(z: Words) -> Words:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014), element-wise; wraps modulo 2^64."""
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def key_of(*words: int | Ints | Words) -> Words:
    """One uint64 key out of several words, element-wise: for `permute`."""
    with np.errstate(over="ignore"):
        state = np.zeros(1, np.uint64)
        for word in words:
            w = np.asarray(word).astype(np.uint64) if isinstance(word, np.ndarray) else np.uint64(int(word) % 2**64)
            state = _mix((state ^ w) + _GOLDEN)
        return state


@dataclass(frozen=True)
class Stratum:
    """A contiguous range of plan rows that is drawn with one weight (an organ, a site, a class)."""

    name: str
    start: int
    rows: int
    weight: float = 1.0


@dataclass(frozen=True)
class Order:
    """Position → plan row, without end: every stratum is passed through again and again, each pass in another order.

    Strata share the positions through a fixed cycle of slots (largest remainder of their weights), permuted per cycle;
    the k-th draw of a stratum is row π(k mod n) of pass k // n. With `window` > 0 and `segments` (first row of each
    slide, plus the end) a pass visits the slides in a permuted order and shuffles only within windows of that many
    rows, so that few slides are open at once: for storage where a slide is expensive to open.

    Build it with `uniform_order` or `stratified_order`.
    """

    seed: int
    strata: tuple[Stratum, ...]
    window: int = 0
    segments: Ints | None = None
    slots: Ints = field(default_factory=lambda: np.zeros(1, np.int64))
    ordinals: Ints = field(default_factory=lambda: np.zeros(1, np.int64))

    def rows(self, positions: npt.ArrayLike) -> Ints:
        """Plan rows `[N]` of positions `[N]`."""
        stratum, draw = self._draws(np.asarray(positions, np.int64))
        n = np.array([s.rows for s in self.strata], np.int64)[stratum]
        start = np.array([s.start for s in self.strata], np.int64)[stratum]
        turn, index = draw // n, draw % n
        if self.window <= 0:
            return start + permute(index, n, key_of(self.seed, 1, stratum, turn))
        rows = np.empty(index.shape, np.int64)
        for s, t in sorted({(int(a), int(b)) for a, b in zip(stratum, turn, strict=True)}):
            here = (stratum == s) & (turn == t)
            rows[here] = self._shuffle_in_windows(s, t, index[here])
        return rows

    def replacement(self, position: int, attempt: int, slot: int = 0) -> int:
        """The row that stands in for an unreadable one: another of the same stratum, by (seed, position, attempt)."""
        assert slot == 0, "a row is alone at its position"
        stratum, _ = self._draws(np.array([position], np.int64))
        s = self.strata[int(stratum[0])]
        return s.start + int(rng(self.seed, "replacement", position, attempt).integers(s.rows))

    def stratum_of(self, positions: npt.ArrayLike) -> Ints:
        """Index into `strata` `[N]` of positions `[N]`."""
        return self._draws(np.asarray(positions, np.int64))[0]

    @property
    def shares(self) -> dict[str, float]:
        """The share of positions that each stratum really gets (after rounding to the cycle)."""
        counts = np.bincount(self.slots, minlength=len(self.strata))
        return {s.name: float(c) / self.slots.size for s, c in zip(self.strata, counts, strict=True)}

    @property
    def units_per_position(self) -> float:
        """One: a position holds a row."""
        return 1.0

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, which travel wherever the order does."""
        return self.slots.nbytes + self.ordinals.nbytes + (0 if self.segments is None else self.segments.nbytes)

    def _draws(self, positions: Ints) -> tuple[Ints, Ints]:
        assert positions.size == 0 or positions.min() >= 0, "a position is never negative"
        length = self.slots.size
        if length == 1:
            return np.zeros(positions.shape, np.int64), positions
        cycle, place = positions // length, positions % length
        slot = permute(place, length, key_of(self.seed, 2, cycle))
        stratum = self.slots[slot]
        per_cycle = np.bincount(self.slots, minlength=len(self.strata))
        return stratum, cycle * per_cycle[stratum] + self.ordinals[slot]

    def _shuffle_in_windows(self, stratum: int, turn: int, index: Ints) -> Ints:
        assert self.segments is not None
        s = self.strata[stratum]
        starts = self.segments[(self.segments >= s.start) & (self.segments < s.start + s.rows)]
        sizes = np.diff(np.append(starts, s.start + s.rows))
        shuffled = permute(np.arange(starts.size), int(starts.size), key_of(self.seed, 3, stratum, turn))
        ends = np.cumsum(sizes[shuffled])
        window = index // self.window
        length = np.minimum(self.window, s.rows - window * self.window)
        walk = window * self.window + permute(index % self.window, length, key_of(self.seed, 4, stratum, turn, window))
        place = np.searchsorted(ends, walk, side="right")
        slide = shuffled[place]
        inside = walk - (ends[place] - sizes[slide])
        rows: Ints = starts[slide] + permute(inside, sizes[slide], key_of(self.seed, 5, turn, starts[slide]))
        return rows


def uniform_order(rows: int, seed: int, *, window: int = 0, segments: Ints | None = None) -> Order:
    """Every row once per pass. UserError for an empty plan."""
    if rows < 1:
        raise UserError("the plan has no rows: nothing to train on", found=rows, expected="at least 1")
    return Order(seed, (Stratum("all", 0, rows),), window, segments)


def stratified_order(
    strata: Sequence[Stratum],
    seed: int,
    weights: str | Mapping[str, float] = "uniform",
    *,
    window: int = 0,
    segments: Ints | None = None,
) -> Order:
    """Positions shared among the strata by `weights`: ``uniform`` (equal shares), ``proportional`` (to rows), or a map.

    A weight is the stratum's share of the positions and nothing else multiplies it. Empty strata and those of weight 0
    take no part. UserError for an unknown or missing name in the map, negative or all-zero weights, or no rows at all.
    """
    chosen = [s for s in _apply_weights(strata, weights) if s.rows > 0 and s.weight > 0]
    if not chosen:
        raise UserError(
            "no stratum has both rows and a positive weight", key="data.sampling_stratum_weights", found=weights
        )
    counts = _slot_counts(np.array([s.weight for s in chosen]))
    slots = np.repeat(np.arange(len(chosen)), counts)
    ordinals = np.concatenate([np.arange(c) for c in counts])
    return Order(seed, tuple(chosen), window, segments, slots, ordinals)


def _apply_weights(strata: Sequence[Stratum], weights: str | Mapping[str, float]) -> list[Stratum]:
    key = "data.sampling_stratum_weights"
    if weights == "uniform":
        return [Stratum(s.name, s.start, s.rows, 1.0) for s in strata]
    if weights == "proportional":
        return [Stratum(s.name, s.start, s.rows, float(s.rows)) for s in strata]
    if isinstance(weights, str):
        raise UserError("unknown stratum weights", key=key, found=weights, expected="uniform, proportional or a map")
    names = {s.name for s in strata}
    for name, w in weights.items():
        if name not in names:
            raise UserError(
                "a weight for a stratum that is not there", key=f"{key}.{name}", found=name, expected=sorted(names)
            )
        if not (isinstance(w, int | float) and np.isfinite(w) and w >= 0):
            raise UserError("a stratum weight must be a number >= 0", key=f"{key}.{name}", found=w)
    if missing := sorted(names - set(weights)):
        raise UserError(
            "strata without a weight (give 0 to leave one out)", key=key, found=missing, expected=sorted(names)
        )
    return [Stratum(s.name, s.start, s.rows, float(weights[s.name])) for s in strata]


def _slot_counts(weights: npt.NDArray[np.float64]) -> Ints:
    """Slots per stratum in one cycle: largest remainder, at least one each; the cycle is long enough for the rarest."""
    share = weights / weights.sum()
    if np.allclose(share, share[0]):
        return np.ones(share.size, np.int64)
    length = int(np.clip(np.ceil(16 / share.min()), 256, MAX_CYCLE))
    length = max(length, share.size)
    counts = np.floor(share * length).astype(np.int64)
    remainder = share * length - counts
    for i in np.argsort(-remainder, kind="stable")[: length - int(counts.sum())]:
        counts[i] += 1
    enough: Ints = np.maximum(counts, 1)
    return enough
