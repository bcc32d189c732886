"""Whether a network is being traced for an export or compiled. Then a shape must not be read as a number, and data
must not be looked at. Not here: how networks are exported."""

from __future__ import annotations

import torch


def is_traced() -> bool:
    """True under `torch.export`, `torch.compile` and `torch.jit.trace`."""
    return torch.compiler.is_compiling() or bool(torch._C._get_tracing_state())
