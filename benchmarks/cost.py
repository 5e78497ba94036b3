"""Cost tables of a step: each operator's time, bytes and operations, against the limits of the machine.

The kernels that one compiled step calls are recorded, with their arguments, by the virtual machine's instrument. Then
the whole sequence is called repeatedly from here, and each call is timed: the same kernels in the same order on the
same data, so with the caches as they are in a step, but without the virtual machine. The time of an empty function with
the same arguments is subtracted. Prints Markdown tables; `--write FILE` puts them between
the markers in that file.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import tvm_ffi
from bandwidth import fastest, read_bandwidth
from checkpoints import SHAPES, random_checkpoint
from samples import Figures, Job, QuietWait

from llmserve.bench.engine import EngineBench
from llmserve.bench.host import cores, load_average, prepare, provenance
from llmserve.bench.plan import CONTEXT
from llmserve.engine.run.choices import ChoiceArguments

T = TypeVar("T")
BEGIN, END = "<!-- cost -->", "<!-- /cost -->"
REPLAYS = 15
GRAIN = 1e-6  # seconds; of a call that is shorter no rate is given
PROMPT = 128


@dataclass(frozen=True)
class KernelCall:
    """One kernel call of a step: the operator's name (with its shape, if it is a matrix), what it reads and writes in
    bytes, its multiplications and additions, and what to do it again with."""

    operator: str
    nbytes: int
    flops: int
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class StepSizes:
    """The numbers that a step's bytes and operations follow from: its tokens' positions, one token's keys and values in
    a layer in bytes, and the rows of the table of embeddings."""

    positions: np.ndarray
    token_bytes: int
    vocab: int


class Trace:
    """The kernel calls of one compiled step, to be done again."""

    def __init__(self, calls: list[KernelCall], step: Callable[[], Any]) -> None:
        self.calls = calls
        self._step = step

    @classmethod
    def of_decode(cls, bench: EngineBench, batch: int, context: int) -> Trace:
        """A step in which `batch` sequences of `context` tokens compute one more each."""
        with _last_call(bench) as last:
            bench.decode(batch, context, 1)
        return cls._recorded(bench, *last)

    @classmethod
    def of_prefill(cls, bench: EngineBench, tokens: int) -> Trace:
        """A step that reads a prompt of so many tokens."""
        with _last_call(bench) as last:
            bench.prefill(tokens)
        return cls._recorded(bench, *last)

    @classmethod
    def _recorded(cls, bench: EngineBench, name: str, *arguments: Any) -> Trace:
        """Does the step once more, under the instrument. Its pages belong to nobody by now, and are still there."""
        runner: Any = bench.llm._runner
        machine = runner._vm
        interface = runner.interface
        page_bytes = int(np.prod(interface.page_shape)) * np.dtype(interface.page_dtype).itemsize
        work = StepSizes(arguments[1].numpy().copy(), page_bytes // interface.page_size, interface.vocab_size)
        calls: list[KernelCall] = []

        def note(function: Any, symbol: str, before: bool, result: Any, *its: Any) -> int:
            if before and not symbol.startswith("vm.builtin."):
                calls.append(described(symbol, function, its, work))
            return 0

        machine.set_instrument(note)
        try:
            machine[name](*arguments)
        finally:
            machine.set_instrument(None)
        return cls(calls, lambda: getattr(runner, f"_{name}")(*arguments))

    def seconds(self) -> tuple[list[float], float]:
        """Of each kernel call, less what it takes to call nothing, and of the compiled step called as a whole: medians
        of REPLAYS rounds, the two in turns."""
        idle = tvm_ffi.get_global_func("testing.nop")
        self._step()
        whole: list[float] = []
        kernels, empty = [], []
        for _ in range(REPLAYS):
            kernels.append(_stopwatch((call.function, call.arguments) for call in self.calls))
            whole += _stopwatch([(self._step, ())])
            empty.append(_stopwatch((idle, call.arguments) for call in self.calls))
        each = np.maximum(np.median(kernels, axis=0) - np.median(empty, axis=0), 1e-9)
        return [float(seconds) for seconds in each], median(whole)


def _stopwatch(calls: Iterable[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[float]:
    """Seconds of each of these calls, made one after another."""
    marks = [time.perf_counter()]
    for function, arguments in calls:
        function(*arguments)
        marks.append(time.perf_counter())
    return [float(seconds) for seconds in np.diff(marks)]


@contextmanager
def _last_call(bench: EngineBench) -> Iterator[Any]:
    """Yields what becomes, when the block ends, the name and the arguments of the last compiled step in it."""
    runner: Any = bench.llm._runner
    seen: list[Any] = []

    def noting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            seen[:] = (name.removeprefix("_"), *arguments)
            return call(*arguments)

        return step

    calls = {name: getattr(runner, name) for name in runner.COMPILED}
    for name, call in calls.items():
        setattr(runner, name, noting(name, call))
    try:
        yield seen
    finally:
        for name, call in calls.items():
            setattr(runner, name, call)


def described(symbol: str, function: Callable[..., Any], arguments: tuple[Any, ...], work: StepSizes) -> KernelCall:
    """A kernel call from its name in the compiled program and its arguments.

    Bytes are those of all tensors, but for the ones of which a step touches a part only: pages, rotary tables, and the
    table of embeddings. Operations are those of matrix products and attention; the other operators' are few.
    """
    operator, flops = re.sub(r"\d*$", "", symbol), 0
    tensors = [a for a in arguments if hasattr(a, "shape") and hasattr(a, "dtype")]
    sizes = [int(np.prod(t.shape)) * np.dtype(str(t.dtype)).itemsize for t in tensors]
    rows, nbytes = len(work.positions), sum(sizes)
    if operator == "attention":
        seen = int(work.positions.sum()) + rows  # keys that each row sees, its own included
        sequences = int((np.diff(work.positions, prepend=-2) != 1).sum())
        kept = seen if sequences == rows else int(work.positions.max()) + 1  # a prompt's rows share theirs
        nbytes, flops = sizes[0] + sizes[-1] + kept * work.token_bytes, 4 * seen * int(tensors[0].shape[1])
    elif operator == "rope_append":
        nbytes = sizes[0] + sizes[-1] + rows * work.token_bytes
    elif operator == "take_rows":
        nbytes = sizes[2] + 2 * (sizes[3] + sizes[4])  # read where they are wanted, and written
    elif operator == "sample":
        nbytes = sizes[0]  # the logits; what it works in stays in caches
    elif operator == "embedding":
        nbytes = sizes[-1] + rows * sum(sizes[1:-1]) // work.vocab
    elif "linear" in operator:
        # Norms and activations are part of the matrix that they are for; one that adds also writes the sum.
        m, k = (int(n) for n in tensors[0].shape)
        k, n = k // 2 if operator == "gated_linear" else k, int(tensors[-2 if "add" in operator else -1].shape[1])
        operator, flops = f"{operator} {n}x{k}", 2 * m * n * k
    return KernelCall(operator, nbytes, flops, function, arguments)


@dataclass(frozen=True)
class Line:
    """An operator's share of a step: calls, seconds, bytes and operations of all of them together."""

    operator: str
    calls: int
    seconds: float
    nbytes: int
    flops: int


