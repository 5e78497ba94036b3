// A warp's matrix operations. The first lane holds the whole tile and does the work, when its turn comes; as no lane
// may depend on another's without a barrier, nobody can tell. Tiles are kept in float32, which holds float16 exactly.
#pragma once

#include "block.h"
#include "half.h"

namespace emulation {

template <int rows, int columns>
struct Tile {
  float values[rows][columns];
};

template <int rows, int columns>
void fill(Tile<rows, columns>& tile, float value) {
  collective(1, nullptr, 0);
  if (lane() == 0)
    for (auto& row : tile.values)
      for (float& v : row) v = value;
}

template <int rows, int columns, class T>
void load(Tile<rows, columns>& tile, const T* from, long stride, bool transposed) {
  collective(transposed ? 3 : 2, from, stride);
  if (lane() == 0)
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j)
        tile.values[i][j] = static_cast<float>(transposed ? from[j * stride + i] : from[i * stride + j]);
}

template <int rows, int columns, class T>
void store(const Tile<rows, columns>& tile, T* to, long stride) {
  collective(4, to, stride);
  if (lane() == 0)
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j) to[i * stride + j] = static_cast<T>(tile.values[i][j]);
}

// d = a b + c, sums in float32.
template <int n>
__attribute__((optimize("O3"))) void multiply_add(
    Tile<n, n>& d, const Tile<n, n>& a, const Tile<n, n>& b, const Tile<n, n>& c) {
  collective(5, nullptr, 0);
  if (lane() != 0) return;
  Tile<n, n> sums = c;
  for (int i = 0; i < n; ++i)
    for (int k = 0; k < n; ++k)
      for (int j = 0; j < n; ++j) sums.values[i][j] += a.values[i][k] * b.values[k][j];
  d = sums;
}

}  // namespace emulation
