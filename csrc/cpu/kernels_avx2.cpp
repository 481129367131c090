// Kernels for AVX2 with FMA and F16C: 8 lanes.

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

RNNT_FASTDECODE_BEGIN_TARGET("avx2,fma,f16c")
namespace rnnt_fastdecode {
namespace {

constexpr int kLanes = 8;
constexpr int kTileRows = 3;  // 12 sums, 3 activations and a weight in 16 registers

using Floats = __m256;
using Quad = __m128;
typedef int32_t Ints __attribute__((vector_size(32)));

inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }

inline __m128i load_halves(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline void store_halves(void* p, __m128i x) { _mm_storeu_si128(static_cast<__m128i*>(p), x); }

inline Floats widen(const float* p) { return load(p); }
inline Floats widen(const Half* p) { return _mm256_cvtph_ps(load_halves(p)); }
inline Floats widen(const BFloat16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_halves(p)), 16));
}
inline void narrow(Floats x, Half* p) { store_halves(p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
inline void narrow(Floats x, BFloat16* p) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i high = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), nan);
  store_halves(p, _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
}

// Pairs of neighbours are added until each 128 bits hold one partial sum of every vector.
inline Quad sum4(Floats a, Floats b, Floats c, Floats d) {
  const Floats ab = _mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b);
  const Floats cd = _mm256_unpacklo_ps(c, d) + _mm256_unpackhi_ps(c, d);
  const Floats sums = _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xee);
  return _mm256_castps256_ps128(sums) + _mm256_extractf128_ps(sums, 1);
}

#include "kernels_body.h"
}  // namespace

const Kernels& avx2_kernels() {
  static constexpr Kernels kernels = make_kernels("avx2", nullptr);
  return kernels;
}

}  // namespace rnnt_fastdecode
RNNT_FASTDECODE_END_TARGET
#endif
