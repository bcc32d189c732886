import pytest

from ijepath.diversity import Diversity, stratum_passes
from pathray.errors import UserError


@pytest.mark.parametrize(
    ("anchors", "budget", "passes", "coverage", "reuse", "warned"),
    [
        (1000, 500, 0.5, 0.5, 0.0, "below 1"),
        (1000, 1000, 1.0, 1.0, 0.0, None),
        (1000, 5000, 5.0, 1.0, 4.0, None),
        (1000, 5001, 5.001, 1.0, 4.001, "above 5"),
    ],
)
def test_the_figures_and_the_warning_follow_the_readme(anchors, budget, passes, coverage, reuse, warned):
    d = Diversity(anchors, budget)
    assert d.metrics() == pytest.approx(
        {
            "anchor_count": anchors,
            "anchor_passes_total": passes,
            "coverage_first_pass": coverage,
            "mean_anchor_reuse": reuse,
        }
    )
    assert (warned is None) == (d.warnings() == [])
    assert warned is None or warned in d.warnings()[0]


def test_high_reuse_suggests_every_knob_of_the_readme():
    text = "\n".join(Diversity(10, 1000).lines())
    for knob in ("enlarge the anchor catalog", "data.targets_per_context", "optimization.total_images_budget"):
        assert knob in text


def test_thresholds_can_be_moved():
    assert Diversity(100, 800, high_threshold=10.0).warnings() == []
    with pytest.raises(UserError, match="low <= high"):
        Diversity(1, 1, low_threshold=3.0, high_threshold=2.0)


@pytest.mark.parametrize(("anchors", "budget"), [(0, 10), (10, 0)])
def test_nothing_to_divide_is_a_user_error(anchors, budget):
    with pytest.raises(UserError):
        Diversity(anchors, budget)


def test_a_rare_stratum_with_an_even_share_is_passed_more_often():
    assert stratum_passes(1000, {"rare": 0.5, "common": 0.5}, {"rare": 10, "common": 1000}) == {
        "rare": 50.0,
        "common": 0.5,
    }
