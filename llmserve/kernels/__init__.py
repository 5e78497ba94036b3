"""TIR that the compiler would not find by itself, a folder for each kind of platform.

Whatever imports tvm in llmserve imports this package first, so this is where a wrong TVM is found out.
"""

from ..toolchain import tvm_version

tvm_version()
