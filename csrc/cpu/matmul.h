// rows x weights^T in float32, for weights stored in any dtype.
#pragma once

#include "numeric.h"

namespace rnnt_fastdecode {

// Multiply-adds below which another thread costs more than it saves.
constexpr int64_t kMinimumWork = 1 << 18;

// A weight matrix [rows, columns] as torch stores it, with the bias (may be null) already in float32.
struct WeightMatrix {
  const void* data;
  int64_t offset;  // of the first element, in elements
  int64_t rows, columns;
  ScalarType dtype;
  const float* bias;
};

// out[r, n] = bias[n] + sum_k x[r, k] * weight[n, k], x [count, columns], out [count, weight.rows]. Every sum
// is taken in the same order whatever count is, so a row's result does not depend on the batch it is in. Uses
// torch's threads, unless the caller runs in one of them.
void multiply(const float* x, int64_t count, const WeightMatrix& weight, float* out);

}  // namespace rnnt_fastdecode
