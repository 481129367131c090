// Tensor core products of 16-bit numbers, accumulated in fp32: mma.m16n8k16 with weights as the 16 x k
// operand and rows of the batch as the k x 8 operand.
//
// The order of k inside a product is free as long as both operands agree. A lane (g = lane / 4, t = lane % 4)
// holds 16 consecutive bytes of a row, elements 8 t .. 8 t + 7 of a chunk of 32, and uses them in two
// products: one 16-byte load from a row-major matrix is a fragment.
#pragma once

#include "ptx.cuh"

namespace rnnt_fastdecode::cuda {

constexpr int kChunk = 32;        // elements of k in two products
constexpr int kLaneElements = 8;  // of which a lane holds these

template <typename T>
__device__ inline void multiply_16(float (&sums)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                   unsigned b0, unsigned b1) {
  ptx::mma<T>(sums, {a0, a1, a2, a3}, b0, b1);
}

// The weights of rows g and g + 8 of a chunk, in the order in which the products take them.
struct WeightFragment {
  uint4 first;
  uint4 second;
};

// From the 16 bytes of either row.
__device__ inline WeightFragment interleave(const uint4& low, const uint4& high) {
  return {{low.x, high.x, low.y, high.y}, {low.z, high.z, low.w, high.w}};
}

// sums += (weights of rows g and g + 8) x (row g of the batch) over a chunk. Of `sums`, 0 and 1 belong to
// weight row g and batch rows 2 t and 2 t + 1, 2 and 3 to weight row g + 8. The second half of the chunk may
// have sums of its own: two products at a time then.
template <typename T>
__device__ inline void multiply_chunk(float (&sums)[4], float (&second_sums)[4],
                                      const WeightFragment& weights, const uint4& x) {
  const uint4 &a = weights.first, &b = weights.second;
  multiply_16<T>(sums, a.x, a.y, a.z, a.w, x.x, x.y);
  multiply_16<T>(second_sums, b.x, b.y, b.z, b.w, x.z, x.w);
}

template <typename T>
__device__ inline void multiply_chunk(float (&sums)[4], const WeightFragment& weights, const uint4& x) {
  multiply_chunk<T>(sums, sums, weights, x);
}

}  // namespace rnnt_fastdecode::cuda
