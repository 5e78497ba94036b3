"""A step's arrays against the obvious way of making them, and decoding on against starting anew."""

from __future__ import annotations

import random

import numpy as np
import pytest
import tvm

from llmserve.engine import SamplingParams
from llmserve.engine.plan.scheduler import ScheduledSequence
from llmserve.engine.plan.sequence import Request, Sequence
from llmserve.engine.run.choices import ChoiceArguments
from llmserve.engine.run.device_memory import ALIGNMENT, DeviceMemory, HostMemory, Memory, RowBuffer, Staging
from llmserve.engine.run.step_arrays import INDICES, StepArrays

PAGE, TILE, WORDS = 4, 3, 2


def memories() -> list[Memory]:
    """Both kinds; a CPU passes for a device with memory of its own, which it only shares by address."""
    return [HostMemory(), DeviceMemory(tvm.cpu())]


@pytest.fixture(params=[0, 1], ids=["host", "device"])
def memory(request: pytest.FixtureRequest) -> Memory:
    return memories()[request.param]


def choices(rng: np.random.Generator, rows: int, adjustments: int = 1, masks: int = 1) -> ChoiceArguments:
    return ChoiceArguments(
        rng.random((rows, 4), np.float32),
        rng.integers(0, 9, (rows, 4)).astype(np.int32),
        rng.integers(0, 9, adjustments).astype(np.int32),
        rng.random((adjustments, 3), np.float32),
        rng.integers(0, 9, (masks, WORDS)).astype(np.int32),
    )


def sequence(length: int, computed: int, pages: list[int]) -> Sequence:
    (it,) = Request("r", [random.randrange(99) for _ in range(length)], SamplingParams(), 0).sequences
    it.num_computed_tokens, it.pages = computed, pages
    return it


