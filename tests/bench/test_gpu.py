"""`make gpu` without a GPU: that every kernel has a check, that nothing which happens in a worker ends the run, and
what is said of the results. The checks themselves run where there is a device."""

from __future__ import annotations

import inspect
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import cases, oracles, prepare, report, run
from llmserve.engine.run.choices import ChoiceArguments, choose_in_numpy
from llmserve.kernels.gpu import attention, elementwise, linear, sampling
from llmserve.kernels.gpu.layout import WeightLayout
from llmserve.quant.group import ALL_FORMATS

WORKER = """
import json, os, sys, time
for name in json.loads(sys.argv[2]):
    print(json.dumps({"begin": name}), flush=True)
    if name == "crashes": os.abort()
    if name == "hangs": time.sleep(60)
    if name == "raises":
        print(json.dumps({"end": name, "ok": False, "detail": "RuntimeError: no", "figures": {}}), flush=True)
        sys.exit(1)
    print("words of a driver", flush=True)
    print(json.dumps({"end": name, "ok": name != "wrong", "detail": "", "figures": {}}), flush=True)
"""


def kernels_of(module: ModuleType) -> set[str]:
    """The functions of a module that make kernels."""
    functions = inspect.getmembers(module, inspect.isfunction)
    return {
        name
        for name, function in functions
        if function.__module__ == module.__name__
        and function.__annotations__.get("return") == "PrimFunc"
        and not name.startswith("_")
    }


def test_every_kernel_is_checked_in_every_storage() -> None:
    from benchmarks.gpu.kernels import BUILDERS

    listed = cases.cases()
    made = set().union(*map(kernels_of, (attention, elementwise, linear, sampling)))
    assert made and made <= {case["kernel"] for case in listed}
    timed = cases.timed(small=False)
    assert {case["kernel"] for case in (*listed, *timed)} == set(BUILDERS) == set(oracles.CHECKS)
    assert set(cases.STORAGES) == {*ALL_FORMATS, "float"}
    names = [case["name"] for case in (*listed, *timed)]
    assert len(names) == len(set(names)) and all(name.isidentifier() for name in names)
    json.dumps(listed)


@pytest.mark.parametrize("storage", cases.STORAGES)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_the_oracle_lays_weights_out_as_the_kernels_want_them(storage: str, dtype: str) -> None:
    case = {"storage": storage, "dtype": dtype, "n": 75, "k": 88}
    parts, _ = oracles.stored(np.random.default_rng(0), case)
    layout = WeightLayout(75, 88, oracles.storage_of(storage) or dtype, dtype)
    wanted, found = list(layout.arrange(parts).values()), oracles.arranged(case, parts)
    assert [(a.shape, str(a.dtype)) for a in found] == list(layout.params.values())
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_wrong_kernel_is_told_from_a_right_one() -> None:
    case = {"kernel": "take_rows", "dtype": "float16", "x_width": 130, "width": 130}

    def right(x: np.ndarray, residual: np.ndarray, rows: np.ndarray, *taken: np.ndarray) -> None:
        taken[0][...], taken[1][...] = x[rows], residual[rows]

    def wrong(x: np.ndarray, residual: np.ndarray, rows: np.ndarray, *taken: np.ndarray) -> None:
        taken[0][...], taken[1][...] = x[rows], residual[rows[::-1]]

    assert oracles.take_rows(case, right) <= 1 < oracles.take_rows(case, wrong)
    assert oracles.excess(np.array([np.nan]), np.array([1.0]), 1.0) == np.inf
    assert oracles.excess(np.array([1.5]), np.array([1.0]), 0.25) == 2.0


def test_another_token_is_told_from_the_right_one() -> None:
    def choose(shift: int) -> oracles.Call:
        def call(logits: np.ndarray, *arrays: np.ndarray) -> None:
            arrays[5][...] = choose_in_numpy(logits, ChoiceArguments(*arrays[:5]))
            arrays[5][:, 0] += shift

        return call

    case = {"kernel": "sample", "width": 1000, "scratch": []}
    assert oracles.sample(case, choose(0)) == 0.0 and oracles.sample(case, choose(1)) > 1


