"""Which published model a file holds, by the names and shapes of its parameters; told apart further by the hub's name.

Not here: the check of every parameter, which follows in any case (pathray.features.published.convert).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pathray.errors import UserError
from pathray.features.published.models import MODELS, Published, model_names
from pathray.features.published.names import rules_of

if TYPE_CHECKING:
    from torch import Tensor


def identify(given: Mapping[str, Tensor], place: str, config: Mapping[str, Any]) -> Published:
    """The one model that has these parameters. Where several have, the one whose name at the hub is in `place` (path of
    the files) or in `config`. UserError where none or more than one is left."""
    fits = [model for model in MODELS if _fits(model, given)]
    if not fits:
        first = next(iter(given), "no parameters")
        shape = list(given[first].shape) if given else []
        expected = f"model= one of {', '.join(model_names())}; or a TorchScript or ONNX program"
        raise UserError(
            "the weights are of no published model that is known", file=place, key="model", found=f"{first} {shape}",
            expected=expected,
        )  # fmt: skip
    named = [model for model in fits if len(fits) == 1 or _is_named(model, f"{place} {json.dumps(config)}")]
    if len(named) != 1:
        found = [model.name for model in fits]
        message = "several published models have these parameters: say which it is"
        raise UserError(message, file=place, key="model", found=found, expected=f"model={found[0]}")
    return named[0]


def _fits(model: Published, given: Mapping[str, Tensor]) -> bool:
    """Whether all parameters are there, in their shapes."""
    wanted = (source for rule in rules_of(model) for source in rule.sources)
    return all(name in given and tuple(given[name].shape) == shape for name, shape in wanted)


def _is_named(model: Published, text: str) -> bool:
    """Whether the name at the hub is in a text as a word: ``H-optimus-0`` is not in ``H-optimus-01``."""
    name = re.escape(model.hub.rpartition("/")[2])
    return re.search(rf"(?<![\w]){name}(?![\w])|--{name}(?![\w])", text, re.IGNORECASE) is not None
