"""Weights of other programs into a slide model, by the names of their parameters. Read and applied here, never fetched.

A table per source says which name becomes which; what the tables do not name is reported. Not here: reading files of
this project's runs (checkpoints and artifacts, pathray.store).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mil.aggregators import Aggregator
from mil.model.slide_model import SlideModel
from pathray.errors import UserError

log = logging.getLogger(__name__)

CONTAINERS = ("state_dict", "model_state_dict", "model", "aggregator")
WRAPPERS = re.compile(r"^(?:module|_orig_mod|model|encoder|aggregator|online_network|student|backbone)\.")
KIND = r"(weight|bias)"


@dataclass(frozen=True)
class Rule:
    """Names that match `pattern` become `target`, a template of the groups. `{rank}` is the place of the first group's
    number among those that occur (0, 3, 6 → 0, 1, 2). `part`: the place in a target that several names make up, row
    block after row block. `thirds`: the rows of the source that are taken, of three."""

    pattern: str
    target: str
    part: int = 0
    thirds: tuple[int, int] = (0, 3)


def _gated(prefix: str, target: str, a: str, b: str, c: str) -> list[Rule]:
    return [
        Rule(rf"{prefix}{a}\.{KIND}", f"{target}.hidden.{{-1}}", 0),
        Rule(rf"{prefix}{b}\.{KIND}", f"{target}.hidden.{{-1}}", 1),
        Rule(rf"{prefix}{c}\.{KIND}", f"{target}.score.{{-1}}"),
    ]


def _clam_attention(prefix: str, target: str) -> list[Rule]:
    """Attn_Net_Gated of CLAM and GlobalGatedAttention of MIL-Lab, and their forms without a gate."""
    plain = [
        Rule(rf"{prefix}module\.0\.{KIND}", f"{target}.hidden.{{-1}}"),
        Rule(rf"{prefix}module\.[23]\.{KIND}", f"{target}.score.{{-1}}"),
    ]
    return _gated(prefix, target, r"attention_a\.0", r"attention_b\.0", "attention_c") + plain


EMBED = Rule(rf"patch_embed\.(\d+)\.{KIND}", "aggregator.embed.layers.{rank}.{-1}")
HEAD = Rule(rf"(?:head|classifier)\.{KIND}", "head.linear.{-1}")
NYSTROM = [
    ("norm", "norm", KIND),
    (r"attn\.to_qkv|attention\.to_qkv", "attention.to_qkv", "(weight)"),
    (r"attn\.to_out\.0|attention\.to_out\.0", "attention.to_out", KIND),
    (r"attn\.res_conv|attention\.res_conv", "attention.residual", "(weight)"),
]
TRANSMIL = [
    Rule(r"cls_token", "aggregator.class_token"),
    Rule(rf"pos_layer\.(proj1?2?)\.{KIND}", "aggregator.position.{0}.{-1}"),
    Rule(rf"norm\.{KIND}", "aggregator.norm.{-1}"),
    *(
        Rule(rf"(?:layer|blocks\.)(\d+)\.(?:{theirs})\.{kind}", f"aggregator.layers.{{rank}}.{ours}.{{-1}}")
        for theirs, ours, kind in NYSTROM
    ),
]
PERCEIVER_LAYER = "aggregator.layers.{0}."
MAMBA = r"(?:dt_bias|A_log|D|in_proj\.weight|conv1d\.weight|conv1d\.bias|norm\.weight|out_proj\.weight)"


def _perceiver() -> list[Rule]:
    block, rules = r"blocks\.(\d+)\.", [EMBED, HEAD, Rule("latents", "aggregator.latents")]
    rules.append(Rule(rf"norm\.{KIND}", "aggregator.norm.{-1}"))
    for theirs, ours in (
        ("cross_norm_q", "cross.latent_norm"),
        ("cross_norm_kv", "cross.instance_norm"),
        (r"cross_attn\.out_proj", "cross.project"),
        ("self_norm", "block.norm1"),
        (r"self_attn\.out_proj", "block.attn.proj"),
        ("ffn_norm", "block.norm2"),
        (r"ffn\.0", "block.mlp.fc1"),
        (r"ffn\.3", "block.mlp.fc2"),
    ):
        rules.append(Rule(rf"{block}{theirs}\.{KIND}", f"{PERCEIVER_LAYER}{ours}.{{-1}}"))
    rules += [
        Rule(rf"{block}self_attn\.in_proj_{KIND}", f"{PERCEIVER_LAYER}block.attn.qkv.{{-1}}"),
        Rule(rf"{block}cross_attn\.in_proj_{KIND}", f"{PERCEIVER_LAYER}cross.query.{{-1}}", thirds=(0, 1)),
        Rule(rf"{block}cross_attn\.in_proj_{KIND}", f"{PERCEIVER_LAYER}cross.key_value.{{-1}}", thirds=(1, 3)),
    ]
    return rules


SOURCES: dict[str, dict[str, list[Rule]]] = {
    "clam": {
        name: [
            Rule(rf"attention_net\.0\.{KIND}", "aggregator.embed.layers.0.{-1}"),
            *_clam_attention(r"attention_net\.\d+\.", "aggregator.attention"),
            Rule(rf"classifiers\.{KIND}", "head.linear.{-1}"),
            *(Rule(rf"classifiers\.{c}\.{KIND}", "head.linear.{-1}", c) for c in range(64)),
            Rule(rf"instance_classifiers\.(\d+)\.{KIND}", "aggregator.instance_classifiers.{0}.{-1}"),
        ]
        for name in ("abmil", "clam_sb", "clam_mb")
    },
    "ilse": {
        "abmil": [
            Rule(rf"feature_extractor_part2\.0\.{KIND}", "aggregator.embed.layers.0.{-1}"),
            Rule(rf"attention\.0\.{KIND}", "aggregator.attention.hidden.{-1}"),
            Rule(rf"attention\.2\.{KIND}", "aggregator.attention.score.{-1}"),
            *_gated("", "aggregator.attention", r"attention_V\.0", r"attention_U\.0", "attention_(?:w|weights)"),
            Rule(rf"classifier\.0\.{KIND}", "head.linear.{-1}"),
        ]
    },
    "mil_lab": {  # FEATHER among them; the seed's own checkpoints name their parameters alike
        "static": [EMBED, HEAD],
        "abmil": [EMBED, HEAD, *_clam_attention(r"global_attn\.", "aggregator.attention")],
        "multihead_abmil": [
            EMBED,
            HEAD,
            *(r for k in range(64) for r in _clam_attention(rf"attention_heads\.{k}\.", f"aggregator.heads.{k}")),
            Rule(rf"head_proj\.{KIND}", "aggregator.project.{-1}"),
        ],
        "transmil": [EMBED, HEAD, *TRANSMIL],
        "perceiver": _perceiver(),
        "bimamba2": [
            EMBED,
            HEAD,
            Rule(rf"norm\.{KIND}", "aggregator.norm.{-1}"),
            Rule(rf"layers\.(\d+)\.norm\.{KIND}", "aggregator.layers.{0}.norm.{-1}"),
            Rule(rf"layers\.(\d+)\.mamba_fwd\.({MAMBA})", "aggregator.layers.{0}.forwards.{-1}"),
            Rule(rf"layers\.(\d+)\.mamba_rev\.({MAMBA})", "aggregator.layers.{0}.backwards.{-1}"),
        ],
    },
    "transmil": {
        "transmil": [
            Rule(rf"_fc1\.0\.{KIND}", "aggregator.embed.layers.0.{-1}"),
            Rule(rf"_fc2\.{KIND}", "head.linear.{-1}"),
            *TRANSMIL,
        ]
    },
    "dsmil": {
        "dsmil": [
            Rule(rf"i_classifier\.fc(?:\.0)?\.{KIND}", "aggregator.instance_classifier.{-1}"),
            Rule(rf"b_classifier\.q\.{KIND}", "aggregator.query.{-1}"),
            Rule(rf"b_classifier\.v\.1\.{KIND}", "aggregator.value.{-1}"),
            Rule(rf"b_classifier\.fcc\.{KIND}", "aggregator.bag_classifier.{-1}"),
        ]
    },
}


@dataclass(frozen=True)
class Imported:
    """What became of the weights: the source's name, the number of the model's tensors that were loaded, names of the
    model's that were not, and names of the file's that nothing took."""

    source: str
    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()


@dataclass
class _Match:
    tensors: dict[str, Tensor] = field(default_factory=dict)
    taken: dict[str, str] = field(default_factory=dict)  # name in the file → name in the model


def import_weights(
    model: SlideModel | Aggregator, name: str, state: Mapping[str, Any], *, source: str | None = None, head: bool = True
) -> Imported:
    """Load `state` into `model`, whose aggregator is registered as `name`; `head=False` keeps the model's head.

    Without `source`, the table (or the model's own names) that fits most tensors is taken. UserError if none is loaded,
    naming the file's first names, and for a shape that differs, naming both.
    """
    whole = model if isinstance(model, SlideModel) else SlideModel(model)
    given = _tensors(state)
    if source is not None and source not in SOURCES and source != "pathray":
        expected = ", ".join(["pathray", *SOURCES])
        raise UserError("unknown source of weights", key="source", found=source, expected=expected)
    everything = whole.state_dict()
    own = {key: value for key, value in everything.items() if head or not key.startswith("head.")}
    candidates = {"pathray": _by_own_names(given, own)}
    candidates |= {key: _by_rules(given, tables[name]) for key, tables in SOURCES.items() if name in tables}
    if source is not None:
        candidates = {source: candidates.get(source, _Match())}
    best = max(candidates, key=lambda key: len(candidates[key].tensors.keys() & own.keys()))
    found = {key: value for key, value in candidates[best].tensors.items() if key in own}
    if not found:
        first = ", ".join(list(given)[:3])
        raise UserError(
            f"no weights for {name}", key="aggregator_weights_path", found=first, expected=f"like {next(iter(own))}"
        )
    for key, value in found.items():
        if value.shape != own[key].shape:
            shapes = list(value.shape), list(own[key].shape)
            raise UserError(f"weights of another shape from {best}", key=key, found=shapes[0], expected=shapes[1])
    whole.load_state_dict(found, strict=False)
    unexpected = tuple(key for key in given if candidates[best].taken.get(key) not in everything)
    report = Imported(best, len(found), tuple(key for key in own if key not in found), unexpected)
    log.info("%d tensors of %s loaded; missing: %s; unexpected: %s", report.loaded, best, report.missing, unexpected)
    return report


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by name, out of the container that frameworks put around them."""
    for key in CONTAINERS:
        inner = state.get(key)
        if isinstance(inner, Mapping):
            return _tensors(inner)
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _by_own_names(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> _Match:
    match = _Match()
    for key, value in given.items():
        for candidate in (key, _bare(key), f"aggregator.{_bare(key)}"):
            if candidate in own:
                match.tensors[candidate] = value
                match.taken[key] = candidate
                break
    return match


def _by_rules(given: Mapping[str, Tensor], rules: list[Rule]) -> _Match:
    match, parts = _Match(), dict[str, dict[int, Tensor]]()
    for rule in rules:
        hits = {key: hit for key in given if (hit := re.fullmatch(rule.pattern, _bare(key)))}
        numbers = sorted({int(hit[1]) for hit in hits.values() if hit.re.groups and hit[1].isdigit()})
        for key, hit in hits.items():
            groups = hit.groups()
            rank = numbers.index(int(groups[0])) if groups and groups[0].isdigit() else 0
            last = groups[-1] if groups else ""
            target = rule.target.replace("{-1}", last).replace("{rank}", str(rank))
            target = target.replace("{0}", groups[0] if groups else "")
            third = given[key].shape[0] // 3
            value = given[key] if rule.thirds == (0, 3) else given[key][rule.thirds[0] * third : rule.thirds[1] * third]
            parts.setdefault(target, {})[rule.part] = value
            match.taken[key] = target
    for target, blocks in parts.items():
        ordered = [blocks[i] for i in sorted(blocks)]
        match.tensors[target] = ordered[0] if len(ordered) == 1 else torch.cat(ordered)
    return match


def _bare(key: str) -> str:
    while (stripped := WRAPPERS.sub("", key)) != key:
        key = stripped
    return key
