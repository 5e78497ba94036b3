// CUDA's language, as far as TVM's kernels use it, in C++ for a CPU.
#pragma once

#include <math.h>

#include "../block.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(threads)
#define __align__(bytes) alignas(bytes)
#define __shared__ EMULATED_SHARED
#define __syncthreads() emulation::barrier(__LINE__)
#define threadIdx emulation::machine.thread
#define blockIdx emulation::machine.block

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}

template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}

// Where TVM writes it, between `static` and the type, only the older spelling may stand.
#define alignas(bytes) __attribute__((aligned(bytes)))