def summed(calls: Iterable[KernelCall], seconds: Iterable[float]) -> list[Line]:
    """A line for each operator, the most expensive first."""
    lines: dict[str, Line] = {}
    for call, its in zip(calls, seconds, strict=True):
        old = lines.get(call.operator, Line(call.operator, 0, 0.0, 0, 0))
        lines[call.operator] = Line(
            call.operator, old.calls + 1, old.seconds + its, old.nbytes + call.nbytes, old.flops + call.flops
        )
    return sorted(lines.values(), key=lambda line: -line.seconds)


def table(lines: list[Line], bandwidth: float) -> str:
    """Markdown. `bandwidth` in bytes per second; a share above 100 % of it means that caches had the data."""
    whole = sum(line.seconds for line in lines)
    total = Line("all kernels", sum(x.calls for x in lines), whole, sum(x.nbytes for x in lines), _flops(lines))
    rows = [
        "| operator | calls | ms | share | MB | GB/s | of read bandwidth | GFLOP/s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for line in [*lines, total]:
        rate = line.nbytes / line.seconds
        speed = f"{line.flops / line.seconds / 1e9:.0f}" if line.flops else ""
        rates = f"{rate / 1e9:.1f} | {rate / bandwidth:.0%}" if line.seconds > GRAIN * line.calls else " | "
        rows.append(
            f"| {line.operator} | {line.calls} | {line.seconds * 1e3:.3f} | {line.seconds / whole:.1%} "
            f"| {line.nbytes / 1e6:.2f} | {rates} | {speed} |"
        )
    return "\n".join(rows)


def _flops(lines: list[Line]) -> int:
    return sum(line.flops for line in lines)


def sampling(bench: EngineBench, batch: int) -> list[Line]:
    """Choosing tokens by itself, its arguments staged each time: at a temperature, and greedily as in the step."""
    runner: Any = bench.llm._runner
    vocab = runner.interface.vocab_size
    logits = np.random.default_rng(0).standard_normal((batch, vocab), np.float32) * 3
    lines = []
    for name, row in (("temperature 0.8, top_p 0.95", (1.25, 0.95, 0.0, 0.5)), ("greedy", (0.0, 1.0, 0.0, 0.0))):
        choices = ChoiceArguments(
            np.tile(np.float32(row), (batch, 1)),
            np.tile(np.int32([0, -1, 0, 0]), (batch, 1)),
            np.zeros(1, np.int32),
            np.zeros((1, 3), np.float32),
            np.zeros((1, -(-vocab // 32)), np.int32),
        )
        seconds = fastest(partial(runner.choose_from, logits, choices), 0.2)
        lines.append(Line(f"sample, {name}", 1, seconds, logits.nbytes, 0))
    return lines


def float_peak(threads: int) -> float:
    """Operations per second of numpy's float32 matrix product: what there is to compare a prefill with."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))
    a = np.ones((1536, 1536), np.float32)
    return 2 * 1536**3 / fastest(lambda: a @ a, 1.0)


class QuietTimer:
    """Repeats each measurement until it is undisturbed, as long as the patience lasts; notes whether all were."""

    def __init__(self, patience: QuietWait) -> None:
        self._patience = patience
        self.undisturbed = True

    def __call__(self, measure: Callable[[], T]) -> T:
        results: list[T] = []

        def ask() -> Figures:
            results.append(measure())
            return {}

        self.undisturbed &= self._patience.sample(Job("cost", ask, ("self",)))[-1].undisturbed
        return results[-1]


def report(model: str, label: str, quant: str, threads: int, timer: QuietTimer) -> str:
    """The tables, below a line on the machine, the model and the load."""
    found = provenance(threads)
    bandwidth, peak = timer(lambda: read_bandwidth(threads)), timer(lambda: float_peak(threads))
    bench = EngineBench(model, quant=quant, threads=threads)
    compiled = bench.llm.compiled
    traces = [
        (f"Decode, batch 1, context {CONTEXT}", Trace.of_decode, (bench, 1, CONTEXT), 1),
        (f"Decode, batch 8, context {CONTEXT}", Trace.of_decode, (bench, 8, CONTEXT), 8),
        (f"Prefill, {PROMPT} tokens", Trace.of_prefill, (bench, PROMPT), 0),
    ]
    parts = []
    for title, make, arguments, batch in traces:
        trace: Trace = make(*arguments)
        kernels, step = timer(trace.seconds)
        lines = summed(trace.calls, kernels)
        parts.append(f"#### {title}: {step * 1e3:.2f} ms for the whole compiled step\n\n{table(lines, bandwidth)}")
        if batch:
            beside = timer(partial(sampling, bench, batch))
            extra = (f"{line.operator}: {line.seconds * 1e3:.3f} ms" for line in beside)
            parts.append(f"By itself: {'; '.join(extra)}.")
    state = "nobody else used the machine meanwhile" if timer.undisturbed else "OTHERS USED THE MACHINE MEANWHILE"
    head = (
        f"{label}, {compiled.scheme} on {compiled.platform}, {threads} threads, {found['machine']}, {found['date']}. "
        f"Read bandwidth {bandwidth / 1e9:.1f} GB/s, numpy's float32 product {peak / 1e9:.0f} GFLOP/s, same threads. "
        f"Load average {found['load_average_before']:.2f} before and {load_average():.2f} after; {state}."
    )
    return "\n\n".join([head, *parts])


def written(text: str, document: str) -> str:
    """The document with `text` between its markers. Raises ValueError where there are none."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"there is no {BEGIN} … {END} to write between")
    return f"{before}{begin}\n{text}\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-1b")
    parser.add_argument("--quant", default="q4")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait in all for a quiet machine")
    parser.add_argument("--write", type=Path, help="a document with the markers, whose tables are replaced")
    args = parser.parse_args()
    # Before TVM's pool or BLAS starts.
    os.environ["TVM_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(args.threads)
    checkpoint = random_checkpoint(args.shape)
    prepare(str(checkpoint), quant=args.quant)
    timer = QuietTimer(QuietWait(args.patience))
    text = report(str(checkpoint), f"Random {args.shape}", args.quant, args.threads, timer)
    print(text)
    if args.write and not timer.undisturbed:
        sys.exit(
            f"Others used the machine meanwhile, so {args.write} stays as it is; try again, or with more --patience."
        )
    if args.write:
        args.write.write_text(written(text, args.write.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
