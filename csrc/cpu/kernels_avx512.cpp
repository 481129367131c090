// Kernels for AVX-512: 16 lanes.

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

RNNT_FASTDECODE_IGNORE_UNDEFINED_LANES

RNNT_FASTDECODE_BEGIN_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512vl")
namespace rnnt_fastdecode {
namespace {
#include "lanes_avx512.h"
//
#include "kernels_body.h"
}  // namespace

const Kernels& avx512_kernels() {
  static constexpr Kernels kernels = make_kernels("avx512", nullptr);
  return kernels;
}

}  // namespace rnnt_fastdecode
RNNT_FASTDECODE_END_TARGET
#endif
