"""A recorded function does what the virtual machine does, bit for bit, with what its arguments hold by then."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax
from tvm.runtime.vm import VirtualMachine

from llmserve.backends.replay import CALLS_BEFORE_RECORDING, MAX_RECORDINGS, Replayed, _Recording
from llmserve.compile.host import link
from llmserve.compile.pipeline import compile_module
from llmserve.kernels.base import NormKind
from llmserve.kernels.cpu.elementwise import prologue_alone
from llmserve.kernels.cpu.prologue import NormPrologue

from ..kernels.harness import NATIVE, target

WIDTH, DEPTH, LARGEST = 32, 5, 64


@dataclass
class Program:
    machine: Any
    library: str

    def replayed(self, name: str = "main") -> Replayed:
        return Replayed(self.machine, name, self.library)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """main: (x, (weight,), out) → out, in which the norm of the last of DEPTH sums is left. fresh: the same without
    `out`, in memory of its own."""
    builder = relax.BlockBuilder()
    adding = builder.add_func(
        prologue_alone("add", WIDTH, NATIVE, NormPrologue(NormKind(1e-5), True)).without_attr("global_symbol"), "add"
    )
    last = builder.add_func(
        prologue_alone("last", WIDTH, NATIVE, NormPrologue(NormKind(1e-5), False)).without_attr("global_symbol"), "last"
    )
    for name in ("main", "fresh"):
        row = relax.TensorType((tvm.tirx.Var("n", "int64"), WIDTH), "float32")
        x, out = relax.Var("x", row), relax.Var("out", row)
        weights = relax.Var("weights", relax.TupleType([relax.TensorType((WIDTH,), "float32")]))
        with builder.function(name, [x, weights] + [out] * (name == "main")):
            with builder.dataflow():
                weight = builder.emit(relax.TupleGetItem(weights, 0))
                a, r = x, x
                for _ in range(DEPTH):
                    both = builder.emit(relax.call_tir(adding, (a, r, weight), [row, row]))
                    a, r = builder.emit(relax.TupleGetItem(both, 0)), builder.emit(relax.TupleGetItem(both, 1))
                if name == "main":
                    end = relax.call_tir_inplace(last, (r, weight, out), [2], row)
                else:
                    end = relax.call_tir(last, (r, weight), row)
                result = builder.emit_output(builder.emit(end))
            builder.emit_func_output(result)
    executable = compile_module(builder.get(), target(NATIVE).export(), {"n": LARGEST})
    library = str(tmp_path_factory.mktemp("replay") / "model.so")
    executable.export_library(library, fcompile=link)
    return Program(VirtualMachine(tvm.runtime.load_module(library), tvm.cpu()), library)


@dataclass
class Arguments:
    x: np.ndarray
    out: np.ndarray
    tensors: tuple[Any, Any, Any]

    def fill(self, seed: int) -> None:
        self.x[:] = np.random.default_rng(seed).standard_normal(self.x.shape, np.float32)
        self.out[:] = np.nan


@pytest.fixture
def arguments() -> Callable[[int], Arguments]:
    def make(rows: int) -> Arguments:
        memory = np.zeros((2, LARGEST, WIDTH + 16), np.float32).reshape(2, -1)
        start = -memory.ctypes.data % 64 // 4
        x, out = (memory[i, start : start + rows * WIDTH].reshape(rows, WIDTH) for i in range(2))
        weight = tvm.runtime.tensor(np.linspace(0.5, 1.5, WIDTH, dtype=np.float32))
        return Arguments(x, out, (tvm.runtime.from_dlpack(x), tvm_ffi.convert([weight]), tvm.runtime.from_dlpack(out)))

    return make


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What each replay in this test says."""
    found: list[bool] = []
    run = _Recording.run
    monkeypatch.setattr(_Recording, "run", lambda self: found.append(run(self)) or found[-1])
    return found


