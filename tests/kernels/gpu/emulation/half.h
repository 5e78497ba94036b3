// float16 as storage: converted to float32 and back, rounded to nearest, ties to even. No arithmetic: a kernel that
// computes in it does not compile here.
#pragma once

#include <string.h>

#include <cstdint>

namespace emulation {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

inline float of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

inline uint16_t half_of_float(float value) {
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, size = bits & 0x7FFFFFFF;
  if (size > 0x7F800000) return sign | 0x7E00;   // NaN
  if (size >= 0x477FF000) return sign | 0x7C00;  // from 65520 on, which is rounded up to infinity
  if (size < 0x38800000)                         // below 2^-14: steps of 2^-24, and the sum below has steps of those
    return sign | (bits_of(of_bits(size) + 0.5f) - 0x3F000000);
  return sign | ((size - 0x38000000 + 0xFFF + (size >> 13 & 1)) >> 13);
}

inline float float_of_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 0x1F, fraction = half & 0x3FF;
  if (exponent == 0x1F) return of_bits(sign | 0x7F800000 | fraction << 13);
  if (exponent == 0) return of_bits(sign | bits_of(static_cast<float>(fraction) * 0x1p-24f));
  return of_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

}  // namespace emulation

struct half {
  uint16_t bits;
  half() = default;
  explicit half(float value) : bits(emulation::half_of_float(value)) {}
  explicit operator float() const { return emulation::float_of_half(bits); }
};
