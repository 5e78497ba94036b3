"""Kernels in TIR, written by hand: a folder for CPUs and one for GPUs, and the protocol that both implement.

Every part of llmserve that imports tvm imports this package first, so a wrong TVM is refused here.
"""

from ..toolchain import tvm_version

tvm_version()
