"""Adjusted p-values against statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from pathray.stats.comparing.multiplicity import benjamini_hochberg, holm


@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.04, 0.04, 0.3, 1.0]), min_size=1, max_size=12))
@settings(deadline=None, max_examples=60)
def test_adjusted_p_values_are_statsmodels_with_ties(p):
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(benjamini_hochberg(p), multipletests(p, method="fdr_bh")[1], rtol=0, atol=1e-12)


def test_a_test_without_an_answer_stays_so_and_does_not_count():
    assert holm([0.01, None, 0.04]) == [0.02, None, 0.04]
    assert benjamini_hochberg([None]) == [None] and holm([]) == []


def test_what_is_no_p_value_is_refused():
    with pytest.raises(ValueError, match=r"in \[0, 1\], found nan"):
        holm([0.1, float("nan")])
