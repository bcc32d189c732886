"""Training splits in which class and centre are more and more the same thing, for the average performance drop.

A plan says how many slides of every centre and class train in split s: as many of each in the first, none but those of
the class's own centre in the last. A slide counts for a fixed number of its patches of a class (a *slot*), so that the
correlation of class and centre among the patches, Cramér's V, is the plan's own and rises with s. Not here: training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.evaluation.datasets import Unfit

Ints = npt.NDArray[np.int64]
Labels = npt.NDArray[Any]
Cells = dict[tuple[int, int], dict[str, Ints]]  # (centre, class) → slide → its rows


@dataclass(frozen=True)
class Plan:
    """`slots(s)` `[centres, classes]` are the training slots of split s, of `patches` patches each. Of a cell, the
    first `train` slots may train, the next ones validate, those from `train` + 1 on test, at least `test` of them."""

    splits: int
    patches: int
    train: int
    test: int
    slots: Callable[[int], Ints]

    @property
    def slides(self) -> int:
        """How many a cell needs."""
        return self.train + 1 + self.test

    def correlation(self, split: int) -> float:
        return cramers_v(self.slots(split))


@dataclass(frozen=True)
class Design:
    """A plan for these centres and classes; `reason` says why it is not the dataset's own, if it is not."""

    plan: Plan
    centers: tuple[str, ...]
    classes: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True)
class Repetition:
    """Rows of one draw: training and validation per split, and the in-domain test, whose slides are in neither."""

    train: tuple[Ints, ...]
    validation: tuple[Ints, ...]
    test: Ints


def plan_opposed(train: int, classes: int, patches: int, test: int) -> Plan:
    """Two centres: `train` slots a class, half from each at first; the first half of the classes goes over
    to the second centre, the other half to the first. So are Camelyon's (14 slots) and Tolkach ESCA's (6)."""
    half = train // 2
    side = np.where(np.arange(classes) < (classes + 1) // 2, -1, 1)

    def slots(split: int) -> Ints:
        return np.stack([half + split * side, half - split * side])

    return Plan(half + 1, patches, train, test, slots)


def _tcga(split: int) -> Ints:
    diagonal = np.eye(4, dtype=bool)
    rest = 2 if split < 2 else 1 if split < 5 else 0
    across = 1 if split % 2 else 2 if split < 3 else 0
    return np.where(diagonal, split + 2, np.where(diagonal[::-1], across, rest))


PLANS = {
    "camelyon": plan_opposed(14, 2, 300, 2),
    "tcga": Plan(7, 30, 8, 3, _tcga),
    "tolkach_esca": plan_opposed(6, 6, 100, 2),
}


def design(name: str, labels: Labels, centers: Labels, slides: Labels, *, classes: Sequence[str] = ()) -> Design:
    """The plan for in-domain rows: the dataset's own where they fill it, else the largest that they can fill.

    Of other datasets, and where the own plan cannot be filled, it is `plan_opposed` for the two centres that give most
    training patches; the reason is said. Unfit with the counts where not even one slot of each centre can train
    beside one that validates and one that tests.
    """
    sites, kinds = tuple(np.unique(centers).tolist()), tuple(classes) or tuple(np.unique(labels).tolist())
    reason = ""
    if name in PLANS:
        plan = PLANS[name]
        grid = plan.slots(0).shape
        if grid == (len(sites), len(kinds)) and set(kinds) == set(labels):
            found = Design(plan, sites, kinds)
            lacking = _describe_shortage(found, cells(found, labels, centers, slides))
            if not lacking:
                return found
        else:
            lacking = f"it is for {grid[0]} centres and {grid[1]} classes, found {len(sites)} and {len(set(labels))}"
        reason = f"the plan of {name} cannot be filled: {lacking}"
    best = max(_candidates(labels, centers, slides), key=lambda d: _training_size(d.plan, len(d.classes)), default=None)
    if best is None:
        raise Unfit(
            "too few slides for the average performance drop",
            key=name,
            found=_counts(labels, centers, slides),
            expected="two classes with at least four slides each at the same two centres",
        )
    plan = best.plan
    reason = (reason + "; instead " if reason else "") + (
        f"{plan.splits} splits of {plan.train} slides a class with {plan.patches} patches each, "
        f"{' and '.join(map(str, best.classes))} at {' and '.join(map(str, best.centers))}"
    )
    return Design(plan, best.centers, best.classes, reason)


def cells(design: Design, labels: Labels, centers: Labels, slides: Labels) -> Cells:
    """The slides of each cell that have enough patches of its class for a slot."""
    out: Cells = {}
    for i, center in enumerate(design.centers):
        for j, kind in enumerate(design.classes):
            rows = np.flatnonzero((centers == center) & (labels == kind))
            by_slide = _by_slide(slides, rows)
            out[i, j] = {slide: mine for slide, mine in by_slide.items() if len(mine) >= design.plan.patches}
    return out


def repetitions(
    design: Design, labels: Labels, centers: Labels, slides: Labels, *, count: int, seed: int
) -> Iterator[Repetition]:
    """`count` draws of slides and of their patches. Rows are those of the arrays given."""
    table = cells(design, labels, centers, slides)
    tests = [_test_sets(design.plan, table, i) for i in range(len(design.centers))]
    for number in range(count):
        rng = np.random.Generator(np.random.Philox(key=[seed, number]))
        yield _draw_repetition(design, table, tests, rng)


def cramers_v(table: npt.ArrayLike) -> float:
    """√(χ² / (n·(min(rows, columns) − 1))) of a table of counts; 0 for one with fewer than two rows or columns."""
    counts = np.asarray(table, np.float64)
    counts = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0]
    smaller = min(counts.shape) - 1
    if smaller < 1:
        return 0.0
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    return float(np.sqrt(((counts - expected) ** 2 / expected).sum() / (counts.sum() * smaller)))


