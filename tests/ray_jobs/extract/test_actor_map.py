import os
import time

import pytest

from pathray.errors import UserError
from ray_jobs.extract.actor_map import ATTEMPTS, ActorMap

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
                case "last":  # until it is told to end, or for half a minute
                    for _ in range(300):
                        if os.path.exists(f"{self.folder}/end"):
                            break
                        time.sleep(0.1)
            return item * item

        return work


@pytest.fixture(scope="module")
def mapped(ray_cluster, tmp_path_factory):
    """Ten items over two actors, of which the first waits until three others are done, longer than Ray Data waits for
    progress by itself, and the fourth kills its process: (the results as they came, the actors that started)."""
    from ray.data import DataContext

    folder, found = tmp_path_factory.mktemp("mapped"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DataContext.get_current(), "execution_no_progress_timeout_s", 0.5)
        for number, result in ActorMap(2)(Build(folder, {0: "last", 3: "die"}), list(range(10))):
            found.append((number, result))
            if len(found) == 3:
                time.sleep(1.5)
                (folder / "end").touch()
    return found, [name for name in os.listdir(folder) if name.startswith("started-")]


def test_every_item_comes_back_with_its_number_and_an_actor_starts_once(mapped):
    found, started = mapped
    assert dict(found[:-1]) == {i: i * i for i in range(10) if i != 3} and len(found) == 10
    assert 1 <= len(started) <= 2 + ATTEMPTS, "two actors, and one in the place of each that was killed"


def test_results_come_as_they_finish_and_a_long_item_holds_up_no_other(mapped):
    order = [number for number, _ in mapped[0]]
    assert order.index(0) >= 3


def test_an_item_that_kills_its_process_is_lost_alone(mapped):
    assert mapped[0][-1] == (3, None)


def test_what_an_item_raises_ends_the_map(ray_cluster, tmp_path):
    with pytest.raises(UserError, match="no good") as raised:
        list(ActorMap(2)(Build(tmp_path, {2: "user"}), list(range(8))))
    assert raised.value.where["key"] == "batch_size"
    with pytest.raises(AssertionError, match="ours 1"):
        list(ActorMap(1)(Build(tmp_path, {1: "assert"}), list(range(3))))


def test_no_items_need_no_ray():
    assert list(ActorMap(2)(Build("/nowhere"), [])) == []
