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

// Chunks of recurrent weights of a layer: whole parts of kPartChunks, that ends with zeros.
__device__ inline int recurrent_chunks(const Context& c) {
  return ((c.p.width + kChunk - 1) / kChunk + kPartChunks - 1) / kPartChunks * kPartChunks;
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

// Values that a lane reads of messages: of Tiles tiles of 8 rows the chunks first, first + step, ... Where
// there is no such chunk or no label, anything.
template <int Chunks, int Tiles>
struct Operand {
  static constexpr bool kMany = Chunks * Tiles > 6;

  uint4 x[Chunks][Tiles];
  const uint4* place;
  int stride;
  int exist;      // chunks
  unsigned rows;  // those of this lane that are wanted: bit 8 n is that of tile n

  // Of the rows in `active`; starts to read.
  __device__ __forceinline__ void request(const Context& c, const uint4* messages, unsigned active, int first,
                                          int step, int chunks) {
    // There may be no chunk for a warp.
    if (first >= chunks) active = first = 0;
    rows = active >> c.g;
    // A lone row is read by all: that is one read.
    const int row = Tiles > 1 || (rows & 1) != 0 || active == 0 ? c.g : __ffs(active) - 1;
    place = messages + first * c.row_tiles() * kWarp + row * 4 + c.t;
    stride = step * c.row_tiles() * kWarp;
    exist = (chunks - first + step - 1) / step;
    read();
  }

  __device__ __forceinline__ void read() {
    const int step = kMany ? opaque(stride) : stride;
#pragma unroll
    for (int i = 0; i < Chunks; ++i) {
      const uint4* const chunk = place + (i < exist ? i * step : 0);
#pragma unroll
      for (int n = 0; n < Tiles; ++n) x[i][n] = read_message(chunk + n * kWarp);
    }
  }

  __device__ __forceinline__ void read_missing() {
#pragma unroll
    for (int i = 0; i < Chunks; ++i) {
      const uint4* const chunk = place + (i < exist ? i * stride : 0);
#pragma unroll
      for (int n = 0; n < Tiles; ++n) read_if_empty(x[i][n], chunk + n * kWarp);
    }
  }

  __device__ __forceinline__ bool is_missing() const {
    bool missing = false;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      bool of_tile = false;
#pragma unroll
      for (int i = 0; i < Chunks; ++i) of_tile |= x[i][n].x == kEmpty;
      missing |= of_tile && (rows >> (8 * n) & 1) != 0;
    }
    return __any_sync(kFullMask, missing);
  }

  // Of a message that this lane misses, relative to `place`; -1 = none.
  __device__ __forceinline__ int missing() const {
    int index = -1;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int i = 0; i < Chunks; ++i) {
        if (x[i][n].x == kEmpty && i < exist && (rows >> (8 * n) & 1) != 0) index = i * stride + n * kWarp;
      }
    }
    return index;
  }

  // Whoever has time asks seldom; whoever misses much asks for one of it, then for all.
  template <bool kHasTime = false>
  __device__ __forceinline__ void await() {
    for (int polls = 0; is_missing(); ++polls) {
      if (kHasTime) __nanosleep(200);
      if constexpr (kMany) {
        const int late = missing();
        while (__any_sync(kFullMask, late >= 0 && read_message(place + max(late, 0)).x == kEmpty)) {
          if (polls++ == kPatience) __trap();
        }
      }
      if (polls == kPatience) __trap();
      if constexpr (kMany) {
        read();
      } else {
        read_missing();
      }
    }
  }
};

}  // namespace rnnt_fastdecode::cuda
