// Lanes of 512 bits for kernels_body.h. No include guard: see there.

constexpr int kLanes = 16;
constexpr int kTileRows = 6;  // 24 sums, 6 activations and a weight in 32 registers

using Floats = __m512;
using Quad = __m128;
typedef int32_t Ints __attribute__((vector_size(64)));

inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }

inline __m256i load_halves(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store_halves(void* p, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }

inline Floats widen(const float* p) { return load(p); }
inline Floats widen(const Half* p) { return _mm512_cvtph_ps(load_halves(p)); }
inline Floats widen(const BFloat16* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_halves(p)), 16));
}
inline void narrow(Floats x, Half* p) {
  store_halves(p, _mm512_maskz_cvtps_ph(0xffff, x, _MM_FROUND_TO_NEAREST_INT));
}
inline void narrow(Floats x, BFloat16* p) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i high = _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0));
  store_halves(p, _mm512_cvtepi32_epi16(high));
}

// Pairs of neighbours are added until each 128 bits hold one partial sum of every vector.
inline Quad sum4(Floats a, Floats b, Floats c, Floats d) {
  const Floats ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
  const Floats cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
  const Floats sums = _mm512_shuffle_ps(ab, cd, 0x44) + _mm512_shuffle_ps(ab, cd, 0xee);
  const __m256 low = _mm512_castps512_ps256(sums);
  const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(sums), 1));
  const __m256 half = low + high;
  return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
}
