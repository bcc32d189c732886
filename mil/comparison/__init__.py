"""Whether models differ on the same slides: scores with intervals, tests, correction for many pairs, a page."""

from mil.comparison.comparing import Compared, compare
from mil.comparison.experiments import Experiment

__all__ = ["Compared", "Experiment", "compare"]
