"""A node process that dies while the main thread waits. The node is a process of the test's own; starts no Ray."""

from __future__ import annotations

import subprocess
import time

import pytest

from pathray.errors import UserError
from ray_jobs.checks import node_watch
from ray_jobs.checks.node_watch import watched_node


@pytest.fixture
def node(monkeypatch):
    process = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(node_watch, "_raylet", lambda: process)
    monkeypatch.setattr(node_watch, "LOOK_S", 0.05)
    yield process
    process.kill()
    process.wait()


def test_a_node_that_dies_while_the_job_waits_is_a_users_error(node):
    with pytest.raises(UserError, match="raylet"), watched_node():
        node.kill()
        time.sleep(30)


def test_an_error_that_a_dead_node_caused_is_told_as_that(node):
    with pytest.raises(UserError, match="raylet"), watched_node():
        node_watch.LOOK_S = 60.0
        node.kill()
        node.wait()
        raise ConnectionError("socket closed")


def test_other_errors_and_other_ends_stay_as_they_are(node):
    with watched_node():
        pass
    with pytest.raises(ConnectionError), watched_node():
        raise ConnectionError("of something else")
    with pytest.raises(UserError, match="no slides"), watched_node():
        raise UserError("no slides")
