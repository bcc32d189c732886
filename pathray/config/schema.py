"""Looks up keys in a dataclass schema: types, neighbouring keys, the nearest right name. Not here: values."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Part = str | int

# Names of a key in other projects: each name may mean any other of its line
SYNONYMS = (
    ("lr", "learning_rate", "base_lr", "max_lr"),
    ("batch_size", "global_batch", "batch_size_per_gpu", "train_batch_size", "per_device_batch_size", "bs"),
    ("micro_batch", "grad_accum_steps", "accumulation_steps", "gradient_accumulation_steps"),
    (
        "epochs",
        "total_images_budget",
        "num_epochs",
        "max_epochs",
        "total_images",
        "max_steps",
        "num_steps",
        "iterations",
    ),
    ("threads", "num_workers", "read_threads", "dataloader_workers"),
    ("workers", "num_gpus", "gpus", "world_size", "nproc_per_node", "devices"),
    ("patch_size", "tile_px", "patch_px", "tile_size", "size", "image_size", "img_size", "size_px", "input_size"),
    ("mpp", "spacing", "resolution", "slide_mpp", "image_mpp", "context_mpp"),
    ("accelerator", "device"),
    ("amp", "precision", "use_bfloat16", "mixed_precision", "dtype"),
    ("clip_grad", "grad_clip", "max_grad_norm", "gradient_clip_val"),
    ("seed", "random_seed", "manual_seed"),
    ("output", "output_dir", "out_dir", "save_dir", "checkpoint_dir"),
    ("encoders", "encoder", "checkpoint", "weights"),
    ("slides", "slide_manifest_csv", "manifest", "slide_dir", "wsi_dir"),
    ("arch", "name", "backbone", "architecture"),
    ("resume", "resume_from", "resume_from_checkpoint"),
    ("overlap_px", "overlap", "stride"),
)


class NoSuchKey(LookupError):
    """The schema has no such key; `depth` is the index of its first unknown part."""

    def __init__(self, depth: int, within: Any) -> None:
        super().__init__(depth)
        self.depth, self.within = depth, within


def split_key(key: str) -> list[Part]:
    """`"plugins[0].seed"` -> `["plugins", 0, "seed"]`."""
    found = re.findall(r"\[(\d+)\]|([^.\[\]]+)", key)
    return [int(index) if index else name for index, name in found]


def join_key(parts: Sequence[Part]) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts).lstrip(".")


def fields_of(section: Any) -> dict[str, Any]:
    """Field name -> type of a dataclass, in declared order."""
    hints = get_type_hints(section)
    return {f.name: hints[f.name] for f in dataclasses.fields(section) if f.init}


def type_at(schema: Any, parts: Sequence[Part]) -> Any:
    """The declared type at a key; raises `NoSuchKey`."""
    hint = schema
    for depth, part in enumerate(parts):
        hint = without_none(hint)
        if dataclasses.is_dataclass(hint):
            known = fields_of(hint)
            if part not in known:
                raise NoSuchKey(depth, hint)
            hint = known[str(part)]
        elif get_origin(hint) in (list, tuple) and isinstance(part, int):
            hint = get_args(hint)[0 if get_args(hint)[-1] is Ellipsis else min(part, len(get_args(hint)) - 1)]
        elif get_origin(hint) is dict and isinstance(part, str):
            hint = get_args(hint)[1]
        elif hint is Any or hint in (dict, list):
            return Any
        else:
            raise NoSuchKey(depth, hint)
    return hint


def without_none(hint: Any) -> Any:
    options = _options(hint)
    real = [o for o in options if o is not type(None)]
    return real[0] if len(options) > 1 and len(real) == 1 else hint


def is_section(hint: Any) -> bool:
    return dataclasses.is_dataclass(without_none(hint))


def allows_none(hint: Any) -> bool:
    return hint is Any or type(None) in _options(hint)


def type_text(hint: Any) -> str:
    """A type in a user's words: `float or null`, `one of a, b`, `list of int`, `{name: float}`."""
    options = _options(hint)
    if len(options) > 1:
        return " or ".join("null" if o is type(None) else type_text(o) for o in options)
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (list, tuple):
        return f"list of {type_text(args[0])}"
    if origin is dict:
        return f"{{name: {type_text(args[1])}}}"
    if dataclasses.is_dataclass(hint):
        return f"a section with {shorten(list(fields_of(hint)))}"
    if hint is Any:
        return "any value"
    if hasattr(hint, "__members__"):
        return f"one of {', '.join(hint.__members__)}"
    return str(getattr(hint, "__name__", hint))


def shorten(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def keys_of(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """(dotted key, type, field) of every leaf, including those of optional sections."""
    by_name = {f.name: f for f in dataclasses.fields(schema)}
    for name, hint in fields_of(schema).items():
        if is_section(hint):
            yield from keys_of(without_none(hint), f"{prefix}{name}.")
        else:
            yield prefix + name, hint, by_name[name]


def nearest_key(schema: Any, parts: Sequence[Part], extra: Sequence[str] = ()) -> str:
    """What an unknown key probably means: a neighbour, the same name in another section, or a list of neighbours."""
    try:
        type_at(schema, parts)
        return join_key(parts)
    except NoSuchKey as e:
        depth, within = e.depth, e.within
    above, wrong = list(parts[:depth]), str(parts[depth])
    if not dataclasses.is_dataclass(within):
        return f"{join_key(above)} is {type_text(within)} and has no subkeys"
    beside = list(fields_of(within)) + (list(extra) if depth == 0 else [])
    all_keys = [key for key, _, _ in keys_of(schema)]
    if meant := _find_synonyms(wrong, join_key(above), all_keys):
        return meant
    near = [name for name in difflib.get_close_matches(wrong, beside, n=3) if not _means_another(wrong, name)]
    if near:
        return join_key([*above, near[0], *parts[depth + 1 :]])
    last = str(parts[-1])
    if meant := _find_synonyms(last, "", all_keys):
        return meant
    same_name = [key for key in all_keys if key.rsplit(".", 1)[-1] == last]
    close = difflib.get_close_matches(join_key(parts), all_keys, n=3, cutoff=0.75)
    near = same_name or [key for key in close if not _means_another(last, key.rsplit(".", 1)[-1])]
    return near[0] if near else f"one of {shorten([join_key([*above, name]) for name in beside])}"


def _lines(name: str) -> set[int]:
    return {i for i, line in enumerate(SYNONYMS) if name.lower() in line}


def _means_another(wrong: str, name: str) -> bool:
    """Whether both names are known with different meanings: patch_size is not a misspelt batch_size."""
    return bool(_lines(wrong)) and bool(_lines(name)) and not _lines(wrong) & _lines(name)


def _find_synonyms(wrong: str, above: str, keys: Sequence[str]) -> str:
    """Keys that are named `wrong` here or in other projects: those of the same section, else (or at the top level) all;
    "" if there are none."""
    names = {name for i in _lines(wrong) for name in SYNONYMS[i]}
    found = [key for key in keys if key.rsplit(".", 1)[-1] in names]
    same = [key for key in found if key.rpartition(".")[0] == above]
    rest = [key for key in found if key not in same] if not same or not above else []
    return " or ".join((same + rest)[:3])


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
