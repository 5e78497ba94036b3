"""Weight tables: fusing, renaming, experts, and what happens to names that fit nowhere."""

from __future__ import annotations

import pytest

from llmserve.compile.random_checkpoint import TINY_LLAMA, tensor_shapes
from llmserve.errors import CheckpointError
from llmserve.weights.mapping import Fuse, MappedTensor, map_weights

ATTENTION = "model.layers.{i}.self_attn."
RULES = (
    Fuse(ATTENTION + "qkv_proj.{kind}", tuple(ATTENTION + f"{x}_proj.{{kind}}" for x in "qkv")),
    Fuse(
        "model.layers.{i}.mlp.gate_up_proj.{kind}",
        ("model.layers.{i}.mlp.gate_proj.{kind}", "model.layers.{i}.mlp.up_proj.{kind}"),
    ),
)


def params(layers: int, bias: bool) -> list[str]:
    names = ["model.embed_tokens.weight"]
    for i in range(layers):
        layer = f"model.layers.{i}"
        names += [f"{layer}.input_layernorm.weight", f"{layer}.self_attn.qkv_proj.weight"]
        names += [f"{layer}.self_attn.qkv_proj.bias"] if bias else []
        names += [f"{layer}.self_attn.o_proj.weight", f"{layer}.post_attention_layernorm.weight"]
        names += [f"{layer}.mlp.gate_up_proj.weight", f"{layer}.mlp.down_proj.weight"]
    return [*names, "model.norm.weight", "lm_head.weight"]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_whole_checkpoint_finds_its_place(family: str) -> None:
    checkpoint = list(tensor_shapes(TINY_LLAMA | {"model_type": family}))
    names = params(4, bias=family == "qwen2")
    mapped = map_weights(names, checkpoint, RULES)
    assert [tensor.name for tensor in mapped] == names
    assert sorted(source for tensor in mapped for source in tensor.sources) == sorted(checkpoint)
    fused = next(tensor for tensor in mapped if tensor.name == "model.layers.3.self_attn.qkv_proj.weight")
    assert fused.sources == tuple(f"model.layers.3.self_attn.{x}_proj.weight" for x in "qkv")


def test_a_missing_source_is_named_with_its_purpose() -> None:
    checkpoint = set(tensor_shapes(TINY_LLAMA)) - {"model.layers.2.self_attn.k_proj.weight"}
    with pytest.raises(CheckpointError, match=r"no tensor model\.layers\.2\.self_attn\.k_proj\.weight, which .*qkv"):
        map_weights(params(4, bias=False), checkpoint, RULES)
    with pytest.raises(CheckpointError, match=r"no tensor a\.$"):
        map_weights(["a"], [])


def test_leftovers_are_listed_up_to_five() -> None:
    left = [f"vision.{i}.weight" for i in range(7)]
    with pytest.raises(CheckpointError, match=r"no place for: vision\.0.*vision\.4\.weight and 2 more\.$"):
        map_weights(["a"], ["a", *left])
    assert map_weights(["a"], ["a", *left], ignore=["vision.*"]) == [MappedTensor("a", ("a",))]


def test_ignored_by_name() -> None:
    checkpoint = ["a", "model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight"]
    assert len(map_weights(["a"], checkpoint, ignore=["lm_head.weight"])) == 1


def test_too_few_layers_in_the_config_leave_tensors_over() -> None:
    with pytest.raises(CheckpointError, match=r"no place for: model\.layers\.3"):
        map_weights(params(3, bias=False), tensor_shapes(TINY_LLAMA), RULES)


def test_experts_are_stacked_in_order() -> None:
    rule = Fuse("layers.{i}.experts.gate_up.weight", ("layers.{i}.x.{e}.gate.weight", "layers.{i}.x.{e}.up.weight"))
    checkpoint = [f"layers.7.x.{e}.{part}.weight" for e in range(11) for part in ("gate", "up")]
    assert map_weights(["layers.7.experts.gate_up.weight"], checkpoint, [rule])[0].sources == tuple(checkpoint)
    with pytest.raises(CheckpointError, match=r"layers\.7\.x\.4\.up"):
        map_weights(["layers.7.experts.gate_up.weight"], [n for n in checkpoint if "4.up" not in n], [rule])
    with pytest.raises(CheckpointError, match=r"layers\.7\.x\.0\.gate"):
        map_weights(["layers.7.experts.gate_up.weight"], [], [rule])


def test_one_source_is_a_renaming_and_dots_are_dots() -> None:
    rule = Fuse("model.{x}.weight", ("transformer.{x}.w",))
    assert map_weights(["model.a.weight"], ["transformer.a.w"], [rule])[0].sources == ("transformer.a.w",)
    assert map_weights(["modelxa.weight"], ["modelxa.weight"], [rule])[0].sources == ("modelxa.weight",)
