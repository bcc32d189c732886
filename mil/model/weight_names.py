"""The names that published code gives the parameters of aggregators, and what they are called here.

A source is a program or paper whose checkpoints name their parameters alike. Not here: how a table is applied
(mil.model.import_weights).
"""

from __future__ import annotations

from dataclasses import dataclass

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
