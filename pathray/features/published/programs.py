"""TorchScript and ONNX programs as encoders: one is opened, given one image, and what comes out is its width.

The user says what the images look like, since a program does not. Not here: running one (pathray.nn.program).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pathray.errors import UserError

if TYPE_CHECKING:
    from pathray.nn.program import Program

ONNX = ".onnx"
MOST_BYTES = 2 << 30  # ONNX's own limit for one file


def read_program(local: Path, where: str, kind: str, size_px: int) -> tuple[Program, int]:
    """The program in a file, and the length E of its features, found with one black image of `size_px` pixels.

    UserError for one that cannot be opened, fails on such an image, or gives anything but `[B, E]`.
    """
    import torch

    from pathray.nn.program import Program

    content = local.read_bytes()
    if len(content) > MOST_BYTES:
        raise UserError("the program is too large", file=where, found=f"{len(content):,} bytes", expected="2 GB")
    program = Program(kind, len(content)).eval()
    program.program.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    for count in (1, 2):
        try:
            with torch.inference_mode():
                out = program(torch.zeros(count, 3, size_px, size_px))
        except UserError as e:
            raise UserError(e.message, **{**e.where, "file": where}) from e
        except Exception as e:  # each runtime raises its own kinds
            said, expected = " ".join(str(e).split())[-200:], f"a program of [B, 3, {size_px}, {size_px}], any B"
            raise UserError("the program fails on an image", file=where, key=kind, found=said, expected=expected) from e
        if out.dim() != 2 or out.shape[0] != count or not out.is_floating_point():
            message, found = "the program's output is no features", f"{list(out.shape)} {out.dtype} of {count} images"
            raise UserError(message, file=where, key=kind, found=found, expected="[B, E] numbers")
    return program, int(out.shape[1])
