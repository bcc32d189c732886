"""McNemar's tests against statsmodels, and the clustered one against all sign flips written out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as reference

from pathray.stats.comparing.mcnemar import clustered_mcnemar, mcnemar


def pairs(only_a: int, only_b: int, both: int = 10) -> tuple[np.ndarray, np.ndarray]:
    a = np.repeat([True, False, True], [only_a, only_b, both])
    return a, np.repeat([False, True, True], [only_a, only_b, both])


@pytest.mark.parametrize(("only_a", "only_b"), [(3, 9), (0, 5), (12, 12), (0, 0), (20, 4), (24, 0)])
def test_under_25_discordant_pairs_it_is_the_exact_test(only_a, only_b):
    found = mcnemar(*pairs(only_a, only_b))
    expected = reference([[10, only_a], [only_b, 0]], exact=True).pvalue
    assert found.p_value == pytest.approx(expected, abs=1e-12) and found.method == "exact binomial"


@pytest.mark.parametrize(("only_a", "only_b"), [(20, 5), (40, 60), (13, 12)])
def test_from_25_on_it_is_chi_squared_with_correction(only_a, only_b):
    found, expected = mcnemar(*pairs(only_a, only_b)), reference([[10, only_a], [only_b, 0]], exact=False)
    assert found.statistic == pytest.approx(expected.statistic, abs=1e-12)
    assert found.p_value == pytest.approx(expected.pvalue, abs=1e-12)


def test_equal_counts_differ_by_nothing():
    found = mcnemar(*pairs(20, 20))
    assert (found.statistic, found.p_value) == (0.0, 1.0)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 7)), min_size=1, max_size=30))
@settings(deadline=None, max_examples=40)
def test_the_clustered_p_value_counts_all_sign_flips(rows):
    a, b, c = (np.array(column) for column in zip(*rows, strict=True))
    d = [int(a[c == k].sum()) - int(b[c == k].sum()) for k in sorted(set(c.tolist()))]
    flipped = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in product((-1, 1), repeat=len(d))]
    found = clustered_mcnemar(a, b, c)
    assert found.p_value == pytest.approx(np.mean(np.array(flipped) >= abs(sum(d))), abs=1e-12)
    squares = sum(x * x for x in d)
    assert found.statistic == pytest.approx(sum(d) ** 2 / squares if squares else 0.0)


@pytest.mark.parametrize(("only_a", "only_b"), [(3, 9), (40, 60), (300, 250)])
def test_clusters_of_one_row_are_the_exact_test(only_a, only_b):
    a, b = pairs(only_a, only_b)
    found = clustered_mcnemar(a, b, np.arange(a.size))
    assert found.p_value == pytest.approx(reference([[10, only_a], [only_b, 0]], exact=True).pvalue, abs=1e-12)


def test_slides_of_one_patient_are_no_evidence_of_many():
    """Ten slides on which only a is right: of ten patients p = 2/1024, of two (five each) ½."""
    a, b = pairs(10, 0, both=0)
    assert mcnemar(a, b).p_value == pytest.approx(2 / 1024)
    assert clustered_mcnemar(a, b, np.repeat(["p", "q"], 5)).p_value == pytest.approx(0.5)


def test_rows_that_are_no_pairs_are_refused():
    with pytest.raises(ValueError, match="must be"):
        mcnemar([True], [True, False])
