"""TFLOP/s of torch.matmul in float16, for comparison, where PyTorch is installed and sees a GPU. Prints JSON."""

import json
import statistics
import sys
import time


def main(m: int, n: int, k: int) -> None:
    import torch

    if not torch.cuda.is_available():
        print(json.dumps({"missing": "PyTorch sees no GPU"}))
        return
    x, w = (torch.randn(rows, k, device="cuda", dtype=torch.float16) for rows in (m, n))

    def batch(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            x @ w.T
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / count

    batch(10)
    took = statistics.median(batch(50) for _ in range(7))
    print(json.dumps({"tflops": 2 * m * n * k / took / 1e12, "version": torch.__version__}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
