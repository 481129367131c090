// Products of fp32 numbers on tensor cores, no less exact than chains of fp32 additions.
//
// A number of 24 significant bits is the exact sum of three of 8 bits, high + middle + low, each of which is
// a bf16 number (of numbers below 2^-110, what is below 2^-133 is lost). Products of such parts are exact in
// fp32. Of the nine, three are left out: below 2^-22 of the whole, and of both signs. Tensor cores cut sums
// off where other additions round: so the large products high * high have sums of their own, over a depth of
// at most 80, and what is added up further is rounded.
//
// The order of the depth inside a product is free as long as both operands agree: a lane (g = lane / 4, t =
// lane % 4) holds 4 consecutive numbers of a row, 4 t .. 4 t + 3 of a step of 16.
#pragma once

#include <cmath>

#include "ptx.cuh"

namespace rnnt_fastdecode::cuda {

constexpr int kStepDepth = 16;

// Three parts of pairs of numbers, as operands: of a row of the batch, or of weight rows g and g + 8.
struct SplitRow {
  uint32_t part[3][2];
};
struct SplitWeights {
  uint32_t part[3][4];
};

// Of weight rows g and g + 8 (from 2 on) and batch rows 2 t and 2 t + 1.
struct SplitSums {
  float high[4];
  float rest[4];
};

__device__ inline uint32_t upper_halves(float a, float b) {
  return __byte_perm(__float_as_uint(a), __float_as_uint(b), 0x7632);
}

__device__ inline float upper_half(float x) { return __uint_as_float(__float_as_uint(x) & 0xffff0000u); }

// The first part is cut off, so that it never overflows, the second rounded: so the products that are left
// out are small and of both signs. The third is what is left.
template <int Words>
__device__ inline void split_pair(uint32_t (&part)[3][Words], int word, float a, float b) {
  part[0][word] = upper_halves(a, b);
  a -= upper_half(a);
  b -= upper_half(b);
  const __nv_bfloat162 middle = __floats2bfloat162_rn(a, b);
  const uint32_t bits = reinterpret_cast<const uint32_t&>(middle);
  part[1][word] = bits;
  part[2][word] = upper_halves(a - __uint_as_float(bits << 16), b - __uint_as_float(bits & 0xffff0000u));
}

__device__ inline SplitRow split_row(const float4& x) {
  SplitRow out;
  split_pair(out.part, 0, x.x, x.y);
  split_pair(out.part, 1, x.z, x.w);
  return out;
}

__device__ inline SplitWeights split_weights(const float4& low, const float4& high) {
  SplitWeights out;
  split_pair(out.part, 0, low.x, low.y);
  split_pair(out.part, 1, high.x, high.y);
  split_pair(out.part, 2, low.z, low.w);
  split_pair(out.part, 3, high.z, high.w);
  return out;
}

template <int Weights, int Row, int Tiles>
__device__ inline void add_rest(SplitSums (&sums)[Tiles], const SplitWeights& weights,
                                const SplitRow (&rows)[Tiles]) {
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
    ptx::mma<__nv_bfloat16>(sums[n].rest, weights.part[Weights], rows[n].part[Row][0], rows[n].part[Row][1]);
  }
}

// Tiles of 16 weight rows times tiles of 8 rows of the batch, over a step.
template <int Columns, int Tiles>
__device__ inline void multiply_split(SplitSums (&sums)[Columns][Tiles],
                                      const SplitWeights (&weights)[Columns], const SplitRow (&rows)[Tiles]) {
#pragma unroll
  for (int m = 0; m < Columns; ++m) {
    add_rest<1, 1>(sums[m], weights[m], rows);
    add_rest<2, 0>(sums[m], weights[m], rows);
    add_rest<0, 2>(sums[m], weights[m], rows);
    add_rest<1, 0>(sums[m], weights[m], rows);
    add_rest<0, 1>(sums[m], weights[m], rows);
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      ptx::mma<__nv_bfloat16>(sums[m][n].high, weights[m].part[0], rows[n].part[0][0], rows[n].part[0][1]);
    }
  }
}

// Parts of an infinite number are no numbers: where the large products have no finite sum it is theirs.
__device__ inline float whole_sum(float high, float rest) {
  return fabsf(high) < INFINITY ? high + rest : high;
}

__device__ inline float4 whole_sums(const SplitSums& sums) {
  return {whole_sum(sums.high[0], sums.rest[0]), whole_sum(sums.high[1], sums.rest[1]),
          whole_sum(sums.high[2], sums.rest[2]), whole_sum(sums.high[3], sums.rest[3])};
}

}  // namespace rnnt_fastdecode::cuda
