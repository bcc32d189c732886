"""The formats of an exported model: each writes a SlidePredictor to a file and loads a file as a function of arrays.

    ts    TorchScript, a trace               torch.jit.load(file)(features, mask, coords)
    pt2   torch.export                       torch.export.load(file).module()(features, mask, coords)
    onnx  ONNX, from the torch.export        onnxruntime.InferenceSession(file).run(None, {"features": …})

Shapes stay dynamic in all of them because the networks compute under a trace without reading a shape as a number
(pathray.nn.tracing). Not here: whether a file predicts as the model does (mil.export.parity).
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mil.export.predictor import INPUTS, SlidePredictor
from pathray.errors import UserError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Run = Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]
FILES = {"ts": "model.ts", "pt2": "model.pt2", "onnx": "model.onnx"}
FORMATS = tuple(FILES)
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_formats(formats: Sequence[str]) -> None:
    """UserError for no format, an unknown or repeated one, and for one whose packages are not installed."""
    for name in formats:
        if name not in FORMATS:
            raise UserError("unknown format", key="formats", found=name, expected=" or ".join(FORMATS))
    if not formats or len(set(formats)) < len(formats):
        expected = f"some of {', '.join(FORMATS)}, each once"
        raise UserError("formats", key="formats", found=list(formats), expected=expected)
    lacking = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if "onnx" in formats and lacking:
        expected = "pip install 'pathray[export]', or formats=[ts,pt2]"
        raise UserError("ONNX needs other packages", key="formats", found=f"no {', '.join(lacking)}", expected=expected)


def write_formats(predictor: SlidePredictor, width: int, folder: Path, formats: Sequence[str]) -> None:
    """Write the files of `formats` into a local folder. UserError, with the format and the reason, if one cannot be."""
    exported: ExportedProgram | None = None
    for name in formats:
        with _quiet(), torch.no_grad():
            try:
                if name == "ts":
                    _write_ts(predictor, width, folder / FILES[name])
                    continue
                exported = exported or _export(predictor, width)
                _write_pt2(exported, folder / FILES[name]) if name == "pt2" else _write_onnx(
                    predictor, exported, folder / FILES[name]
                )
            except Exception as e:  # whatever a converter raises; the cause stays in the trace of the error
                message, expected = "the model cannot be exported to a format", f"formats without {name}"
                raise UserError(message, key=name, found=_reason(e), expected=expected) from e


def open_format(name: str, file: Path) -> Run:
    """The file as a function (features, mask, coords) → outputs, all CPU tensors."""
    if name == "ts":
        with _quiet():
            module = torch.jit.load(str(file), map_location="cpu")
        return lambda *inputs: module(*inputs)
    if name == "pt2":
        program = torch.export.load(file).module()
        return lambda *inputs: program(*inputs)
    return _open_onnx(file)


def example(width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two bags of different length, with which a model is traced."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(40) < torch.tensor([[40], [9]])
    return torch.randn(2, 40, width, generator=generator), mask, 50 * torch.rand(2, 40, 2, generator=generator)


def _write_ts(predictor: SlidePredictor, width: int, file: Path) -> None:
    traced = torch.jit.trace(predictor, example(width), check_trace=False)  # mil.export.parity checks the file
    torch.jit.save(traced, str(file))


def _export(predictor: SlidePredictor, width: int) -> ExportedProgram:
    axes = {0: torch.export.Dim("B"), 1: torch.export.Dim("N")}
    return torch.export.export(predictor, example(width), dynamic_shapes=(axes, axes, axes))


def _write_pt2(exported: ExportedProgram, file: Path) -> None:
    torch.export.save(exported, file)


def _write_onnx(predictor: SlidePredictor, exported: ExportedProgram, file: Path) -> None:
    names = [output.name for output in predictor.outputs]
    program = torch.onnx.export(exported, (), verbose=False, input_names=INPUTS, output_names=names)
    assert program is not None
    program.save(str(file), external_data=False)
    _name_axes(file)


def _name_axes(file: Path) -> None:
    """Call the dynamic axes B and N instead of what torch calls them."""
    import onnx

    model = onnx.load(str(file))
    found = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    names = dict(zip((axis.dim_param for axis in found["mask"]), "BN", strict=True))
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in names:
                axis.dim_param = names[axis.dim_param]
    del model.graph.value_info[:]  # shapes inside, by the old names; readers infer them again
    onnx.save(model, str(file))


def _open_onnx(file: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Sequence[Tensor]:
        found = session.run(None, {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=True)})
        return [torch.from_numpy(x) for x in found]

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what converters say of their own progress, of traced shapes and of packages they could use."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _reason(error: Any) -> str:
    """The innermost cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
