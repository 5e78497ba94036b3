"""The cost model on a tiny model: all kernels of a step, doing what the step does, with sizes that can be checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cost
import numpy as np
import pytest
import samples
from cost import BEGIN, END, KernelCall, Line, StepSizes, Trace, described, summed, table, written
from samples import QuietWait

from llmserve.bench.engine import EngineBench
from llmserve.compile.random_checkpoint import TINY_LLAMA, write_random_checkpoint

LAYERS = TINY_LLAMA["num_hidden_layers"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> EngineBench:
    return EngineBench(str(write_random_checkpoint(tmp_path_factory.mktemp("cost") / "tiny", TINY_LLAMA)))


@pytest.mark.parametrize(("batch", "context"), [(1, 40), (3, 20)])
def test_the_recorded_kernels_are_the_whole_step(bench: EngineBench, batch: int, context: int) -> None:
    runner: Any = bench.llm._runner
    trace = Trace.of_decode(bench, batch, context)
    logits = runner._logits.read(batch)  # which is the memory that kernels write
    expected = logits.copy()
    logits[:] = np.nan
    for call in trace.calls:
        call.function(*call.arguments)
    np.testing.assert_array_equal(logits, expected)


def test_operators_and_sizes(bench: EngineBench) -> None:
    trace = Trace.of_decode(bench, 2, 24)
    kernels, step = trace.seconds()
    lines = {line.operator: line for line in summed(trace.calls, kernels)}
    assert lines["attention"].calls == lines["rope_append"].calls == LAYERS
    hidden, vocab = TINY_LLAMA["hidden_size"], TINY_LLAMA["vocab_size"]
    head = lines[f"add_norm_linear {vocab}x{hidden}"]
    assert (head.calls, head.flops) == (1, 2 * 2 * vocab * hidden)
    # 4 bits a weight with a scale of 16 bits for each 32, the activations, what is added to them, both, and the logits.
    assert head.nbytes == pytest.approx(vocab * hidden * 4.5 / 8 + 2 * 4 * (vocab + 3 * hidden), rel=0.01)
    inner = TINY_LLAMA["intermediate_size"]
    for name, n, k in (("add_norm_linear", 2 * inner, hidden), ("gated_linear", hidden, inner)):
        line = lines[f"{name} {n}x{k}"]
        assert (line.calls, line.flops) == (LAYERS, LAYERS * 2 * 2 * n * k)
    heads, dim = TINY_LLAMA["num_attention_heads"], TINY_LLAMA["head_dim"]
    assert lines["attention"].flops == LAYERS * 4 * 2 * 25 * heads * dim
    assert all(line.seconds > 0 and line.nbytes > 0 for line in lines.values())
    assert step > 0


def test_a_prompts_rows_share_the_keys_that_they_read() -> None:
    q = np.zeros((16, 64), np.float32)
    work = StepSizes(np.arange(16), token_bytes=256, vocab=100)
    call = described("attention3", print, (q, q), work)
    assert call.operator == "attention"
    assert call.nbytes == 2 * q.nbytes + 16 * 256
    assert call.flops == 4 * 64 * sum(range(1, 17))


def test_decoding_rows_each_read_their_own() -> None:
    q = np.zeros((2, 64), np.float32)
    call = described("attention", print, (q, q), StepSizes(np.array([9, 9]), 256, 100))
    assert call.nbytes == 2 * q.nbytes + 20 * 256


def test_lines_add_up() -> None:
    calls = [KernelCall("a", 10, 4, print, ()), KernelCall("b", 5, 0, print, ()), KernelCall("a", 10, 4, print, ())]
    assert summed(calls, [1.0, 3.0, 1.0]) == [Line("b", 1, 3.0, 5, 0), Line("a", 2, 2.0, 20, 8)]


def test_the_table_says_shares_and_rates() -> None:
    text = table([Line("linear 8x8", 2, 0.003, 6_000_000, 9_000_000), Line("norm", 1, 0.001, 1_000_000, 0)], 4e9)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert rows[2] == ["linear 8x8", "2", "3.000", "75.0%", "6.00", "2.0", "50%", "3"]
    assert rows[-1][:5] == ["all kernels", "3", "4.000", "100.0%", "7.00"]


def test_sampling_is_measured_beside_the_step(bench: EngineBench) -> None:
    assert all(line.seconds > 0 for line in cost.sampling(bench, 2))


def test_a_documents_table_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    document = f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n"
    assert written("new", document) == f"before\n\n{BEGIN}\nnew\n{END}\n\nafter\n"
    with pytest.raises(ValueError, match="no <!-- cost -->"):
        written("new", "nothing here")


def test_what_was_disturbed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Crowd:
        def __init__(self, *pids: int | str) -> None: ...

        def cores(self) -> float:
            return 1e9  # so many that the shortest sample has to notice

    assert cost.QuietTimer(QuietWait(0))(lambda: 7) == 7
    monkeypatch.setattr(samples, "Bystanders", Crowd)
    timer = cost.QuietTimer(QuietWait(0))
    assert timer(lambda: 7) == 7
    monkeypatch.undo()
    timer(lambda: 8)
    assert not timer.undisturbed, "one measurement in company is enough"
