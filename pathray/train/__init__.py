"""The training loop and what it is told. Called, the package trains a whole run:

    outcome = pathray.train(assembly, plan, "outputs/run", Device.of("auto"))

That is `pathray.run.train`, with its arguments: from an assembly (`pathray.train.assembly`) and a plan with a row per
unit, [N] rows (`pathray.data.plan`), to checkpoints, metrics and an exported artifact in one folder, which a later call
resumes. The outcome says how the run ended and after how many images.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _Train(ModuleType):
    """A package that is a function as well: the library's face has `train`, and the loop's files are in this folder."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """`pathray.run.train`: an `Outcome`. By name, since the loop itself must not know of runs."""
        return importlib.import_module("pathray.run").train(*arguments, **keywords)

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (self.__name__,)  # cloudpickle knows plain modules only


sys.modules[__name__].__class__ = _Train
