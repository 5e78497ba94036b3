"""Conversion end to end: what comes out, what is refused, and what a full disk or a kill leaves behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llmserve.compile.random_checkpoint import TINY_LLAMA, tensor_shapes, write_random_checkpoint
from llmserve.errors import ArtifactError, CheckpointError, UnsupportedError
from llmserve.quant.group import FORMATS, INT3, INT4, INT8, GroupFormat, dequantize, quantize
from llmserve.weights import convert as convert_module
from llmserve.weights.container import SafetensorsWriter, TensorSpec
from llmserve.weights.convert import ConversionPlan, ParamPlan, convert
from llmserve.weights.load import PARAMS_FILE, load_params
from llmserve.weights.read import SINGLE, Checkpoint

H, F, V = 72, 104, 300
CONFIG = TINY_LLAMA | {"hidden_size": H, "intermediate_size": F, "num_hidden_layers": 1, "vocab_size": V}


def plan_of(storage: Any) -> ConversionPlan:
    """Every tensor of CONFIG: norms as float32, gate and up fused, matrices in `storage`."""
    shapes = tensor_shapes(CONFIG)
    up = "model.layers.0.mlp.{}_proj.weight"
    params = [ParamPlan(up.format("gate_up"), (2 * F, H), (up.format("gate"), up.format("up")), storage)]
    for name, shape in shapes.items():
        if name not in params[0].sources:
            params.append(ParamPlan(name, shape, (name,), "float32" if len(shape) == 1 else storage))
    return ConversionPlan(tuple(params), {"scheme": "test"})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_random_checkpoint(tmp_path / "checkpoint", CONFIG, tokenizer=None)


def one(path: Path, storage: Any, array: np.ndarray, **changes: Any) -> ConversionPlan:
    """A checkpoint of the single tensor `w.weight` and its plan."""
    path.mkdir(exist_ok=True)
    save_file({"w.weight": array}, path / SINGLE)
    values = {"name": "w.weight", "shape": array.shape, "sources": ("w.weight",), "storage": storage}
    return ConversionPlan((ParamPlan(**(values | changes)),))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_quantized(tmp_path: Path, fmt: GroupFormat, dtype: Any) -> None:
    path = write_random_checkpoint(tmp_path / "checkpoint", CONFIG, dtype=dtype, tokenizer=None)
    calls: list[tuple[str, int, int]] = []
    plan = plan_of(fmt)
    report = convert(path, tmp_path / "out", plan, lambda *call: calls.append(call))
    checkpoint, params = Checkpoint.open(path), load_params(tmp_path / "out")
    assert set(params) == {spec.name for param in plan.params for spec in param.outputs}
    for param in plan.params:
        w = np.concatenate([checkpoint.read(name) for name in param.sources])
        if param.storage == "float32":
            np.testing.assert_array_equal(params[param.name], w.astype(np.float32))
        else:
            base = param.name.removesuffix(".weight")
            q_weight, q_scale = quantize(w, fmt)
            np.testing.assert_array_equal(params[base + ".q_weight"], q_weight)
            np.testing.assert_array_equal(params[base + ".q_scale"], q_scale)
    size = (tmp_path / "out" / PARAMS_FILE).stat().st_size
    assert [name for name, _, _ in calls] == [param.name for param in plan.params]
    assert calls[-1][1] == calls[-1][2] == report.bytes_in
    assert report.bytes_out == size and report.tensors == len(params) and report.peak_rss > 1e6
    assert report.parameters == sum(int(np.prod(shape)) for shape in tensor_shapes(CONFIG).values())
    assert "bits per weight" in str(report) and report.bits_per_weight == 8 * size / report.parameters


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16"])
def test_unquantized(tmp_path: Path, source: Path, storage: Any) -> None:
    plan = plan_of(storage)
    convert(source, tmp_path / "out", plan)
    checkpoint, params = Checkpoint.open(source), load_params(tmp_path / "out")
    for param in plan.params:
        w = np.concatenate([checkpoint.read(name) for name in param.sources])
        assert params[param.name].dtype == param.outputs[0].dtype
        np.testing.assert_array_equal(params[param.name], w.astype(params[param.name].dtype))


def test_shards_do_not_show(tmp_path: Path, source: Path) -> None:
    sharded = write_random_checkpoint(tmp_path / "sharded", CONFIG, tokenizer=None, shards=4)
    for path, out in ((source, "a"), (sharded, "b")):
        convert(path, tmp_path / out, plan_of(INT4))
    assert (tmp_path / "a" / PARAMS_FILE).read_bytes() == (tmp_path / "b" / PARAMS_FILE).read_bytes()


def test_blocks_do_not_show(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(source, tmp_path / "a", plan_of(INT3))
    monkeypatch.setattr(convert_module, "_BLOCK_BYTES", 500)
    convert(source, tmp_path / "b", plan_of(INT3))
    assert (tmp_path / "a" / PARAMS_FILE).read_bytes() == (tmp_path / "b" / PARAMS_FILE).read_bytes()


def test_experts_stack_into_a_cube(tmp_path: Path) -> None:
    experts = {f"{e}.w": np.random.default_rng(e).standard_normal((6, 64)).astype(np.float32) for e in range(3)}
    save_file(experts, tmp_path / SINGLE)
    plan = ConversionPlan((ParamPlan("experts.weight", (3, 6, 64), tuple(experts), INT4),))
    convert(tmp_path, tmp_path / "out", plan)
    params = load_params(tmp_path / "out")
    assert params["experts.q_weight"].shape == (3, 6, 8) and params["experts.q_scale"].shape == (3, 6, 2)
    back = dequantize(params["experts.q_weight"][2], params["experts.q_scale"][2], INT4, 64)
    assert np.abs(back - experts["2.w"]).max() < 0.5


def test_the_reference_package_reads_the_result(tmp_path: Path, source: Path) -> None:
    convert(source, tmp_path / "out", plan_of(INT4))
    ours, reference = load_params(tmp_path / "out"), load_file(tmp_path / "out" / PARAMS_FILE)
    assert ours.keys() == reference.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, reference[name])
        assert array.ctypes.data % 64 == 0 and array.flags.c_contiguous


@pytest.mark.parametrize("resident", [False, True])
def test_loaded_params_are_private(tmp_path: Path, source: Path, resident: bool) -> None:
    convert(source, tmp_path / "out", plan_of("bfloat16"))
    before = (tmp_path / "out" / PARAMS_FILE).read_bytes()
    params = load_params(tmp_path / "out", resident=resident)
    for name, array in load_file(tmp_path / "out" / PARAMS_FILE).items():
        np.testing.assert_array_equal(params[name], array)
    assert all(array.flags.writeable for array in params.values())
    params["lm_head.weight"][:] = 0
    np.from_dlpack(params["model.norm.weight"])[:] = 7
    del params
    assert (tmp_path / "out" / PARAMS_FILE).read_bytes() == before


def test_params_that_are_missing_or_cut_short(tmp_path: Path, source: Path) -> None:
    for resident in (False, True):
        with pytest.raises(ArtifactError, match="no usable params"):
            load_params(tmp_path, resident=resident)
    convert(source, tmp_path / "out", plan_of(INT8))
    with (tmp_path / "out" / PARAMS_FILE).open("r+b") as file:
        file.truncate(10_000)
    with pytest.raises(ArtifactError, match=r"no usable params.*cut short"):
        load_params(tmp_path / "out")


@pytest.mark.parametrize("shape", [(3, 65), (4, 64), (2, 64), (192,), (3, 1, 64)])
def test_a_shape_that_config_contradicts(tmp_path: Path, shape: tuple[int, ...]) -> None:
    plan = one(tmp_path / "c", INT4, np.ones((3, 64), np.float32), shape=shape)
    with pytest.raises(CheckpointError) as caught:
        convert(tmp_path / "c", tmp_path / "out", plan)
    assert f"contradicts config.json: found w.weight [3, 64], but w.weight needs {list(shape)}." in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16", INT4])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_by_name(tmp_path: Path, storage: Any, dtype: Any, value: float) -> None:
    w = np.ones((9, 64), dtype)
    w[8, 63] = value
    plan = one(tmp_path / "c", storage, w)
    with pytest.raises(CheckpointError, match=r"model\.safetensors, w\.weight: The weights hold NaN or infinity\.$"):
        convert(tmp_path / "c", tmp_path / "out", plan)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("storage", ["float16", INT4])
def test_values_that_the_storage_cannot_hold(tmp_path: Path, storage: Any) -> None:
    plan = one(tmp_path / "c", storage, np.full((2, 64), 1e9, np.float32))
    with pytest.raises(
        CheckpointError, match=r"w\.weight: The weights hold a (value|weight) too large for a? ?float16"
    ):
        convert(tmp_path / "c", tmp_path / "out", plan)


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.float8_e4m3fn, np.float64])
def test_other_dtypes_are_unsupported(tmp_path: Path, dtype: Any) -> None:
    plan = one(tmp_path / "c", INT4, np.ones((2, 64), np.float32))
    w = np.ones((2, 64), dtype)
    with SafetensorsWriter(tmp_path / "c" / SINGLE, [TensorSpec("w.weight", w.dtype, w.shape)]) as writer:
        writer.write("w.weight", w)
    with pytest.raises(UnsupportedError, match=rf"w\.weight is {w.dtype}, and only float32"):
        convert(tmp_path / "c", tmp_path / "out", plan)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    write, room = SafetensorsWriter.write, [5]

    def full(self: SafetensorsWriter, *args: Any) -> None:
        room[0] -= 1
        if room[0] == 0:
            raise OSError(code, os.strerror(code))
        write(self, *args)

    monkeypatch.setattr(SafetensorsWriter, "write", full)
    with pytest.raises(ArtifactError, match=r"could not be written.*free some space") as caught:
        convert(source, tmp_path / "out", plan_of(INT4))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_a_disk_known_to_be_too_small(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=5)
    monkeypatch.setattr("llmserve.disk.shutil.disk_usage", lambda path: usage)
    with pytest.raises(ArtifactError, match=r"needs \d+ MB and its disk has 0 MB"):
        convert(source, tmp_path / "out", plan_of(INT4))
    assert not list((tmp_path / "out").iterdir())


SCRIPT = """
import sys, time
from pathlib import Path
from tests.weights.test_convert import INT4, plan_of
from llmserve.artifact import obtain
from llmserve.weights.convert import convert

