// Kernels for AVX-512 with instructions that multiply pairs of bfloat16 numbers and add to float32: twice as
// many products at a time. They round like float32 arithmetic and take subnormal numbers for zero.

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

RNNT_FASTDECODE_IGNORE_UNDEFINED_LANES

RNNT_FASTDECODE_BEGIN_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512bf16")
namespace rnnt_fastdecode {
namespace {
#include "lanes_avx512.h"
//
#include "kernels_body.h"

struct Pairs {
  using Operand = BFloat16;
  using Weight = BFloat16;
  static constexpr int kStep = 2 * kLanes;
  static __m512i operand(const BFloat16* p) { return _mm512_loadu_si512(p); }
  static __m512i weight(const BFloat16* p) { return _mm512_loadu_si512(p); }
  static Floats multiply(__m512i x, __m512i w, Floats sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  }
};
}  // namespace

const Kernels& avx512_bf16_kernels() {
  static constexpr Kernels kernels = make_kernels("avx512_bf16", dot_block<Pairs>);
  return kernels;
}

}  // namespace rnnt_fastdecode
RNNT_FASTDECODE_END_TARGET
#endif
