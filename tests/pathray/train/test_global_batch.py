import pytest

from pathray.errors import UserError
from pathray.train.global_batch import choose_global_batch


@pytest.mark.parametrize(
    ("given", "before", "chosen"),
    [(None, None, 24), (None, 48, 48), (96, 48, 96)],
)
def test_what_is_given_wins_then_what_the_run_began_with_then_the_first_start(given, before, chosen):
    assert choose_global_batch(given, before, 24, 3, key="global_batch") == chosen


def test_workers_that_cannot_share_it_are_refused_by_its_key():
    with pytest.raises(UserError, match=r"train\.global_batch.*global_batch 32, workers 3.*a multiple of 3"):
        choose_global_batch(32, None, 8, 3, key="train.global_batch")


def test_what_a_worker_takes_at_once_must_divide_its_share():
    options = {"key": "train.global_batch", "micro_key": "train.batch_size"}
    assert choose_global_batch(24, None, 8, 2, micro=4, **options) == 24
    with pytest.raises(UserError, match=r"workers x batch_size .*one of \[1, 2, 3, 4, 6, 12\]") as error:
        choose_global_batch(24, None, 8, 2, micro=5, **options)
    assert error.value.where["key"] == "train.batch_size"
