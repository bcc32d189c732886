"""Addresses where no cluster is, and temporary folders in which Ray cannot live. Local sockets only; starts no Ray."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from pathray.errors import UserError
from ray_jobs.shell import ray_places
from ray_jobs.shell.ray_places import check_address, temporary_folder
from ray_jobs.shell.runtime import RuntimeConfig, ray_session


@pytest.fixture
def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}", "[::1]:{}"])
def test_an_address_at_which_nobody_listens_is_told_with_what_gave_it(form, free_port):
    with pytest.raises(UserError, match="unset RAY_ADDRESS") as info:
        check_address(form.format(free_port), "RAY_ADDRESS")
    assert info.value.where["found"] == form.format(free_port)


def test_a_jobs_address_and_a_host_without_a_name_are_told():
    with pytest.raises(UserError, match="ray job submit"):
        check_address("http://127.0.0.1:8265", "RAY_ADDRESS")
    with pytest.raises(UserError, match="no Ray cluster answers"):
        check_address("no-such-host.invalid:6379", "runtime.address")


def test_an_address_that_answers_and_forms_that_only_ray_knows_are_left_to_ray():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        check_address(f"127.0.0.1:{server.getsockname()[1]}", "RAY_ADDRESS")
    check_address("auto", "RAY_ADDRESS")


@pytest.mark.parametrize("where", ["variable", "key"])
def test_a_job_says_which_of_the_two_named_the_dead_cluster(where, free_port, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    address = f"127.0.0.1:{free_port}"
    monkeypatch.setenv("RAY_ADDRESS", address if where == "variable" else "")
    config = RuntimeConfig(address=None if where == "variable" else address)
    with pytest.raises(UserError) as info, ray_session(config):
        raise AssertionError("started")
    assert info.value.where["key"] == ("RAY_ADDRESS" if where == "variable" else "runtime.address")


@pytest.fixture
def places(tmp_path, monkeypatch):
    """No variable is set, and the short folder is one of the test's own."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ray_places, "SHORT", str(tmp_path))
    monkeypatch.setattr(ray_places, "LONGEST_SOCKET", ray_places.BELOW + len(str(tmp_path)) + 20)
    return tmp_path


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_too_long_for_sockets_gives_way_to_a_short_private_one(name, places, monkeypatch, caplog):
    monkeypatch.setenv(name, str(places / ("y" * 40)))
    chosen = temporary_folder()
    assert chosen == f"{places}/ray-{os.getuid()}" and stat.S_IMODE(os.stat(chosen).st_mode) == 0o700
    assert name in caplog.text and "too long" in caplog.text


def test_a_fitting_folder_is_left_to_ray(places, monkeypatch):
    assert temporary_folder() is None
    monkeypatch.setenv("TMPDIR", str(places / "own"))
    assert temporary_folder() is None


def test_a_tmpdir_that_cannot_be_written_gives_way_and_a_ray_tmpdir_is_refused(places, monkeypatch, caplog):
    (places / "file").write_text("in the way")
    monkeypatch.setenv("TMPDIR", str(places / "file"))
    assert temporary_folder() == f"{places}/ray-{os.getuid()}" and "TMPDIR" in caplog.text
    monkeypatch.setenv("RAY_TMPDIR", str(places / "file" / "t"))
    with pytest.raises(UserError, match="temporary folder") as info:
        temporary_folder()
    assert info.value.where["key"] == "RAY_TMPDIR"


@pytest.mark.parametrize("trap", ["link", "open to all", "file"])
def test_a_short_folder_that_is_not_the_users_own_is_not_used(trap, places, monkeypatch):
    own = places / f"ray-{os.getuid()}"
    if trap == "link":
        (places / "else").mkdir()
        own.symlink_to(places / "else")
    elif trap == "file":
        own.write_text("")
    else:
        own.mkdir()
        own.chmod(0o777)
    monkeypatch.setenv("TMPDIR", str(places / ("y" * 40)))
    with pytest.raises(UserError, match="too long") as info:
        temporary_folder()
    assert info.value.where["key"] == "TMPDIR"


def test_a_ray_that_does_not_start_is_one_error_with_the_remedy(places, monkeypatch):
    def fail(**settings):
        raise TimeoutError("Timed out waiting for file gcs_port")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", fail)
    with (
        pytest.raises(UserError, match=r"did not start: TimeoutError.*session_latest/logs"),
        ray_session(RuntimeConfig(address="local")),
    ):
        raise AssertionError("started")