def check(tensors: list[np.ndarray], plan: list[ScheduledSequence], its: ChoiceArguments | None) -> None:
    """The arrays say of every token what its sequence says."""
    tokens, positions, slots, tile_seq, tile_row, tile_rows, indptr, values, rows, *others = tensors
    row, last, tiles = 0, [], []
    for number, item in enumerate(plan):
        s, table = item.sequence, values[indptr[number] : indptr[number + 1]]
        for at in range(s.num_computed_tokens, s.num_computed_tokens + item.num_tokens):
            assert (tokens[row], positions[row]) == (s.token_ids[at], at)
            assert slots[row] == s.pages[at // PAGE] * PAGE + at % PAGE
            assert table[at // PAGE] == s.pages[at // PAGE]
            row += 1
        needed = -(-positions[row - 1] // PAGE) if positions[row - 1] % PAGE else positions[row - 1] // PAGE + 1
        assert table[:needed].tolist() == s.pages[:needed]
        begin = row - item.num_tokens
        tiles += [(number, begin + t, min(TILE, item.num_tokens - t)) for t in range(0, item.num_tokens, TILE)]
        last += [row - 1] * item.samples
    assert row == len(tokens) == len(positions) == len(slots)
    assert list(zip(tile_seq, tile_row, tile_rows, strict=True)) == tiles
    assert rows.tolist() == (last or [0])
    if its is not None:
        for ours, theirs in zip(others, (its.knobs, its.limits, its.ids, its.amounts, its.masks), strict=True):
            np.testing.assert_array_equal(ours[: len(theirs)], theirs)


def test_any_steps_in_any_order(memory: Memory) -> None:
    """Chunks and decodes, growth, preemption, other batches and other choices between: never a stale number."""
    rng, numbers = random.Random(0), np.random.default_rng(0)
    arrays = StepArrays(Staging(memory, ALIGNMENT), PAGE, TILE)
    free = iter(range(10**6))
    running = [sequence(rng.randint(1, 30), 0, []) for _ in range(5)]
    its = choices(numbers, len(running))
    layouts = set()
    for _ in range(400):
        if rng.random() < 0.05:  # one starts over
            victim = rng.choice(running)
            victim.pages, victim.num_computed_tokens = [], 0
        if rng.random() < 0.05:
            running[rng.randrange(len(running))] = sequence(rng.randint(1, 30), 0, [])
        if rng.random() < 0.1:
            rng.shuffle(running)
        batch = running if rng.random() < 0.9 else running[: rng.randint(1, len(running))]
        plan = []
        for s in batch:
            left = len(s.token_ids) - s.num_computed_tokens
            plan.append(ScheduledSequence(s, left if rng.random() < 0.8 else rng.randint(1, left)))
            needed = -(-(s.num_computed_tokens + plan[-1].num_tokens) // PAGE)
            s.pages += (next(free) for _ in range(needed - len(s.pages)))
        sampling = sum(item.samples for item in plan)
        if len(its.knobs) != sampling or rng.random() < 0.2:
            its = choices(numbers, sampling, rng.choice([1, 1, 5, 700]), rng.choice([1, 1, 3]))
        its.knobs[:] = numbers.random(its.knobs.shape)
        asked = its if sampling and rng.random() < 0.95 else None
        layout = arrays.of_plan(plan, None, asked)
        layouts.add(id(layout))
        assert len(layout.tensors) == INDICES + (0 if asked is None else 5)
        check([tensor.numpy() for tensor in layout.tensors], plan, asked)
        if rng.random() < 0.05:
            other = arrays.of_choices(choices(numbers, 2))
            assert [tensor.shape for tensor in other.tensors] == [(2, 4), (2, 4), (1,), (1, 3), (1, WORDS)]
        for item in plan:
            if item.samples:
                item.sequence.token_ids.append(rng.randrange(99))
            item.sequence.num_computed_tokens += item.num_tokens
    assert len(layouts) < 300  # decoding on keeps its layout


def test_decoding_on_writes_only_what_a_token_changes(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = StepArrays(Staging(memory), PAGE, TILE)
    made, free = [], iter(range(1000))
    monkeypatch.setattr(arrays, "_flattened", lambda plan, f=arrays._flattened: made.append(1) or f(plan))
    its = choices(np.random.default_rng(0), 3)
    batch = [sequence(length, length - 1, [next(free) for _ in range(-(-length // PAGE))]) for length in (3, 8, 13)]
    for _ in range(64):
        plan = [ScheduledSequence(s, 1) for s in batch]
        check([tensor.numpy() for tensor in arrays.of_plan(plan, None, its).tensors], plan, its)
        for s in batch:
            s.num_computed_tokens += 1
            s.token_ids.append(1)
            s.pages += [next(free)] * (len(s.token_ids) > len(s.pages) * PAGE)
    # A table has room for 8 pages, and the three fill theirs at different times.
    assert len(made) <= 1 + 3 * (64 // PAGE) // 8 + 1


def test_views_begin_where_devices_want_them(memory: Memory) -> None:
    layout = Staging(memory).arrays((((3,), "int32"), ((5, 2), "float32"), ((1,), "int32")))
    for number, array in enumerate(layout.arrays):
        array[...] = number + 1
        assert array.ctypes.data % ALIGNMENT == 0
    layout.send()
    assert [tensor.numpy().tolist() for tensor in layout.tensors] == [[1] * 3, [[2.0] * 2] * 5, [3]]


def test_compiled_code_takes_views(memory: Memory) -> None:
    """It refuses tensors with an offset, which is what TVM's own views have."""
    from llmserve.kernels.tir import T, build, put, sized

    def body() -> None:
        n = T.int64()
        x, y = sized("x", (n,), "int32"), sized("y", (n,), "int32")
        with T.serial(n) as i:
            put(y, x[i] + 1, i)

    function = tvm.compile(build("increment", body), target="llvm")
    layout = Staging(memory).arrays((((70,), "int32"), ((5,), "int32")))
    layout.arrays[1][:] = range(5)
    layout.send()
    out = RowBuffer(memory, (5, 1), "int32")
    function(layout.tensors[1], memory.view(out._buffer, 0, (5,), "int32"))
    assert out.read(5)[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert out.read_row(3).tolist() == [4] and out.first(2).shape == (2, 1)


@pytest.mark.parametrize("shape", [(3,), (7, 5), (2, 3, 4)])
def test_arrays_arrive_in_parts(memory: Memory, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmserve.engine.run.device_memory.CHUNK_BYTES", 16)
    for dtype in ("float32", "float16", "uint8"):
        array = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
        np.testing.assert_array_equal(memory.put(array).numpy(), array)
        assert not memory.tensor(shape, dtype).numpy().any()
