#include "numeric.h"

#include <algorithm>

#include "kernels.h"

namespace rnnt_fastdecode {

void load_row(ScalarType dtype, const void* base, int64_t offset, int64_t count, float* out) {
  if (dtype == ScalarType::BFloat16) {
    kernels().widen_bfloat16(static_cast<const BFloat16*>(base) + offset, count, out);
  } else if (dtype == ScalarType::Half) {
    kernels().widen_half(static_cast<const Half*>(base) + offset, count, out);
  } else {
    std::copy_n(static_cast<const float*>(base) + offset, count, out);
  }
}

void store_row(ScalarType dtype, const float* values, int64_t count, void* base, int64_t offset) {
  if (dtype == ScalarType::BFloat16) {
    kernels().narrow_bfloat16(values, count, static_cast<BFloat16*>(base) + offset);
  } else if (dtype == ScalarType::Half) {
    kernels().narrow_half(values, count, static_cast<Half*>(base) + offset);
  } else {
    std::copy_n(values, count, static_cast<float*>(base) + offset);
  }
}

void round_row(ScalarType dtype, float* values, int64_t count) {
  constexpr int64_t kBlock = 256;
  alignas(BFloat16) alignas(Half) char rounded[kBlock * sizeof(Half)];
  if (dtype == ScalarType::Float) return;
  for (int64_t i = 0; i < count; i += kBlock) {
    const int64_t size = std::min(kBlock, count - i);
    store_row(dtype, values + i, size, rounded, 0);
    load_row(dtype, rounded, 0, size, values + i);
  }
}

}  // namespace rnnt_fastdecode
