"""Which slides an analysis shows: named ones, those that a model got most wrong or most right, or all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from mil.analysis.trained_run import JudgedSlide
from mil.judging.predictions import NUMBER, PROBABILITY
from pathray.errors import UserError


def choose_slides(
    slides: Mapping[str, JudgedSlide],
    *,
    ids: Sequence[str] = (),
    worst: int = 0,
    best: int = 0,
    everything: bool = False,
) -> dict[str, str]:
    """The chosen slides with the reason: `ids` in their order, then the `worst` and the `best`; none twice. UserError
    for an id that was not tested, and for worst or best without a truth to judge by."""
    for name in ids:
        if name not in slides:
            near = ", ".join(get_close_matches(name, slides, 3)) or f"a tested slide, such as {next(iter(slides))}"
            raise UserError("no such tested slide", key="ids", found=name, expected=near)
    out = dict.fromkeys(ids, "asked for")
    if worst or best:
        ranked = sorted(slides, key=lambda name: (goodness(slides[name]), name))
        for reason, names in (("worst", ranked[:worst]), ("best", ranked[::-1][:best])):
            for place, name in enumerate(names, 1):
                out.setdefault(name, f"{reason} {place}")
    if everything:
        out |= {name: "all" for name in slides if name not in out}
    return out


def goodness(slide: JudgedSlide) -> float:
    """The probability of the true class; of a number, minus its absolute error. UserError without a truth, and for
    survival."""
    key = f"{PROBABILITY}{slide.truth}"
    if key in slide.values:
        return slide.values[key]
    if NUMBER in slide.values and slide.truth:
        return -abs(slide.values[NUMBER] - float(slide.truth))
    message, expected = "slides cannot be ranked by their prediction", "ids=[…], or all=true with worst=0 best=0"
    raise UserError(message, key="worst", found=f"{slide.slide_id}: {slide.truth or 'no truth'}", expected=expected)
