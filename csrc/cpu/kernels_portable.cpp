// Kernels for any machine: 4 lanes in the compiler's own vectors, which every 64-bit architecture has
// registers for.

#include "kernels.h"

namespace rnnt_fastdecode {
namespace {

constexpr int kLanes = 4;
constexpr int kTileRows = 2;  // 8 sums, 2 activations and a weight in 16 registers

typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));
typedef uint16_t Halves __attribute__((vector_size(8)));
using Quad = Floats;

template <typename Lanes>
inline Lanes load_lanes(const void* p) {
  Lanes x;
  __builtin_memcpy(&x, p, sizeof(x));
  return x;
}
inline Floats load(const float* p) { return load_lanes<Floats>(p); }
inline void store(float* p, Floats x) { __builtin_memcpy(p, &x, sizeof(x)); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }

inline Ints load_halves(const void* p) { return __builtin_convertvector(load_lanes<Halves>(p), Ints); }

inline Floats widen(const float* p) { return load(p); }
inline Floats widen(const BFloat16* p) { return reinterpret_cast<Floats>(load_halves(p) << 16); }
// Exponents are rebiased, those of infinities and NaN twice. Subnormal halves go by way of their integer
// value, because arithmetic on subnormal floats is slow.
inline Floats widen(const Half* p) {
  constexpr int32_t kRebias = (127 - 15) << 23;
  const Ints half = load_halves(p);
  const Ints exponent = half & 0x7c00;
  const Ints normal = ((half & 0x7fff) << 13) + kRebias + ((exponent == 0x7c00) & kRebias);
  const Floats tiny = __builtin_convertvector(half & 0x03ff, Floats) * 0x1p-24f;
  const Ints magnitude = exponent == 0 ? reinterpret_cast<Ints>(tiny) : normal;
  return reinterpret_cast<Floats>(magnitude | ((half & 0x8000) << 16));
}
template <typename T>
inline void narrow(Floats x, T* p) {
  for (int lane = 0; lane < kLanes; ++lane) p[lane] = static_cast<T>(x[lane]);
}

inline float sum_of(Floats x) { return (x[0] + x[2]) + (x[1] + x[3]); }
inline Quad sum4(Floats a, Floats b, Floats c, Floats d) {
  return Quad{sum_of(a), sum_of(b), sum_of(c), sum_of(d)};
}

#include "kernels_body.h"
}  // namespace

const Kernels& portable_kernels() {
  static constexpr Kernels kernels = make_kernels("portable", nullptr);
  return kernels;
}

}  // namespace rnnt_fastdecode
