import os
import time

import pytest

from pathray.errors import UserError
from ray_jobs.extract.actor_map import ActorMap

pytestmark = pytest.mark.ray


class Build:
    """Starts counting in each actor; `bad` items end in their own way."""

    def __init__(self, folder, bad=()):
        self.folder, self.bad = str(folder), dict(bad)

    def __call__(self):
        (open(f"{self.folder}/started-{os.getpid()}", "w")).close()

        def work(item):
            match self.bad.get(item):
                case "die":
                    os._exit(1)
                case "user":
                    raise UserError("no good", key="batch_size", found=item)
                case "assert":
                    raise AssertionError(f"ours {item}")
                case "slow":
                    time.sleep(1.5)
                case "last":  # until it is told to end, or for half a minute
                    for _ in range(300):
                        if os.path.exists(f"{self.folder}/end"):
                            break
                        time.sleep(0.1)
            return item * item

        return work


def test_every_item_comes_back_with_its_number_and_an_actor_starts_once(ray_cluster, tmp_path):
    found = dict(ActorMap(2)(Build(tmp_path, {0: "slow"}), list(range(10))))
    assert found == {i: i * i for i in range(10)}
    assert 1 <= len(os.listdir(tmp_path)) <= 2


def test_an_item_may_take_longer_than_ray_data_waits_for_progress(ray_cluster, tmp_path, monkeypatch):
    from ray.data import DataContext

    monkeypatch.setattr(DataContext.get_current(), "execution_no_progress_timeout_s", 0.5)
    assert list(ActorMap(1)(Build(tmp_path, {0: "slow"}), [0])) == [(0, 0)]


def test_results_come_as_they_finish_and_a_long_item_holds_up_no_other(ray_cluster, tmp_path):
    order = []
    for number, _ in ActorMap(2)(Build(tmp_path, {0: "last"}), list(range(6))):
        order.append(number)
        if len(order) == 3:
            (tmp_path / "end").touch()
    assert sorted(order) == list(range(6)) and order.index(0) >= 3


def test_an_item_that_kills_its_process_is_lost_alone(ray_cluster, tmp_path):
    found = list(ActorMap(2)(Build(tmp_path, {3: "die"}), list(range(8))))
    assert found[-1] == (3, None)
    assert dict(found[:-1]) == {i: i * i for i in range(8) if i != 3}


def test_what_an_item_raises_ends_the_map(ray_cluster, tmp_path):
    with pytest.raises(UserError, match="no good") as raised:
        list(ActorMap(2)(Build(tmp_path, {2: "user"}), list(range(8))))
    assert raised.value.where["key"] == "batch_size"
    with pytest.raises(AssertionError, match="ours 1"):
        list(ActorMap(1)(Build(tmp_path, {1: "assert"}), list(range(3))))


def test_no_items_need_no_ray():
    assert list(ActorMap(2)(Build("/nowhere"), [])) == []
