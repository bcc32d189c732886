import pytest

from pathray.wsi.spacing import choose_level, level_mpps


def chosen(levels, mpp, tolerance=0.05):
    choice = choose_level(levels, mpp, tolerance)
    return choice.level, choice.warned


@pytest.mark.parametrize(
    ("mpp", "expected"),
    [
        (0.25, (0, False)),
        (0.24, (0, False)),  # 4.2% off
        (0.5, (1, False)),
        (0.51, (1, False)),
        (0.98, (2, False)),
        (1.049, (2, False)),
        (1.06, (2, False)),  # 5.7% off: the coarsest finer level
        (0.9, (1, False)),  # 1.0 is nearer, but 11% off, and coarser
        (3.0, (2, False)),
        (0.2, (0, True)),  # finer than anything there is
        (0.2375, (0, True)),  # 5.3% off
    ],
)
def test_the_nearest_within_tolerance_else_the_coarsest_finer_else_warned_the_finest(mpp, expected):
    assert chosen((0.25, 0.5, 1.0), mpp) == expected


def test_the_tolerance_is_inclusive():
    assert chosen((0.5, 1.05), 1.0) == (1, False)
    assert chosen((0.95, 2.0), 1.0) == (0, False)


def test_scale_is_requested_over_level():
    choice = choose_level((0.25, 1.0), 0.5, 0.05)
    assert (choice.level, choice.level_mpp, choice.scale) == (0, 0.25, 2.0)
    assert choose_level((0.25,), 0.2, 0.05).scale == pytest.approx(0.8)


def test_level_spacings_follow_the_downsamples():
    class Reader:
        level_downsamples = (1.0, 4.002, 16.1)

    assert level_mpps(Reader(), 0.5) == (0.5, 2.001, 8.05)