def test_the_same_bits_as_the_machine(program: Program, arguments: Callable[[int], Arguments], calls: list[bool]):
    replayed, machine = program.replayed(), program.machine["main"]
    for rows in (1, 7, 1):
        given = arguments(rows)
        for seed in range(CALLS_BEFORE_RECORDING + 3):
            given.fill(seed)
            assert replayed(*given.tensors).same_as(given.tensors[2])
            found = given.out.copy()
            given.out[:] = np.nan
            machine(*given.tensors)
            np.testing.assert_array_equal(found, given.out)
    assert calls == [True] * 9


def test_those_that_take_turns_each_have_their_own(
    program: Program, arguments: Callable[[int], Arguments], calls: list[bool]
):
    replayed = program.replayed()
    several = [arguments(1 + i) for i in range(3)]
    for given in several:
        for _ in range(CALLS_BEFORE_RECORDING):
            replayed(*given.tensors)
    for seed in range(2):
        for given in several:
            given.fill(seed)
            replayed(*given.tensors)
            found = given.out.copy()
            program.machine["main"](*given.tensors)
            np.testing.assert_array_equal(found, given.out)
    assert calls == [True] * 6


def test_few_are_kept_and_only_of_what_comes_in_a_row(
    program: Program, arguments: Callable[[int], Arguments], calls: list[bool]
):
    replayed = program.replayed()
    several = [arguments(1 + i) for i in range(MAX_RECORDINGS + 1)]
    for _ in range(CALLS_BEFORE_RECORDING):
        for given in several:
            replayed(*given.tensors)
    assert not replayed._recordings
    for given in several:
        for _ in range(CALLS_BEFORE_RECORDING + 1):
            replayed(*given.tensors)
    assert len(replayed._recordings) == MAX_RECORDINGS and len(calls) == len(several)
    replayed(*several[1].tensors)
    assert len(calls) == len(several) + 1
    replayed(*several[0].tensors)
    assert len(calls) == len(several) + 1, "the first of them went"


def test_recordings_that_work_in_much_memory_are_fewer(
    program: Program, arguments: Callable[[int], Arguments], monkeypatch: pytest.MonkeyPatch
):
    replayed = program.replayed()

    def record(rows: int) -> _Recording:
        given = arguments(rows)
        for _ in range(CALLS_BEFORE_RECORDING):
            replayed(*given.tensors)
        return replayed._recordings[tuple(map(id, given.tensors))]

    first, second = record(3), record(4)
    assert 0 < first.nbytes < second.nbytes and len(replayed._recordings) == 2
    monkeypatch.setattr("llmserve.backends.replay.MAX_WORKSPACE_BYTES", second.nbytes - 1)
    third = record(5)  # which has no room either, but is in use
    assert list(replayed._recordings.values()) == [third]


def test_what_returns_new_memory_stays_with_the_machine(program: Program, arguments: Callable[[int], Arguments]):
    replayed, given = program.replayed("fresh"), arguments(3)
    given.fill(0)
    results = [replayed(*given.tensors[:2]) for _ in range(CALLS_BEFORE_RECORDING + 2)]
    assert not replayed._recordings
    assert len({r.data_ptr() for r in results}) == len(results)
    np.testing.assert_array_equal(results[0].numpy(), results[-1].numpy())


def test_the_machine_says_what_is_wrong(program: Program, arguments: Callable[[int], Arguments]):
    replayed = program.replayed()
    wrong = (arguments(3).tensors[0], *arguments(2).tensors[1:])
    for _ in range(CALLS_BEFORE_RECORDING + 1):
        with pytest.raises((ValueError, RuntimeError), match="shape"):
            replayed(*wrong)
    given = arguments(2)
    given.fill(1)
    replayed(*given.tensors)
    assert np.isfinite(given.out).all()


def test_nothing_is_called_after_a_kernel_that_fails(program: Program):
    kernel = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p)
    seen: list[int] = []
    good, bad = kernel(lambda *_: seen.append(0) or 0), kernel(lambda *_: seen.append(1) or -1)
    library = ctypes.CDLL(program.library)
    assert _Recording(library, (), [(good, []), (good, [])], None, 0).run()
    assert not _Recording(library, (), [(good, []), (bad, []), (good, [])], None, 0).run()
    assert seen == [0, 0, 0, 1]