def measure_cramers_v(rows: Ints, labels: Labels, centers: Labels) -> float:
    """Cramér's V of class and centre among these rows."""
    kinds, sites = np.unique(labels[rows], return_inverse=True)[1], np.unique(centers[rows], return_inverse=True)[1]
    table = np.zeros((sites.max() + 1, kinds.max() + 1))
    np.add.at(table, (sites, kinds), 1)
    return cramers_v(table)


def _draw_repetition(
    design: Design, table: Cells, tests: list[list[frozenset[str]]], rng: np.random.Generator
) -> Repetition:
    plan = design.plan
    order: dict[tuple[int, int], list[Ints]] = {}
    test: list[Ints] = []
    for i in range(len(design.centers)):
        choice = tests[i][int(rng.integers(len(tests[i])))] if tests[i] else None
        for j in range(len(design.classes)):
            names = sorted(table[i, j])
            names = [names[n] for n in rng.permutation(len(names))]
            drawn = {n: rng.permutation(table[i, j][n])[: plan.patches] for n in names}
            if choice is None:
                tested = names[plan.train + 1 :]
            else:  # no others test: those may train for another class
                tested = [n for n in names if n in choice]
            order[i, j] = [drawn[n] for n in names if n not in tested]
            test += [drawn[n] for n in tested]
    train, validation = [], []
    for s in range(plan.splits):
        slots = plan.slots(s)
        fit = [row for (i, j), found in order.items() for row in found[: slots[i, j]]]
        train.append(np.concatenate(fit))
        held = []
        for (i, j), found in order.items():  # one slot shared out as the training slots are
            if slots[i, j]:
                held.append(found[slots[i, j]][: max(1, plan.patches * int(slots[i, j]) // plan.train)])
        validation.append(np.concatenate(held))
    return Repetition(tuple(train), tuple(validation), np.concatenate(test))


def _test_sets(plan: Plan, table: Cells, center: int, limit: int = 10_000) -> list[frozenset[str]]:
    """Where slides of a centre have several classes: sets of slides that leave every class enough to train and have
    what it tests on. Empty where a slide has one class only and any draw will do."""
    columns = [table[i, j] for i, j in table if i == center]
    names = sorted({name for column in columns for name in column})
    has = np.array([[name in column for column in columns] for name in names])
    if not len(names) or (has.sum(axis=1) == 1).all():
        return []
    spare = has.sum(axis=0) - plan.train - 1  # the most that may be taken from each class …
    order = np.argsort(-has.sum(axis=1), kind="stable")
    after = np.cumsum(has[order][::-1], axis=0)[::-1]
    found: list[frozenset[str]] = []

    def extend(at: int, taken: list[int], count: Ints) -> None:
        if len(found) >= limit:
            return
        if (count >= plan.test).all():  # … and these are enough
            found.append(frozenset(names[i] for i in taken))
            return
        if at == len(order) or ((count + after[at]) < plan.test).any():
            return
        with_it = count + has[order[at]]
        if (with_it <= spare).all():
            extend(at + 1, [*taken, int(order[at])], with_it)
        extend(at + 1, taken, count)

    extend(0, [], np.zeros(len(columns), np.int64))
    return found


def _describe_shortage(design: Design, table: Cells) -> str:
    """What a plan would need that the data has not; empty when nothing."""
    plan = design.plan
    for (i, j), found in table.items():
        if len(found) < plan.slides:
            cell = f"{design.classes[j]} at {design.centers[i]}"
            return f"{cell} has {len(found)} slides of {plan.patches} patches or more, expected {plan.slides}"
    for i, center in enumerate(design.centers):
        several = any(len([j for j in range(len(design.classes)) if n in table[i, j]]) > 1 for n in _names(table, i))
        if several and not _test_sets(plan, table, i, limit=1):
            return f"the slides of {center} have several classes, and none of them can be kept apart for the test"
    return ""


def _candidates(labels: Labels, centers: Labels, slides: Labels) -> Iterator[Design]:
    """Plans that can be filled: two centres, the classes that both have, slots of any size that a slide has."""
    sites, kinds = np.unique(centers).tolist(), np.unique(labels).tolist()
    for a in range(len(sites)):
        for b in range(a + 1, len(sites)):
            sizes = {
                (center, kind): np.sort(
                    [len(r) for r in _by_slide(slides, np.flatnonzero((centers == center) & (labels == kind))).values()]
                )
                for center in (sites[a], sites[b])
                for kind in kinds
            }
            for patches in sorted({int(n) for found in sizes.values() for n in found}):
                enough = {cell: int((found >= patches).sum()) for cell, found in sizes.items()}
                least = {k: min(enough[sites[a], k], enough[sites[b], k]) for k in kinds}
                for floor in sorted({n for n in least.values() if n >= 4}):
                    chosen = tuple(k for k in kinds if least[k] >= floor)
                    if len(chosen) < 2:
                        continue
                    yield from _fitting_designs(floor, patches, (sites[a], sites[b]), chosen, labels, centers, slides)


def _fitting_designs(
    slots: int,
    patches: int,
    sites: tuple[str, str],
    kinds: tuple[str, ...],
    labels: Labels,
    centers: Labels,
    slides: Labels,
) -> Iterator[Design]:
    """The largest plan for cells of the given size, if their slides can be divided."""
    test = max(1, slots // 8)
    for train in range(min(14, 2 * ((slots - 1 - test) // 2)), 0, -2):
        found = Design(plan_opposed(train, len(kinds), patches, test), sites, kinds)
        if not _describe_shortage(found, cells(found, labels, centers, slides)):
            yield found
            return


def _training_size(plan: Plan, classes: int) -> tuple[int, int]:
    return plan.train * plan.patches * classes, plan.train


def _by_slide(slides: Labels, rows: Ints) -> dict[str, Ints]:
    return {str(slide): rows[slides[rows] == slide] for slide in np.unique(slides[rows])}


def _names(table: Cells, center: int) -> set[str]:
    return {name for (i, _), found in table.items() if i == center for name in found}


def _counts(labels: Labels, centers: Labels, slides: Labels) -> str:
    """Slides per cell, the fullest first."""
    found = {(k, c): len(np.unique(slides[(labels == k) & (centers == c)])) for k in set(labels) for c in set(centers)}
    fullest = sorted(((n, str(k), str(c)) for (k, c), n in found.items() if n), key=lambda t: (-t[0], t[1:]))[:6]
    return "slides: " + ", ".join(f"{k} at {c} {n}" for n, k, c in fullest)
