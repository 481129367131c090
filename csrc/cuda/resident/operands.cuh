// Where the operands of the tensor cores come from: weights in shared memory, values in messages.
#pragma once

#include "../fragments.cuh"
#include "context.cuh"

namespace rnnt_fastdecode::cuda {

// A lane's part of a row of a row-major matrix [*, width], for a product over a chunk of it.
template <typename T>
__device__ inline uint4 load_operand(const Context& c, const T* row, int width, bool exists, int chunk) {
  const int k = chunk * kChunk + c.t * kLaneElements;
  return exists && k < width ? *reinterpret_cast<const uint4*>(row + k) : uint4{0, 0, 0, 0};
}

// Weights i of an array in shared memory.
__device__ inline void keep_weights(const Context& c, int offset, int i, const WeightFragment& weights) {
  uint4* place = c.fragments(offset) + 2 * i * kWarp + c.lane;
  place[0] = weights.first;
  place[kWarp] = weights.second;
}

__device__ inline WeightFragment kept_weights(const Context& c, int offset, int i) {
  const uint4* place = c.fragments(offset) + 2 * i * kWarp + c.lane;
  return {read_shared(place), read_shared(place + kWarp)};
}

// Two gates (half 0: i and f, half 1: g and o) of the block's units, from a column of [W_ih | W_hh].
template <typename T>
__device__ WeightFragment gate_weights(const Context& c, int layer, int half, int column, bool exists,
                                       int chunk) {
  const auto row = [&](int gate) {
    const int64_t index = static_cast<int64_t>(layer * 4 + gate) * c.p.width + c.unit;
    return static_cast<const T*>(c.p.weight) + index * 2 * c.p.width + column;
  };
  return interleave(load_operand(c, row(2 * half), c.p.width, exists, chunk),
                    load_operand(c, row(2 * half + 1), c.p.width, exists, chunk));
}

// Where a warp leaves its part of the sums that warp `job` adds up.
template <int Warps>
__device__ __forceinline__ int other_part(int job, int warp) {
  return job * (Warps - 1) + (warp < job ? warp : warp - 1);
}

// Values that a lane reads of messages: of Tiles tiles of 8 rows the chunks first, first + step, ...
template <int Chunks, int Tiles>
struct Operand {
  uint4 x[Chunks][Tiles];
  const uint4* place;
  int stride;

  // Of the rows in `active`; starts to read.
  __device__ __forceinline__ void request(const Context& c, const uint4* messages, unsigned active, int first,
                                          int step, int eighths) {
#pragma unroll
    for (int i = 0; i < Chunks; ++i) {
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
        const bool wanted = (active >> (8 * n + c.g) & 1) != 0 && (first + i * step) * 4 + c.t < eighths;
        x[i][n] = wanted ? empty_message() : uint4{0, 0, 0, 0};
      }
    }
    place = messages + first * c.row_tiles() * kWarp + c.lane;
    stride = step * c.row_tiles() * kWarp;
    read_again();
  }

  __device__ __forceinline__ void read_again() {
#pragma unroll
    for (int i = 0; i < Chunks; ++i) {
#pragma unroll
      for (int n = 0; n < Tiles; ++n) read_if_empty(x[i][n], place + i * stride + n * kWarp);
    }
  }

  __device__ __forceinline__ bool is_missing() const {
    unsigned missing = 0;
#pragma unroll
    for (int i = 0; i < Chunks; ++i) {
#pragma unroll
      for (int n = 0; n < Tiles; ++n) missing |= x[i][n].x == kEmpty;
    }
    return __any_sync(kFullMask, missing != 0);
  }

  // Whoever has time asks seldom.
  template <bool kHasTime = false>
  __device__ __forceinline__ void await() {
    int polls = 0;
    while (is_missing()) {
      if (polls++ == kPatience) __trap();
      if (kHasTime) __nanosleep(200);
      read_again();
    }
  }
};

}  // namespace rnnt_fastdecode::cuda
