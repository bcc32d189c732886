"""XLA on the CPU: PJRT's client with four virtual devices, opened before anything trains. Run by `make test-xla`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

for name, value in {
    "PJRT_DEVICE": "CPU",
    "CPU_NUM_DEVICES": "4",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiling is what takes the time here: a third of it
    "TF_CPP_MIN_LOG_LEVEL": "2",
}.items():
    os.environ.setdefault(name, value)

import pytest  # noqa: E402

from pathray.data.plan import Plan  # noqa: E402
from pathray.device import Device  # noqa: E402
from tests.builders import small  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def xla() -> Iterator[Device]:
    """The SPMD device. First of all: autograd counts the devices once, at the first backward pass of the process."""
    pytest.importorskip("torch_xla", reason="the XLA tests have an environment of their own: make test-xla")
    device = Device.of("xla")
    assert device.mesh.size() == 4 and (device.rank, device.world_size) == (0, 1)
    yield device


@pytest.fixture(scope="session")
def cpu() -> Device:
    return Device.of("cpu")


@pytest.fixture(scope="session")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder: Path = tmp_path_factory.mktemp("slides")
    return small.slides_plan(folder)
