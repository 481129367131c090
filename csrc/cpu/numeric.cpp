#include "numeric.h"

namespace rnnt_fastdecode {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

RNNT_FASTDECODE_CLONES void widen(const BFloat16* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = static_cast<uint32_t>(in[i].x) << 16;
    std::memcpy(out + i, &bits, sizeof(float));
  }
}

constexpr int kLanes = 16;
typedef uint16_t Shorts __attribute__((vector_size(kLanes * sizeof(uint16_t)), aligned(2), may_alias));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t)), aligned(4), may_alias));
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

// Exponents are rebiased, those of infinities and NaN twice. Subnormal halves go by way of their integer
// value, because arithmetic on subnormal floats is slow.
RNNT_FASTDECODE_CLONES void widen(const Half* in, int64_t count, float* out) {
  constexpr int32_t kRebias = (127 - 15) << 23;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Ints half = __builtin_convertvector(*reinterpret_cast<const Shorts*>(in + i), Ints);
    const Ints exponent = half & 0x7c00;
    const Ints normal = ((half & 0x7fff) << 13) + kRebias + ((exponent == 0x7c00) & kRebias);
    const Floats tiny = __builtin_convertvector(half & 0x03ff, Floats) * 0x1p-24f;
    const Ints is_tiny = exponent == 0;
    const Ints magnitude = (is_tiny & reinterpret_cast<const Ints&>(tiny)) | (~is_tiny & normal);
    *reinterpret_cast<Ints*>(out + i) = magnitude | ((half & 0x8000) << 16);
  }
  for (; i < count; ++i) out[i] = static_cast<float>(in[i]);
}

template <typename T>
void narrow(const float* values, int64_t count, T* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<T>(values[i]);
}

template <typename T>
void round_through(float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(static_cast<T>(values[i]));
}

}  // namespace

void load_row(ScalarType dtype, const void* base, int64_t offset, int64_t count, float* out) {
  if (dtype == ScalarType::BFloat16) {
    widen(static_cast<const BFloat16*>(base) + offset, count, out);
  } else if (dtype == ScalarType::Half) {
    widen(static_cast<const Half*>(base) + offset, count, out);
  } else if (count > 0) {
    std::memcpy(out, static_cast<const float*>(base) + offset, static_cast<size_t>(count) * sizeof(float));
  }
}

void store_row(ScalarType dtype, const float* values, int64_t count, void* base, int64_t offset) {
  if (dtype == ScalarType::BFloat16) {
    narrow(values, count, static_cast<BFloat16*>(base) + offset);
  } else if (dtype == ScalarType::Half) {
    narrow(values, count, static_cast<Half*>(base) + offset);
  } else if (count > 0) {
    std::memcpy(static_cast<float*>(base) + offset, values, static_cast<size_t>(count) * sizeof(float));
  }
}

void round_row(ScalarType dtype, float* values, int64_t count) {
  if (dtype == ScalarType::BFloat16) round_through<BFloat16>(values, count);
  if (dtype == ScalarType::Half) round_through<Half>(values, count);
}

}  // namespace rnnt_fastdecode
