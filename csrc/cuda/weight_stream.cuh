// Weights of a warp's product that come from device memory through registers, each lane loading its own.
#pragma once

#include "warp_product.cuh"

namespace rnnt_fastdecode::cuda::product {

// The most chunks of weights that a lane holds, by the registers that its sums leave.
template <typename T, int kTiles>
constexpr int kAhead = std::is_same_v<T, float> ? (kTiles == 1   ? 4
                                                   : kTiles == 2 ? 3
                                                                 : 2)
                       : kTiles <= 4            ? 4
                       : kTiles <= 8            ? 3
                                                : 2;

// Weight rows of `vectors` vectors that are the same for every octet.
struct WholeRows {
  int vectors;

  __device__ bool has(int, int v) const { return v < vectors; }
  __device__ uint32_t place(int v) const { return v; }
};

// A lane's weights on their way through registers: kSlots chunks are loaded before they are needed. Vector v
// of the lane's row of an octet lies layout.place(v) vectors after its first one, where layout.has(octet, v),
// and is 0 elsewhere.
template <int kSlots, typename Layout = WholeRows>
class WeightStream {
 public:
  uint4 chunks[kSlots][kOctets];

  // weights: rows of layout.vectors vectors, fewer than 2^32 vectors in all. rows: the lane's row of each
  // octet.
  __device__ void start(const void* weights, const int (&rows)[kOctets], const Layout& layout,
                        const WarpShare& share, int lane) {
    weights_ = static_cast<const uint4*>(weights);
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      rows_[octet] = static_cast<uint32_t>(rows[octet]) * layout.vectors;
    }
    layout_ = layout;
    next_ = share.k_group * kChunkVectors + lane % kChunkVectors;
    step_ = share.k_groups * kChunkVectors;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      load(slot);
    }
  }

  // Fills a slot with the warp's next chunk.
  __device__ void load(int slot) {
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      chunks[slot][octet] = layout_.has(octet, next_)
                                ? __ldg(weights_ + (rows_[octet] + layout_.place(next_)))
                                : uint4{0, 0, 0, 0};
    }
    next_ += step_;
  }

 private:
  const uint4* weights_;
  uint32_t rows_[kOctets];
  Layout layout_;
  int next_;
  int step_;
};

// Adds `count` chunks of the product to the sums. operand.chunk(i) is where the lane finds its first vector
// of the warp's i-th chunk; the operand's rows are operand.stride bytes apart.
template <typename T, int kTiles, int kSlots, typename Layout, typename Operand>
__device__ inline void multiply(float (&sums)[kTiles][kSums], WeightStream<kSlots, Layout>& weights,
                                int count, Operand& operand, int lane) {
  WarpProduct<T, kTiles> product(sums);
  for (int first = 0; first < count; first += kSlots) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      if (first + slot < count) {
        const unsigned char* place = operand.chunk(first + slot);
        product.load(weights.chunks[slot]);
        weights.load(slot);
        product.multiply(place, operand.stride);
      }
    }
  }
  product.finish(lane);
}

}  // namespace rnnt_fastdecode::cuda::product