def progress(name, done, total):
    if "{slow}" and done > total / 3:
        Path(sys.argv[2]).touch()
        time.sleep(60)

def make(out):
    convert(sys.argv[1], out, plan_of(INT4), progress)

print(obtain("params", {{"model": "demo"}}, make))
"""


def run(source: Path, flag: Path, cache: Path, *, slow: bool = False, limit: int = 0) -> subprocess.Popen[str]:
    script = SCRIPT.format(slow="slow" if slow else "")
    if limit:
        script = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n" + script
    environment = os.environ | {"LLMSERVE_CACHE": str(cache), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script, str(source), str(flag)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_conversion_leaves_nothing_that_is_trusted(tmp_path: Path, source: Path) -> None:
    cache = tmp_path / "cache"
    process = run(source, tmp_path / "flag", cache, slow=True)
    for _ in range(600):
        if (tmp_path / "flag").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = [path for path in (cache / "params").iterdir() if path.is_dir()]
    assert len(left) == 1 and left[0].name.startswith(".demo-") and (left[0] / f"{PARAMS_FILE}.partial").exists()

    again = run(source, tmp_path / "flag", cache)
    printed, complaint = again.communicate()
    assert again.returncode == 0, complaint
    assert [path for path in (cache / "params").iterdir() if path.is_dir()] == [Path(printed.strip())]
    convert(source, tmp_path / "reference", plan_of(INT4))
    assert (Path(printed.strip()) / PARAMS_FILE).read_bytes() == (tmp_path / "reference" / PARAMS_FILE).read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
def test_a_file_that_may_not_grow(tmp_path: Path, source: Path) -> None:
    process = run(source, tmp_path / "flag", tmp_path / "cache", limit=20_000)
    _, complaint = process.communicate()
    assert "ArtifactError" in complaint.splitlines()[-1] and "File too large" in complaint.splitlines()[-1]
    assert not [path for path in (tmp_path / "cache" / "params").iterdir() if path.is_dir()]
