; Linked into every kernel for AMD's GPUs: asks LLVM for code objects of version 4, the oldest that it still writes. Left
; to itself, TVM's LLVM writes version 6, which the linker of LLVM 14 and older ROCm refuse ("unknown abi version").
; There are no device libraries: what our kernels compute has instructions, or LLVM expands it.
!llvm.module.flags = !{!0}
!0 = !{i32 1, !"amdhsa_code_object_version", i32 400}
