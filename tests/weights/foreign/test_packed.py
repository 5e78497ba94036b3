"""GPTQ, AWQ and compressed-tensors: the weights of the file, element by element, are the weights that are served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from llmserve.compile.build import Build
from llmserve.errors import CheckpointError, UnsupportedError
from llmserve.quant.group import FORMATS, INT8, dequantize
from llmserve.quant.takeover import holders
from llmserve.weights.foreign import open_source
from llmserve.weights.load import load_params

from ...skips import package
from . import packing
from .packing import Packer

GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
COMPRESSED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "ignore": ["lm_head"],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "group"}}},
}
INTEGERS = COMPRESSED | {"format": "int-quantized"}

# What a file is → (its writer, its settings, the storage that takes it over).
CASES: dict[str, tuple[Packer, dict[str, Any], str]] = {
    "gptq": (packing.gptq(), GPTQ, "int4"),
    "gptq-32": (packing.gptq(size=32), GPTQ | {"group_size": 32}, "int4"),
    "gptq-row": (packing.gptq(size=-1), GPTQ | {"group_size": -1}, "int4"),
    "gptq-v2": (packing.gptq(version=2), GPTQ | {"checkpoint_format": "gptq_v2"}, "int4"),
    "gptq-blocks": (packing.gptq(order="blocks"), GPTQ | {"desc_act": True}, "int4"),
    "gptq-without-g_idx": (packing.gptq(g_idx=False), GPTQ, "int4"),
    "gptq-zeros": (packing.gptq(symmetric=False), GPTQ | {"sym": False}, "int4z"),
    "gptq-v2-zeros": (
        packing.gptq(symmetric=False, version=2),
        GPTQ | {"sym": False, "checkpoint_format": "gptq_v2"},
        "int4z",
    ),
    "gptq-2": (packing.gptq(bits=2), GPTQ | {"bits": 2}, "int3"),
    "gptq-3": (packing.gptq(bits=3), GPTQ | {"bits": 3}, "int3"),
    "gptq-3-zeros": (packing.gptq(bits=3, symmetric=False), GPTQ | {"bits": 3, "sym": False}, "int4"),
    "gptq-8": (packing.gptq(bits=8), GPTQ | {"bits": 8}, "int8"),
    "awq": (packing.awq(), AWQ, "int4z"),
    "awq-64": (packing.awq(64), AWQ | {"group_size": 64}, "int4z"),
    "awq-symmetric": (packing.awq(symmetric=True), AWQ, "int4"),
    "compressed": (packing.pack_quantized(), COMPRESSED, "int4"),
    "compressed-zeros": (packing.pack_quantized(size=32, symmetric=False), COMPRESSED, "int4z"),
    "compressed-row": (packing.pack_quantized(size=-1, dtype=np.float16), COMPRESSED, "int4"),
    "compressed-row-zeros": (packing.pack_quantized(size=-1, symmetric=False), COMPRESSED, "int4z"),
    "compressed-3": (packing.pack_quantized(bits=3, size=32), COMPRESSED, "int3"),
    "compressed-8": (packing.pack_quantized(bits=8, size=32), COMPRESSED, "int8"),
    "integers": (packing.int_quantized(), INTEGERS, "int8"),
}
# Grids that none of ours holds: they are rounded to 8 bits.
ROUNDED: dict[str, tuple[Packer, dict[str, Any], str]] = {
    "gptq-order": (packing.gptq(order="mixed"), GPTQ | {"desc_act": True}, "neighbouring inputs (desc_act)"),
    "gptq-8-zeros": (packing.gptq(bits=8, symmetric=False), GPTQ | {"bits": 8}, "8-bit integers have zero points"),
    "integers-zeros": (packing.int_quantized(symmetric=False), INTEGERS, "8-bit integers have zero points"),
}
W = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32) * np.float32(0.05)


def single(path: Path, pack: Packer, settings: dict[str, Any]) -> np.ndarray:
    """A directory with one module, `w`; returns what its weights are."""
    tensors, weights = pack(W)
    path.mkdir(exist_ok=True)
    packing.save({f"w.{part}": array for part, array in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}))
    return weights


@pytest.mark.parametrize("case", [*CASES, *ROUNDED])
def test_the_weights_of_a_file_are_read(tmp_path: Path, case: str) -> None:
    """As floats, in any blocks of rows, exactly: an integer times a scale of at most 11 bits is a float32."""
    pack, settings, _ = (CASES | ROUNDED)[case]
    weights = single(tmp_path, pack, settings)
    source = open_source(tmp_path)
    assert source.names() == ["w.weight"] and source.info("w.weight").shape == W.shape
    np.testing.assert_array_equal(source.read_rows("w.weight", 0, len(W)), weights)
    np.testing.assert_array_equal(source.read_rows("w.weight", 5, 18), weights[5:18])


@pytest.mark.parametrize("case", CASES)
def test_a_grid_is_taken_over_without_loss(tmp_path: Path, case: str) -> None:
    pack, settings, storage = CASES[case]
    weights = single(tmp_path, pack, settings)
    source = open_source(tmp_path)
    packed = source.packed("w.weight")
    assert packed is not None and packed.exact and packed.format.name == storage
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size - 1000 < packed.nbytes < size
    for fmt in holders(packed.format):
        stored = source.read_grid("w.weight", 0, len(W)).store(fmt)
        np.testing.assert_array_equal(dequantize(*stored[:2], fmt, W.shape[1], *stored[2:]), weights)


@pytest.mark.parametrize("case", ROUNDED)
def test_what_has_no_place_says_why(tmp_path: Path, case: str) -> None:
    pack, settings, reason = ROUNDED[case]
    single(tmp_path, pack, settings)
    packed = open_source(tmp_path).packed("w.weight")
    assert packed is not None and not packed.exact and reason in packed.reason and packed.format is INT8


def stored_weights(build: Build) -> dict[str, np.ndarray]:
    """Every matrix of a converted model as floats, by our names."""
    params, found = load_params(build.weights()), {}
    for name, matrix in build.model.matrices():
        storage = build.scheme.storage_of(name)
        if isinstance(storage, str):
            found[name] = params[f"{name}.weight"]
        else:
            parts = [
                params[f"{name}.{part}"] for part in ("q_weight", "q_scale", "q_zero") if f"{name}.{part}" in params
            ]
            found[name] = dequantize(*parts[:2], storage, matrix.in_features, *parts[2:])
    return found


def fused(twin: Path, name: str) -> np.ndarray:
    tensors = load_file(twin / "model.safetensors")
    parts = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    stem, _, last = name.rpartition(".")
    return np.concatenate([tensors[f"{stem}.{part}.weight".lstrip(".")] for part in parts.get(last, (last,))])


@pytest.mark.parametrize(
    ("pack", "settings", "family"),
    [
        (packing.gptq(size=32), GPTQ | {"group_size": 32}, "llama"),
        (packing.gptq(bits=3, size=32), GPTQ | {"bits": 3, "group_size": 32}, "qwen2"),
        (packing.pack_quantized(size=32), COMPRESSED, "qwen3"),
    ],
    ids=["gptq", "gptq-3", "compressed"],
)
def test_a_model_is_converted_without_loss(tmp_path: Path, pack: Packer, settings: dict[str, Any], family: str) -> None:
    made, twin = packing.write(tmp_path, family, pack, settings)
    build = Build(str(made))
    for name, w in stored_weights(build).items():
        expected = fused(twin, name)
        if name.endswith("_proj"):
            np.testing.assert_array_equal(w, expected)
        else:  # floats in the file: 8 bits
            assert build.scheme.storage_of(name) is INT8
            assert np.abs(w - expected).max() <= np.abs(expected).max() / 127 / 1.9
    assert "taken over as they were quantized" in build.notes[0]
    config = json.loads((build.weights() / "config.json").read_text())
    assert "quantization_config" not in config and (build.weights() / "tokenizer.json").exists()


def test_a_wish_bounds_the_bits(tmp_path: Path) -> None:
    """4 bits asked for: 3 and 4 bits stay as they are, 8 bits are rounded again; floats only if that is asked for."""
    small, large = packing.gptq(bits=3, size=32), packing.gptq(bits=8, size=32)

    def pack_by_name(name: str) -> bool:
        return ".0." in name

    made, _ = packing.write(tmp_path, "llama", small, GPTQ | {"bits": 3, "group_size": 32}, pack_by_name)
    tensors = load_file(made / "model.safetensors")
    for name in [name for name in tensors if ".1." in name and name.endswith("_proj.weight")]:
        packed, _ = large(tensors.pop(name))
        tensors |= {name.removesuffix("weight") + part: array for part, array in packed.items()}
    packing.save(tensors, made / "model.safetensors")

    def storages(quant: str | None) -> tuple[str, ...]:
        scheme = Build(str(made), quant=quant).scheme
        names = ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "lm_head")
        kinds = (scheme.storage_of(name) for name in names)
        return tuple(kind if isinstance(kind, str) else kind.name for kind in kinds)

    assert storages(None) == ("int3", "int8", "int8")
    assert storages("q4") == ("int3", "int4", "int4")
    assert storages("q3") == ("int3", "int3", "int3")
    assert storages("q8") == ("int3", "int8", "int8")
    assert storages("none") == ("float32",) * 3


def test_biases_of_zeros_are_nothing(tmp_path: Path) -> None:
    """AutoGPTQ gives every module one. Where the model has no place for it, it must be zero."""
    made, _ = packing.write(tmp_path, "llama", packing.gptq(size=32), GPTQ | {"group_size": 32})
    tensors = load_file(made / "model.safetensors")
    bias = "model.layers.0.self_attn.o_proj.bias"
    packing.save(tensors | {bias: np.zeros(256, np.float16)}, made / "model.safetensors")
    Build(str(made)).weights()
    packing.save(tensors | {bias: np.ones(256, np.float16)}, made / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no place for: model\.layers\.0\.self_attn\.o_proj\.bias"):
        Build(str(made)).weights()


@pytest.mark.parametrize("file", ["quantize_config.json", "quant_config.json"])
def test_settings_in_a_file_of_their_own(tmp_path: Path, file: str) -> None:
    gptq = file == "quantize_config.json"
    weights = single(tmp_path, packing.gptq() if gptq else packing.awq(), {})
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    own = {"bits": 4, "group_size": 128} if gptq else {"w_bit": 4, "q_group_size": 128, "version": "GEMM"}
    (tmp_path / file).write_text(json.dumps(own))
    source = open_source(tmp_path)
    assert source.kind == ("gptq" if gptq else "awq")
    np.testing.assert_array_equal(source.read_rows("w.weight", 0, len(W)), weights)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"quant_method": "bitsandbytes"},
            r"quantized by 'bitsandbytes' are not read; awq, compressed-tensors, gptq are",
        ),
        ({"quant_method": "gptqq"}, r"is 'gptq' meant"),
        ({"bits": 4}, r"quantized by 'None' are not read"),
        (GPTQ | {"group_size": 16}, r"groups of 16, .*multiples of 32 fit"),
        (GPTQ | {"group_size": 100}, r"groups of 100"),
        (GPTQ | {"group_size": "all"}, r"groups of 'all'"),
        (GPTQ | {"bits": 5}, r"GPTQ with 5 bits is not read"),
        (GPTQ | {"checkpoint_format": "marlin"}, r"format 'marlin' are not read; gptq and gptq_v2 are"),
        (AWQ | {"version": "gemv"}, r"version 'gemv' are not read; those of version 'gemm'"),
        (AWQ | {"bits": 8}, r"AWQ with 8 bits"),
        (AWQ | {"group_size": 8}, r"AWQ checkpoint has groups of 8"),
        (
            COMPRESSED | {"format": "float-quantized"},
            r"'float-quantized' are not read; pack-quantized and int-quantized",
        ),
    ],
)
def test_settings_that_are_not_read(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    single(tmp_path, packing.gptq(), settings)
    with pytest.raises(UnsupportedError, match=words) as caught:
        open_source(tmp_path)
    assert "\n" not in str(caught.value)


Damage = Callable[[dict[str, np.ndarray]], None]


def without(part: str) -> Damage:
    return lambda tensors: void(tensors.pop(f"w.{part}"))


def changed(part: str, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    return lambda tensors: tensors.update({f"w.{part}": change(tensors[f"w.{part}"])})


def void(_: object) -> None:
    return None


BROKEN: list[tuple[Packer, dict[str, Any], Damage, str]] = [
    (packing.gptq(), GPTQ, without("scales"), r"has no tensor w.scales"),
    (packing.gptq(), GPTQ, without("qzeros"), r"has no tensor w.qzeros"),
    (packing.gptq(), GPTQ, without("qweight"), r"no tensor whose name ends in .qweight"),
    (packing.gptq(), GPTQ, changed("qweight", lambda a: a.astype(np.int64)), r"w.qweight is int64, not int32"),
    (packing.gptq(), GPTQ, changed("scales", lambda a: a.astype(np.int32)), r"w.scales is int32, not float16 or"),
    (packing.gptq(), GPTQ, changed("scales", lambda a: a[:1]), r"w.scales is \[1, 64\] where \[2, 64\] is needed"),
    (packing.gptq(), GPTQ, changed("qweight", lambda a: a[:, :40]), r"w.qweight is \[32, 40\] where \[…, 64\]"),
    (packing.gptq(), GPTQ, changed("qweight", lambda a: a[:31]), r"no packing in 2, 3, 4 or 8 bits"),
    (packing.gptq(), GPTQ, changed("qzeros", lambda a: a[:, :5]), r"no packing in 2, 3, 4 or 8 bits"),
    (packing.gptq(), GPTQ, changed("g_idx", lambda a: a + 1), r"w.g_idx names groups beyond the 2 that"),
    (packing.gptq(), GPTQ, changed("g_idx", lambda a: a[:9]), r"w.g_idx is \[9\] where \[256\]"),
    (
        packing.gptq(g_idx=False),
        GPTQ | {"group_size": 64},
        without("nothing"),
        r"groups of 64 has 4 scales.*checkpoint 2",
    ),
    (packing.awq(), AWQ, without("scales"), r"has no tensor w.scales"),
    (packing.awq(), AWQ, changed("qzeros", lambda a: a[:1]), r"w.qzeros is \[1, 8\] where \[2, 8\]"),
    (packing.awq(), AWQ | {"group_size": 64}, without("nothing"), r"groups of 64 has 4 scales.*checkpoint 2"),
    (packing.pack_quantized(), COMPRESSED, without("weight_shape"), r"has no tensor w.weight_shape"),
    (
        packing.pack_quantized(),
        COMPRESSED,
        changed("weight_shape", lambda a: a * 2**40),
        r"w.weight_packed is \[64, 32\]",
    ),
    (packing.pack_quantized(), COMPRESSED, changed("weight_shape", lambda a: a * [1, 3]), r"no dense packing"),
    (
        packing.pack_quantized(size=32),
        COMPRESSED,
        changed("weight_scale", lambda a: a[:, :5]),
        r"5 scales for 256 inputs",
    ),
    (packing.pack_quantized(), COMPRESSED, changed("weight_scale", lambda a: np.repeat(a, 8, 1)), r"groups of 16"),
]


@pytest.mark.parametrize(("pack", "settings", "damage", "words"), BROKEN)
def test_files_that_contradict_themselves(
    tmp_path: Path, pack: Packer, settings: dict[str, Any], damage: Damage, words: str
) -> None:
    single(tmp_path, pack, settings)
    tensors = load_file(tmp_path / "model.safetensors") | {"w.nothing": np.zeros(1, np.float32)}
    damage(tensors)
    packing.save(tensors, tmp_path / "model.safetensors")
    with pytest.raises((CheckpointError, UnsupportedError), match=words) as caught:
        open_source(tmp_path).packed("w.weight")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_scales_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    single(tmp_path, packing.gptq(), GPTQ)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["w.scales"][0, 3] = value
    packing.save(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="scales hold NaN or infinity"):
        source = open_source(tmp_path)
        source.read_grid("w.weight", 0, 8).store(FORMATS["int4"])


def test_scales_beyond_float16(tmp_path: Path) -> None:
    """bfloat16 and float32 reach further: too large is refused, small ones are rounded by 2**-11 of themselves."""
    single(tmp_path, packing.pack_quantized(size=32, dtype=np.float32), COMPRESSED)
    source = open_source(tmp_path)
    stored = source.read_grid("w.weight", 0, len(W)).store(FORMATS["int4"])
    exact = source.read_rows("w.weight", 0, len(W))
    assert (np.abs(dequantize(*stored, FORMATS["int4"], 256) - exact) <= np.abs(exact) * 2.0**-11 * 1.001).all()
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["w.weight_scale"][0, 0] = 1e6
    packing.save(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="scales hold a value too large for float16"):
        open_source(tmp_path).read_grid("w.weight", 0, 8).store(FORMATS["int4"])


@pytest.mark.reference
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("strategy", "size"), [("group", 64), ("channel", None)])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_what_compressed_tensors_writes(tmp_path: Path, symmetric: bool, strategy: str, size: Any, bits: int) -> None:
    """Its own compressor packs, its own decompressor says what the weights are. It multiplies in bfloat16, where ours
    does in float32: within half a unit of bfloat16's last place, 2**-8 of the value."""
    torch = package("torch", "compressed-tensors as a reference")
    package("compressed_tensors", "compressed-tensors as a reference")
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor as Reference
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=size)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    made = packing.rounded(W, bits, packing.grouping(256, size or -1), symmetric, ml_dtypes.bfloat16, all_values=False)
    scale = torch.tensor(made.scale.astype(np.float32)).to(torch.bfloat16)
    state = {"weight": torch.tensor(W).to(torch.bfloat16), "weight_scale": scale}
    if not symmetric:
        state["weight_zero_point"] = torch.tensor(made.zero - 2 ** (bits - 1), dtype=torch.int8)
    packed = Reference.compress(state, scheme)
    expected = Reference.decompress(packed, scheme)["weight"].to(torch.float32).numpy()
    from safetensors.torch import save_file

    save_file({f"w.{name}": tensor.contiguous() for name, tensor in packed.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": COMPRESSED}))
    found = open_source(tmp_path).read_rows("w.weight", 0, len(W))
    assert (np.abs(found - expected) <= np.abs(expected) * 2.0**-8).all() and found.any()
