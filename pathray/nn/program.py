"""A network that another program exported, TorchScript or ONNX, as a module: its file is one tensor of bytes.

So it is saved, digested and checked like any weights. The file is opened at the first image. Not here: what its images
must look like (pathray.features.published.programs).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pathray.errors import UserError

FORMATS = ("torchscript", "onnx")
ONNX_INSTALL = "pip install 'pathray[onnx]'"


class Program(nn.Module):
    """images float32 `[B, 3, H, W]` -> features `[B, E]`. `program` holds the file, uint8 `[bytes]`."""

    program: Tensor

    def __init__(self, kind: str, size: int) -> None:
        super().__init__()
        assert kind in FORMATS, kind
        self.kind = kind
        self._call: Callable[[Tensor], Tensor] | None = None
        self.register_buffer("program", torch.zeros(size, dtype=torch.uint8))

    @classmethod
    def of(cls, network: Mapping[str, Any]) -> Program:
        """From an artifact's description: `format` and the file's length in `bytes`."""
        return cls(str(network["format"]), int(network["bytes"]))

    def forward(self, images: Tensor) -> Tensor:
        """UserError where the file cannot be opened, or gives anything but one tensor."""
        if self._call is None:
            content = self.program.cpu().numpy().tobytes()
            self._call = (_torchscript if self.kind == "torchscript" else _onnx)(content, images.device)
        out = self._call(images)
        if not isinstance(out, Tensor):
            message = "the program must give one tensor"
            raise UserError(message, key=self.kind, found=type(out).__name__, expected="features [B, E]")
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_call": None}  # an open program cannot be copied


def _torchscript(content: bytes, device: torch.device) -> Callable[[Tensor], Tensor]:
    try:
        module = torch.jit.load(io.BytesIO(content), map_location=device)
    except (RuntimeError, ValueError) as e:
        said = str(e).strip().splitlines()[0][:200]
        raise UserError("not a TorchScript program, or damaged", key="torchscript", found=said) from e
    module.eval()
    return lambda images: module(images)  # a function: a module here would be part of this one's state


def _onnx(content: bytes, device: torch.device) -> Callable[[Tensor], Tensor]:
    session = open_onnx(content, cuda=device.type == "cuda")
    (name,) = [given.name for given in session.get_inputs()]

    def call(images: Tensor) -> Tensor:
        (out, *_) = session.run(None, {name: images.float().cpu().numpy()})
        return torch.from_numpy(out).to(images.device)

    return call


def open_onnx(content: bytes, *, cuda: bool = False) -> Any:
    """An ONNX Runtime session, with torch's number of threads. UserError where the package is missing, and for a file
    that it cannot open or that has not one input."""
    try:
        import onnxruntime
    except ImportError as e:
        message = "ONNX programs need the package onnxruntime"
        raise UserError(message, key="onnx", found="not installed", expected=ONNX_INSTALL) from e
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    wanted = ["CUDAExecutionProvider"] if cuda else []
    providers = [p for p in wanted if p in onnxruntime.get_available_providers()] + ["CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as e:  # the runtime has an exception of its own per status
        said = " ".join(str(e).split())[:200]
        expected = "an .onnx file whose weights are inside it"
        raise UserError("not an ONNX program, or damaged", key="onnx", found=said, expected=expected) from e
    if len(inputs := [given.name for given in session.get_inputs()]) != 1:
        raise UserError("the program must take one input", key="onnx", found=inputs, expected="images [B, 3, H, W]")
    return session
