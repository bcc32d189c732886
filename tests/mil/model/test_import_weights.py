"""Weights by the names that published code gives them, against forward passes written from the papers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mil.model.import_weights import import_weights
from mil.model.slide_model import SlideModel, build_model
from pathray.errors import UserError

D, E, A, C, N = 10, 16, 6, 3, 23
State = dict[str, Tensor]


def linear(state: State, name: str, outputs: int, inputs: int, bias: bool = True) -> None:
    state[f"{name}.weight"] = torch.randn(outputs, inputs) / inputs**0.5
    if bias:
        state[f"{name}.bias"] = torch.randn(outputs)


def apply(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", torch.zeros(()))


def gated(state: State, prefix: str, x: Tensor) -> Tensor:
    a, b = apply(state, f"{prefix}attention_a.0", x).tanh(), apply(state, f"{prefix}attention_b.0", x).sigmoid()
    return apply(state, f"{prefix}attention_c", a * b).T


def gated_state(state: State, prefix: str, heads: int) -> None:
    linear(state, f"{prefix}attention_a.0", A, E)
    linear(state, f"{prefix}attention_b.0", A, E)
    linear(state, f"{prefix}attention_c", heads, A)


def model_of(name: str, names: int = C, **arguments: Any) -> SlideModel:
    head = {"names": [f"c{i}" for i in range(names)]}
    return build_model(name, D, "classes", head, embed_dim=E, **arguments).eval()


def test_clam_with_one_branch_computes_what_its_own_code_does() -> None:
    state: State = {}
    linear(state, "attention_net.0", E, D)
    gated_state(state, "attention_net.3.", 1)
    linear(state, "classifiers", C, E)
    for c in range(C):
        linear(state, f"instance_classifiers.{c}", 2, E)
    x = torch.randn(N, D)
    h = apply(state, "attention_net.0", x).relu()
    wanted = apply(state, "classifiers", gated(state, "attention_net.3.", h).softmax(1) @ h)
    model = model_of("clam_sb", attention_dim=A)
    report = import_weights(model, "clam_sb", state)
    assert (report.source, report.missing, report.unexpected) == ("clam", (), ())
    assert report.loaded == len(list(model.parameters()))
    torch.testing.assert_close(model(x[None]).logits, wanted, atol=1e-5, rtol=1e-5)
    sub = model_of("abmil", attention_dim=A)
    assert set(import_weights(sub, "abmil", state).unexpected) == {k for k in state if k.startswith("instance")}
    torch.testing.assert_close(sub(x[None]).logits, wanted, atol=1e-5, rtol=1e-5)


def test_clam_with_a_branch_per_class_computes_what_its_own_code_does() -> None:
    state: State = {}
    linear(state, "attention_net.0", E, D)
    gated_state(state, "attention_net.3.", C)
    for c in range(C):
        linear(state, f"classifiers.{c}", 1, E)
        linear(state, f"instance_classifiers.{c}", 2, E)
    x = torch.randn(N, D)
    h = apply(state, "attention_net.0", x).relu()
    pooled = gated(state, "attention_net.3.", h).softmax(1) @ h
    wanted = torch.cat([apply(state, f"classifiers.{c}", pooled[c]) for c in range(C)])
    model = model_of("clam_mb", attention_dim=A)
    assert import_weights(model, "clam_mb", state).missing == ()
    torch.testing.assert_close(model(x[None]).logits[0], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_gated", [True, False])
def test_the_first_abmil_computes_what_its_own_code_does(is_gated: bool) -> None:
    state: State = {"feature_extractor_part1.0.weight": torch.randn(20, 1, 5, 5)}
    linear(state, "feature_extractor_part2.0", E, D)
    x = torch.randn(N, D)
    h = apply(state, "feature_extractor_part2.0", x).relu()
    if is_gated:
        linear(state, "attention_V.0", A, E)
        linear(state, "attention_U.0", A, E)
        linear(state, "attention_w", 1, A)
        scores = apply(
            state, "attention_w", apply(state, "attention_V.0", h).tanh() * apply(state, "attention_U.0", h).sigmoid()
        )
    else:
        linear(state, "attention.0", A, E)
        linear(state, "attention.2", 1, A)
        scores = apply(state, "attention.2", apply(state, "attention.0", h).tanh())
    linear(state, "classifier.0", 1, E)
    wanted = apply(state, "classifier.0", scores.T.softmax(1) @ h).sigmoid()
    head = {"names": ["no", "yes"], "loss": "bce", "outputs": 1}
    model = build_model("abmil", D, "classes", head, embed_dim=E, attention_dim=A, gated=is_gated).eval()
    report = import_weights(model, "abmil", state)
    assert report.source == "ilse" and report.unexpected == ("feature_extractor_part1.0.weight",)
    assert model.head is not None
    found = model.head.predict(model(x[None]).logits)["prob_yes"]
    torch.testing.assert_close(found, wanted[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prefix", ["", "model.", "module.model."])
def test_feather_loads_under_any_wrapper(prefix: str) -> None:
    state: State = {}
    linear(state, "patch_embed.0", E, D)
    linear(state, "patch_embed.3", E, E)
    gated_state(state, "global_attn.", 1)
    linear(state, "classifier", C, E)
    x = torch.randn(N, D)
    h = apply(state, "patch_embed.3", apply(state, "patch_embed.0", x).relu()).relu()
    wanted = apply(state, "classifier", gated(state, "global_attn.", h).softmax(1) @ h)
    model = model_of("abmil", attention_dim=A, fc_layers=2)
    report = import_weights(model, "abmil", {"state_dict": {prefix + key: value for key, value in state.items()}})
    assert (report.source, report.missing, report.unexpected) == ("mil_lab", (), ())
    torch.testing.assert_close(model(x[None]).logits, wanted, atol=1e-5, rtol=1e-5)


def transmil_state(m: int, heads: int) -> State:
    state: State = {"cls_token": torch.randn(1, 1, E)}
    linear(state, "_fc1.0", E, D)
    for i in (1, 2):
        state[f"layer{i}.norm.weight"], state[f"layer{i}.norm.bias"] = torch.rand(E) + 0.5, torch.randn(E)
        linear(state, f"layer{i}.attn.to_qkv", 3 * E, E, bias=False)
        linear(state, f"layer{i}.attn.to_out.0", E, E)
        state[f"layer{i}.attn.res_conv.weight"] = torch.randn(heads, 1, 33, 1) / 6
    for name, side in (("proj", 7), ("proj1", 5), ("proj2", 3)):
        state[f"pos_layer.{name}.weight"] = torch.randn(E, 1, side, side) / side
        state[f"pos_layer.{name}.bias"] = torch.randn(E)
    state["norm.weight"], state["norm.bias"] = torch.rand(E) + 0.5, torch.randn(E)
    linear(state, "_fc2", C, E)
    return state


def nystrom(s: State, p: str, x: Tensor, m: int, heads: int) -> Tensor:
    """Xiong et al. 2021 as published: zeros in front, means of segments, six steps of the pseudo-inverse."""
    T, size = len(x), E // heads
    x = torch.cat([x.new_zeros(-T % m, E), x])
    q, k, v = (t.reshape(len(x), heads, size).transpose(0, 1) for t in apply(s, f"{p}to_qkv", x).chunk(3, dim=1))
    q = q / size**0.5
    q_mean, k_mean = (t.reshape(heads, m, -1, size).mean(2) for t in (q, k))
    one, two, three = ((a @ b.transpose(1, 2)).softmax(2) for a, b in ((q, k_mean), (q_mean, k_mean), (q_mean, k)))
    z = two.transpose(1, 2) / (two.sum(2).max() * two.sum(1).max())
    eye = torch.eye(m, dtype=x.dtype)
    for _ in range(6):
        az = two @ z
        z = z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4
    kernel = s[f"{p}res_conv.weight"][:, 0, :, 0]
    v_long = F.pad(v, (0, 0, 16, 16))
    residual = sum(kernel[:, j, None, None] * v_long[:, j : j + len(x)] for j in range(33))
    out = (one @ z @ (three @ v) + residual).transpose(0, 1).reshape(len(x), E)
    return apply(s, f"{p}to_out.0", out)[-T:]


@pytest.mark.parametrize("instances", [1, 2, 23, 25, 40])
def test_transmil_computes_what_its_own_code_does(instances: int) -> None:
    m, heads = 8, 2
    state = transmil_state(m, heads)
    s = {key: value.double() for key, value in state.items()}
    x = torch.randn(instances, D)
    h = apply(s, "_fc1.0", x.double()).relu()
    side = math.ceil(math.sqrt(instances))
    h = torch.cat([s["cls_token"][0], h, h[: side * side - instances]])

    def layer(i: int, h: Tensor) -> Tensor:
        normed = F.layer_norm(h, (E,), s[f"layer{i}.norm.weight"], s[f"layer{i}.norm.bias"])
        return h + nystrom(s, f"layer{i}.attn.", normed, m, heads)

    h = layer(1, h)
    grid = h[1:].T.reshape(1, E, side, side)
    grid = grid + sum(
        F.conv2d(grid, s[f"pos_layer.{n}.weight"], s[f"pos_layer.{n}.bias"], padding=w // 2, groups=E)
        for n, w in (("proj", 7), ("proj1", 5), ("proj2", 3))
    )
    h = layer(2, torch.cat([h[:1], grid[0].flatten(1).T]))
    wanted = apply(s, "_fc2", F.layer_norm(h, (E,), s["norm.weight"], s["norm.bias"])[0])
    model = model_of("transmil", heads=heads, landmarks=m)
    report = import_weights(model, "transmil", state)
    assert (report.source, report.missing, report.unexpected) == ("transmil", (), ())
    torch.testing.assert_close(model.double()(x.double()[None]).logits[0], wanted, atol=1e-9, rtol=1e-9)


def test_dsmil_computes_what_its_own_code_does() -> None:
    state: State = {}
    linear(state, "i_classifier.fc.0", C, D)
    linear(state, "b_classifier.q", A, D)
    linear(state, "b_classifier.v.1", D, D)
    state["b_classifier.fcc.weight"], state["b_classifier.fcc.bias"] = torch.randn(C, C, D), torch.randn(C)
    x = torch.randn(N, D)
    classes, q, v = (
        apply(state, "i_classifier.fc.0", x),
        apply(state, "b_classifier.q", x),
        apply(state, "b_classifier.v.1", x),
    )
    weights = (q @ q[classes.argmax(0)].T / A**0.5).softmax(0)
    bag = torch.einsum("ocd,cd->o", state["b_classifier.fcc.weight"], weights.T @ v) + state["b_classifier.fcc.bias"]
    head = {"names": [f"c{i}" for i in range(C)]}
    model = build_model("dsmil", D, "classes", head, embed_dim=D, attention_dim=A, fc_layers=0).eval()
    assert import_weights(model, "dsmil", state).missing == ()
    torch.testing.assert_close(model(x[None]).logits[0], (bag + classes.amax(0)) / 2, atol=1e-5, rtol=1e-5)


def test_the_other_models_of_the_predecessor_load_completely() -> None:
    states: dict[str, State] = {"multihead_abmil": {}, "perceiver": {}, "bimamba2": {}, "static": {}}
    for state in states.values():
        linear(state, "aggregator.patch_embed.0", E, D)
        linear(state, "head", C, E)
    for k in range(2):
        gated_state(states["multihead_abmil"], f"aggregator.attention_heads.{k}.", 1)
    linear(states["multihead_abmil"], "aggregator.head_proj", E, 2 * E)
    perceiver, block = states["perceiver"], "aggregator.blocks.0."
    perceiver["aggregator.latents"] = torch.randn(1, 4, E)
    for attention in ("cross_attn", "self_attn"):
        perceiver[f"{block}{attention}.in_proj_weight"] = torch.randn(3 * E, E)
        perceiver[f"{block}{attention}.in_proj_bias"] = torch.randn(3 * E)
        linear(perceiver, f"{block}{attention}.out_proj", E, E)
    for norm in ("cross_norm_q", "cross_norm_kv", "self_norm", "ffn_norm"):
        perceiver[f"{block}{norm}.weight"], perceiver[f"{block}{norm}.bias"] = torch.randn(E), torch.randn(E)
    linear(perceiver, f"{block}ffn.0", 4 * E, E)
    linear(perceiver, f"{block}ffn.3", E, 4 * E)
    for state in (perceiver, states["bimamba2"]):
        state["aggregator.norm.weight"], state["aggregator.norm.bias"] = torch.randn(E), torch.randn(E)
    mamba, inner, S = states["bimamba2"], 2 * E, 4
    mamba["aggregator.layers.0.norm.weight"], mamba["aggregator.layers.0.norm.bias"] = torch.randn(E), torch.randn(E)
    for direction in ("mamba_fwd", "mamba_rev"):
        p = f"aggregator.layers.0.{direction}."
        shapes = {"dt_bias": (4,), "A_log": (4,), "D": (4,), "in_proj.weight": (2 * inner + 2 * S + 4, E)}
        shapes |= {"conv1d.weight": (inner + 2 * S, 1, 4), "conv1d.bias": (inner + 2 * S,), "norm.weight": (inner,)}
        shapes |= {"out_proj.weight": (E, inner)}
        mamba |= {p + key: torch.randn(shape) for key, shape in shapes.items()}
    arguments: dict[str, dict[str, Any]] = {
        "multihead_abmil": {"attention_dim": A, "heads": 2},
        "perceiver": {"latents": 4, "heads": 2},
        "bimamba2": {"layers": 1, "state": S, "head_dim": 8},
        "static": {},
    }
    for name, state in states.items():
        model = model_of(name, **arguments[name])
        report = import_weights(model, name, state)
        assert (report.missing, report.unexpected) == ((), ()), (name, report)
        assert report.loaded == len(list(model.parameters()))


def test_own_checkpoints_load_with_and_without_the_head() -> None:
    torch.manual_seed(1)
    first, second = model_of("abmil", attention_dim=A), model_of("abmil", attention_dim=A)
    report = import_weights(second, "abmil", first.state_dict())
    assert report.source == "pathray" and report.missing == ()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    third = model_of("abmil", names=5, attention_dim=A)
    assert import_weights(third, "abmil", first.aggregator.state_dict(), head=False).missing == ()
    assert torch.equal(
        third.aggregator.get_parameter("attention.score.weight"),
        first.aggregator.get_parameter("attention.score.weight"),
    )


def test_nothing_loaded_and_another_shape_are_errors_that_name_both() -> None:
    model = model_of("abmil", attention_dim=A)
    with pytest.raises(UserError, match="no weights for abmil.*conv1.weight"):
        import_weights(model, "abmil", {"conv1.weight": torch.zeros(3)})
    state: State = {}
    linear(state, "patch_embed.0", E, D + 1)
    with pytest.raises(
        UserError, match=rf"aggregator.embed.layers.0.weight; found: \[{E}, {D + 1}\]; expected: \[{E}, {D}\]"
    ):
        import_weights(model, "abmil", state)
    with pytest.raises(UserError, match="unknown source"):
        import_weights(model, "abmil", state, source="somewhere")
