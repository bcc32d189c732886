"""A local output folder on a cluster of several nodes: refused at the start unless all of them see it."""

import os
from types import SimpleNamespace

import pytest
import ray

from pathray.errors import UserError
from ray_jobs.shell import shared_output
from ray_jobs.shell.shared_output import check_shared


def node(name, *, alive=True, **resources):
    return {"NodeID": name, "NodeManagerAddress": f"10.0.0.{name}", "Alive": alive, "Resources": resources}


@pytest.fixture
def cluster(monkeypatch):
    """Sets the nodes, of which the first is the driver's; what was asked of whom is kept."""
    asked = []

    def of(*nodes, blind=()):
        def looked(token, others):
            assert os.path.exists(token), "the token is there while it is looked for"
            asked.extend(n["NodeID"] for n in others)
            return [n["NodeManagerAddress"] for n in others if n["NodeID"] in blind]

        here = SimpleNamespace(get_node_id=lambda: nodes[0]["NodeID"])
        monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
        monkeypatch.setattr(ray, "nodes", lambda: list(nodes))
        monkeypatch.setattr(shared_output, "_nodes_without", looked)
        return asked

    return of


def test_a_folder_that_another_node_does_not_see_is_refused_with_the_node(cluster, tmp_path):
    cluster(node("1", CPU=4.0), node("2", CPU=4.0), node("3", CPU=4.0), blind=("3",))
    with pytest.raises(UserError, match="do not see the run's folder") as error:
        check_shared(str(tmp_path / "run"), {"CPU": 1.0})
    where = error.value.where
    assert (where["key"], where["found"]) == ("output", "missing on 10.0.0.3")
    assert list((tmp_path / "run").iterdir()) == [], "the token is gone"


def test_only_nodes_that_could_hold_a_worker_or_a_task_are_asked(cluster, tmp_path):
    asked = cluster(
        node("1", CPU=4.0, GPU=1.0), node("2", GPU=1.0), node("3", CPU=4.0, GPU=1.0),
        node("4", CPU=4.0, GPU=1.0, alive=False), blind=("2", "4"),
    )  # fmt: skip
    check_shared(str(tmp_path), {"CPU": 2.0, "GPU": 1.0})
    assert asked == ["3"]


def test_a_node_without_gpus_that_may_look_up_rows_for_the_workers_is_asked_too(cluster, tmp_path):
    cluster(node("1", CPU=4.0, GPU=1.0), node("2", CPU=64.0), blind=("2",))
    with pytest.raises(UserError, match=r"missing on 10\.0\.0\.2"):
        check_shared(str(tmp_path), {"CPU": 2.0, "GPU": 1.0})


def test_on_a_single_node_nothing_is_written(cluster, tmp_path):
    assert cluster(node("1", CPU=4.0)) == []
    check_shared(str(tmp_path / "run"), {"CPU": 1.0})
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
def test_a_node_answers_whether_it_sees_a_file(ray_cluster, tmp_path):
    (this,) = [n for n in ray.nodes() if n["Alive"]]
    (tmp_path / "token").touch()
    assert shared_output._nodes_without(str(tmp_path / "token"), [this]) == []
    assert shared_output._nodes_without(str(tmp_path / "gone"), [this]) == [this["NodeManagerAddress"]]