def test_rounding_once_is_allowed_and_more_is_not() -> None:
    case = {"kernel": "norm", "dtype": "float16", "x_dtype": "float16", "width": 520, "add": True, "centred": False}

    def norm(x: np.ndarray, residual: np.ndarray, weight: np.ndarray, y: np.ndarray, total: np.ndarray) -> None:
        total[...] = x.astype(np.float32) + residual
        exact = x.astype(np.float64) + residual
        y[...] = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5) * weight

    def sloppy(*arrays: np.ndarray) -> None:
        norm(*arrays)
        arrays[3][...] *= np.float16(1 + 3 * np.finfo(np.float16).eps)

    assert oracles.norm(case, norm) <= 1 < oracles.norm(case, sloppy)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One whose worker does what its items are called."""
    worker = tmp_path / "lib" / "benchmarks" / "gpu" / "worker.py"
    worker.parent.mkdir(parents=True)
    worker.write_text(WORKER, encoding="utf-8")
    return tmp_path


def test_nothing_in_a_worker_ends_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ITEM_SECONDS", 1.0)
    names = ["first", "crashes", "second", "raises", "hangs", "wrong", "last"]
    results = run.work(folder, names, time.monotonic() + 60)
    assert set(results) == set(names)
    assert {name for name, result in results.items() if result["ok"]} == {"first", "second", "last"}
    assert "ended with -6" in results["crashes"]["detail"]
    assert "no answer in 1 s" in results["hangs"]["detail"]
    assert results["raises"]["detail"] == "RuntimeError: no"


def test_what_is_left_when_time_is_up_is_left_out(folder: Path) -> None:
    results = run.work(folder, ["first", "hangs", "last"], time.monotonic() + 2)
    assert [results[name]["ok"] for name in ("first", "hangs", "last")] == [True, None, None]


def test_a_process_that_cannot_look_is_no_missing_gpu(folder: Path) -> None:
    worker = folder / "lib" / "benchmarks" / "gpu" / "worker.py"
    worker.write_text("import nothing_of_that_name", encoding="utf-8")
    assert "nothing_of_that_name" in run.probe(folder)["problem"]
    worker.write_text('print(\'{"missing": "there is no driver"}\')', encoding="utf-8")
    assert run.probe(folder) == {"missing": "there is no driver"}


def test_without_a_folder_there_is_nothing_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--folder", str(tmp_path)])
    assert run.main() == 0
    said = capsys.readouterr().out
    assert said.startswith("Nothing to run here") and said.count("\n") == 1 and "gpu-prepare" in said


@pytest.mark.parametrize(
    ("arch", "found", "fits"),
    [("sm_90", "9.0", True), ("sm_80", "8.6", True), ("sm_86", "8.0", False), ("sm_80", "9.0", False)],
)
def test_a_folder_for_another_gpu_is_told(arch: str, found: str, fits: bool) -> None:
    reason = run.misfit({"device": "cuda", "arch": arch}, {"compute_version": found})
    assert (reason is None) == fits
    assert fits or f"ARCH=sm_{found.replace('.', '')}" in str(reason)


def test_the_table_compares_with_the_best_that_was_measured(tmp_path: Path) -> None:
    step = {"ms": 4.0, "tokens_per_s": 250.0, "gbs": 1500.0, "tflops": 2.0, "kernels_ms": 3.5}
    kernel = {"name": "linear2", "calls": 32, "ms": 1.75, "share": 0.5, "gbs": 1800.0, "tflops": 3.0, "shape": [8, 4]}
    row = {"us": 20.0, "gbs": 1000.0, "tflops": 100.0}

    def result(**figures: Any) -> dict[str, Any]:
        return {"ok": True, "detail": "", "figures": figures}

    record = {
        "device": {"device_name": "Some GPU (80 GB)"},
        "torch": {"tflops": 400.0, "version": "2"},
        "manifest": {"device": "cuda", "arch": "sm_90"},
        "results": {
            "kernel linear_int4_float16_75x88": result(worst=0.5),
            "kernel linear_int3_float16_75x88": {"ok": False, "detail": "", "figures": {"worst": 7.0}},
            "model llama float32": result(prefill=1e-6, decode=2e-6, chunks=1e-6, tolerance=1e-4),
            "speed bandwidth": result(copy_gbs=1900.0, read_gbs=2000.0),
            "speed timed_linear_int4_float16_8x8_plain": result(**{"2048": row}),
            "shape q4 decode 1 128": result(**step, kernels=[kernel]),
        },
    }
    table = report.table(record)
    assert "| kernel linear | 1 | 1 | 0 | 7 of what is allowed: linear_int3_float16_75x88 |" in table
    assert "| models in float32 | 1 | 0 | 0 | 0.02 of what is allowed" in table
    assert "| int4 8x8 | 2048 | 20 | 1,000 | 50% | 100 | 25% |" in table
    assert "| q4 decode 1 128 | 4 | 250 | 1,500 | 75% |" in table
    assert "| linear2 8x4 | 32 | 1.75 | 50% | 1,800 | 3 |" in table
    path = report.write(record, tmp_path)
    assert path.name.endswith("-gpu-cuda-some-gpu-80-gb.json") and json.loads(path.read_text("utf-8")) == record


def test_machine_code_is_told_from_source() -> None:
    header = bytearray(b"\x7fELF" + bytes(60))
    header[18] = 190
    assert len(prepare.cubins(b"words" + bytes(header))) == 1
    header[18] = 62  # x86-64: the library itself
    assert prepare.cubins(bytes(header) + b"__global__ void kernel()") == []


def test_weights_are_stored_narrow_where_that_loses_nothing() -> None:
    from benchmarks.gpu.accuracy import widened

    exact = np.array([1.0, -0.5], np.float32)
    for array, dtype in (
        (exact, np.float16),
        (exact * np.float32(2.0**-40), np.uint16),
        (exact + np.float32(2.0**-20), np.float32),
    ):
        stored = prepare._narrowed(array)
        assert stored.dtype == dtype
        np.testing.assert_array_equal(widened(stored).astype(np.float32), array)
