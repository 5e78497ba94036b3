"""Single kernels at the shapes of a 1B llama: milliseconds, GB/s of weights (or pages) read, GFLOP/s.

Every kernel is compiled as models compile it, through the kernel set's operators and the product's pipeline. Weights
are rotated through more memory than caches hold, as in a model. The first line is the machine's read bandwidth.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any, cast

import numpy as np
import tvm
from bandwidth import fastest, read_bandwidth
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor
from tvm.runtime.vm import VirtualMachine

from llmserve.bench.host import Bystanders, cores, load_average, provenance
from llmserve.compile.build import Build
from llmserve.compile.pipeline import pipeline
from llmserve.kernels.base import AttentionShape, Batch, active, using
from llmserve.models.parts import Linear
from llmserve.quant import scheme

MATMULS = {
    "qkv": (3072, 2048),
    "o": (2048, 2048),
    "gate_up": (16384, 2048),
    "down": (2048, 8192),
    "head": (128256, 2048),
}
ROWS = (1, 4, 8, 128)
ATTENTION = AttentionShape(heads=32, kv_heads=8, head_dim=64, page_size=16)
CONTEXTS = (1024, 4096)
BEYOND_CACHES = 128 << 20  # bytes
BUDGET = 0.3  # seconds per figure


@dataclass(frozen=True)
class KernelTiming:
    kernel: str
    seconds: float
    nbytes: int
    flops: int

    def __str__(self) -> str:
        rates = f"{self.nbytes / self.seconds / 1e9:>8.1f} GB/s{self.flops / self.seconds / 1e9:>9.1f} GFLOP/s"
        return f"{self.kernel:<28}{self.seconds * 1e3:>10.3f} ms{rates}"


def fastest_of(call: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], budget: float = BUDGET) -> float:
    """Seconds of the fastest call, the arguments in turns: on a machine with other work on it, the one that was
    disturbed least."""
    turns = cycle(arguments)
    return fastest(lambda: call(*next(turns)), budget)


def build(module: nn.Module, spec: dict[str, Any], target: Any) -> Callable[..., Any]:
    """The module's `forward` as a callable over tensors, its inputs first and its parameters after them."""
    traced, _ = module.export_tvm({"forward": spec})
    compiled = tvm.compile(traced, tvm.target.Target(dict(target)), relax_pipeline=pipeline({"m": max(ROWS)}))
    machine = VirtualMachine(compiled, tvm.cpu())
    return cast(Callable[..., Any], machine["forward"])


def random_tensor(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    if dtype == "uint8":
        return tvm.runtime.tensor(rng.integers(0, 256, shape, np.uint8))
    return tvm.runtime.tensor((rng.random(shape, np.float32) / 64).astype(dtype))


def linears(quant: str, arch: str | None, names: list[str]) -> Iterator[KernelTiming]:
    product = Build(None, arch=arch)  # the model does not matter, what it is built with does
    kernels, target = product.kernels, product.target
    storage = scheme.choose(quant, kernels.compute_dtype).storage
    rng = np.random.default_rng(0)
    for name in names:
        n, k = MATMULS[name]
        with using(kernels):
            module = Linear(n, k)
            module.bind(kernels.weight(n, k, storage, False))
            call = build(module, {"x": nn.spec.Tensor(["m", k], "float32")}, target)
        shapes = [(tuple(map(int, p.shape)), str(p.dtype)) for _, p in module.named_parameters()]
        nbytes = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in shapes)
        copies = [[random_tensor(rng, *s) for s in shapes] for _ in range(-(-BEYOND_CACHES // nbytes))]
        for m in ROWS:
            x = tvm.runtime.tensor(rng.standard_normal((m, k), np.float32))
            seconds = fastest_of(call, [(x, *weights) for weights in copies])
            yield KernelTiming(f"{quant} {name} {n}x{k}, M={m}", seconds, nbytes, 2 * m * n * k)


class Attention(nn.Module):
    """The attention operator alone, over the parts of a batch that it reads."""

    def forward(
        self,
        q: Tensor,
        positions: Tensor,
        tile_seq: Tensor,
        tile_row: Tensor,
        tile_rows: Tensor,
        indptr: Tensor,
        values: Tensor,
        pages: Tensor,
    ) -> Tensor:
        none = cast(Tensor, None)
        batch = Batch(none, positions, none, tile_seq, tile_row, tile_rows, indptr, values, none, none, none)
        return active().attention(q, batch, pages, ATTENTION, ATTENTION.head_dim**-0.5)


def attention(arch: str | None) -> Iterator[KernelTiming]:
    """One decoding token of one sequence, over contexts whose pages are spread over more than the caches hold."""
    product = Build(None, arch=arch)
    kernels, target = product.kernels, product.target
    heads, size = ATTENTION.heads * ATTENTION.head_dim, ATTENTION.page_size
    int32 = {name: nn.spec.Tensor(["tiles"], "int32") for name in ("tile_seq", "tile_row", "tile_rows")}
    with using(kernels):
        shape = kernels.page_tensor(ATTENTION, "num_pages")
        call = build(
            Attention(),
            {
                "q": nn.spec.Tensor(["m", heads], "float32"),
                "positions": nn.spec.Tensor(["m"], "int32"),
                **int32,
                "indptr": nn.spec.Tensor(["batch"], "int32"),
                "values": nn.spec.Tensor(["listed"], "int32"),
                "pages": nn.spec.Tensor(list(shape), ATTENTION.page_dtype),
            },
            target,
        )
    rng = np.random.default_rng(0)
    page_bytes = int(np.prod(shape[1:])) * 2
    num_pages = BEYOND_CACHES // page_bytes
    pages = random_tensor(rng, (num_pages, *shape[1:]), ATTENTION.page_dtype)
    q = tvm.runtime.tensor(rng.standard_normal((1, heads), np.float32))

    def ints(*values: int) -> Any:
        return tvm.runtime.tensor(np.array(values, np.int32))

    for context in CONTEXTS:
        used = context // size
        order = rng.permutation(num_pages)[: num_pages // used * used].reshape(-1, used)
        fixed = (q, ints(context - 1), ints(0), ints(0), ints(1), ints(0, used))
        seconds = fastest_of(call, [(*fixed, ints(*table), pages) for table in order])
        yield KernelTiming(f"attention, context {context}", seconds, used * page_bytes, 4 * context * heads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quant", nargs="*", default=["q4", "q3", "q8"])
    parser.add_argument("--matmul", nargs="*", choices=list(MATMULS), default=list(MATMULS))
    parser.add_argument("--arch", default=None, help="the CPU's instruction set, such as avx2")
    args = parser.parse_args()
    # As the runner does, and before TVM's pool starts: its own default is half of the cores.
    os.environ.setdefault("TVM_NUM_THREADS", str(cores()))
    print(f"{provenance()['machine']}, {os.environ['TVM_NUM_THREADS']} threads, load average {load_average():.2f}")
    print(f"read: {read_bandwidth(int(os.environ['TVM_NUM_THREADS'])) / 1e9:.1f} GB/s", flush=True)
    others = Bystanders()
    for quant in args.quant:
        for row in linears(quant, args.arch, args.matmul):
            print(row, flush=True)
    for row in attention(args.arch):
        print(row, flush=True)
    print(f"Others used {others.cores() or 0.0:.2f} cores meanwhile.")


if __name__ == "__main__":
    main()
