// Reading and writing rows of float32, bfloat16 or float16 as float32.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

namespace rnnt_fastdecode {

using torch::headeronly::ScalarType;

// out[i] = base[offset + i], widened to float32.
void load_row(ScalarType dtype, const void* base, int64_t offset, int64_t count, float* out);

// base[offset + i] = values[i], rounded to nearest even.
void store_row(ScalarType dtype, const float* values, int64_t count, void* base, int64_t offset);

// values[i] = the nearest number that dtype can hold.
void round_row(ScalarType dtype, float* values, int64_t count);

}  // namespace rnnt_fastdecode
