// Tensor core products of 16-bit numbers, accumulated in fp32: mma.m16n8k16 with weights as the 16 x k
// operand and rows of the batch as the k x 8 operand.
//
// The order of k inside a product is free as long as both operands agree. A lane (g = lane / 4, t = lane % 4)
// holds 16 consecutive bytes of a row, elements 8 t .. 8 t + 7 of a chunk of 32, and uses them in two
// products: one 16-byte load from a row-major matrix is a fragment.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace rnnt_fastdecode::cuda {

constexpr int kChunk = 32;        // elements of k in two products
constexpr int kLaneElements = 8;  // of which a lane holds these

template <typename T>
__device__ inline void multiply_16(float (&sums)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                   unsigned b0, unsigned b1);

template <>
__device__ inline void multiply_16<__nv_bfloat16>(float (&sums)[4], unsigned a0, unsigned a1, unsigned a2,
                                                  unsigned a3, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <>
__device__ inline void multiply_16<__half>(float (&sums)[4], unsigned a0, unsigned a1, unsigned a2,
                                           unsigned a3, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// sums += (weights of rows g and g + 8) x (row g of the batch) over a chunk. Of `sums`, 0 and 1 belong to
// weight row g and batch rows 2 t and 2 t + 1, 2 and 3 to weight row g + 8.
template <typename T>
__device__ inline void multiply_chunk(float (&sums)[4], const uint4& low, const uint4& high, const uint4& x) {
  multiply_16<T>(sums, low.x, high.x, low.y, high.y, x.x, x.y);
  multiply_16<T>(sums, low.z, high.z, low.w, high.w, x.z, x.w);
}

}  // namespace rnnt_fastdecode::cuda
