"""One NVIDIA GPU: skipped with a reason where there is none. Run by `make test-gpu`."""

from __future__ import annotations

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # shares of one GPU are tested, also where there are several
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first matrix product

import pytest
import torch

from pathray.data.plan import Plan
from pathray.device import Device
from tests.builders import small


@pytest.fixture(scope="session", autouse=True)
def gpu() -> Device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is visible")
    return Device.of("cuda")


@pytest.fixture(scope="session")
def cpu() -> Device:
    return Device.of("cpu")


@pytest.fixture(scope="session")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return small.slides_plan(tmp_path_factory.mktemp("slides"))
