// float16 as CUDA names it.
#pragma once

#include "../half.h"

using __half = half;
struct __half2;

inline float __half2float(half value) { return static_cast<float>(value); }
inline half __float2half(float value) { return half(value); }
inline half __float2half_rn(float value) { return half(value); }
inline bool __hgt(half a, half b) { return static_cast<float>(a) > static_cast<float>(b); }
inline bool __hlt(half a, half b) { return static_cast<float>(a) < static_cast<float>(b); }
