// CUDA's warp matrix functions for tiles of 16, with what its programming guide demands of pointers and strides.
#pragma once

#include "../tiles.h"

namespace nvcuda::wmma {

struct accumulator;
struct matrix_a;
struct matrix_b;
struct row_major;
struct col_major;
enum layout_t { mem_row_major };

template <class Use, int m, int n, int k, class T, class Order = void>
struct fragment : emulation::Tile<16, 16> {
  static_assert(m == 16 && n == 16 && k == 16);
};

template <class T>
void check(const T* pointer, unsigned stride) {
  if (reinterpret_cast<uintptr_t>(pointer) % 32) emulation::fail("a wmma pointer that is not aligned to 256 bits");
  if (stride * sizeof(T) % 16) emulation::fail("a wmma stride of %ld elements, no multiple of 16 bytes", stride);
}

template <class Use, class T, class Order>
void fill_fragment(fragment<Use, 16, 16, 16, T, Order>& tile, float value) {
  emulation::fill(tile, value);
}

template <class Use, class T, class Order>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Order>& tile, const T* from, unsigned stride) {
  check(from, stride);
  emulation::load(tile, from, stride, std::is_same_v<Order, col_major>);
}

template <class T, class A, class B>
void mma_sync(fragment<accumulator, 16, 16, 16, float>& d, const fragment<matrix_a, 16, 16, 16, T, A>& a,
              const fragment<matrix_b, 16, 16, 16, T, B>& b, const fragment<accumulator, 16, 16, 16, float>& c) {
  emulation::multiply_add(d, a, b, c);
}

inline void store_matrix_sync(
    float* to, const fragment<accumulator, 16, 16, 16, float>& tile, unsigned stride, layout_t) {
  check(to, stride);
  emulation::store(tile, to, stride);
}

}  // namespace nvcuda::wmma
