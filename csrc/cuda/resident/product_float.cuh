// Products of few rows in the resident decoder in fp32: chains of fp32 additions.
//
// The depth of a product, at most 640, is split over the 8 warps: each multiplies a slice of 80 numbers of
// every row. A lane (k = lane / 4, q = lane % 4) keeps 10 of them in registers for each of its columns; the 8
// lanes of a q share their columns, the 4 neighbours of a k their numbers of a row: reads of shared memory
// are merged only between neighbours. The rows' slices lie in shared memory: a lane reads its 10 numbers of a
// row once for all its columns. Then the sums of the rows are halved from lane to lane until each has those
// of one, and whoever needs a sum adds up the parts of the 8 warps.
#pragma once

#include "share_float.cuh"

namespace rnnt_fastdecode::cuda {

constexpr int kSlice = kFloatWidth / kWarps;
constexpr int kDepthLanes = 8;
constexpr int kColumnLanes = kWarp / kDepthLanes;
constexpr int kLaneDepth = kSlice / kDepthLanes;
constexpr int kQuads = kSlice / 16;  // of four numbers: what each of the 4 lanes of a row copies of a slice

// A thread's place in a product; g and t are its row and quad where eight rows are read.
struct Place {
  int thread;
  int warp;
  int k;
  int q;
  int g;
  int t;

  __device__ static Place of_thread(int thread) {
    const int lane = thread % kWarp;
    return {thread, thread / kWarp, lane / kColumnLanes, lane % kColumnLanes, lane / 4, lane % 4};
  }
};

// Which number of a row stands at `offset` of a warp's slice: two runs of 32 and one of 16.
__device__ inline int slice_depth(int warp, int offset) {
  if (offset < 32) return 32 * warp + offset;
  if (offset < 64) return 32 * kWarps + 32 * warp + offset - 32;
  return 64 * kWarps + 16 * warp + offset - 64;
}

// `count` rows of a weight matrix, the columns of a product.
struct Columns {
  const float* first;
  int64_t stride;
  int count;
};

// A lane's part of its columns, in the order in which `multiply` reads a slice.
template <int Count>
__device__ inline void read_columns(float (&weights)[Count][kLaneDepth], const Columns& columns, int width,
                                    const Place& at) {
  const int first = slice_depth(at.warp, 4 * at.k), second = slice_depth(at.warp, 32 + 4 * at.k),
            third = slice_depth(at.warp, 64 + 2 * at.k);
  const float* row = columns.first;
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    // From where the last row was: addresses worked out in advance would fill the registers.
    asm volatile("" : "+l"(row));
    const bool exists = i < columns.count;
    const float4 low = prefetch_quad(row + first, exists && first < width);
    const float4 high = prefetch_quad(row + second, exists && second < width);
    const float2 rest = prefetch_pair(row + third, exists && third < width);
    weights[i][0] = low.x, weights[i][1] = low.y, weights[i][2] = low.z, weights[i][3] = low.w;
    weights[i][4] = high.x, weights[i][5] = high.y, weights[i][6] = high.z, weights[i][7] = high.w;
    weights[i][8] = rest.x, weights[i][9] = rest.y;
    row += columns.stride;
  }
}

// The same weights in shared memory, in the order of the `entries` lanes that own them.
template <int Count>
__device__ inline void keep_columns(const float (&weights)[Count][kLaneDepth], void* store, int entries,
                                    int entry) {
  auto* quads = static_cast<float4*>(store) + entry;
  auto* pairs = reinterpret_cast<float2*>(static_cast<float4*>(store) + 2 * Count * entries) + entry;
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const float (&w)[kLaneDepth] = weights[i];
    quads[2 * i * entries] = {w[0], w[1], w[2], w[3]};
    quads[(2 * i + 1) * entries] = {w[4], w[5], w[6], w[7]};
    pairs[i * entries] = {w[8], w[9]};
  }
}

template <int Count>
__device__ inline void read_kept(float (&weights)[Count][kLaneDepth], const void* store, int entries,
                                 int entry) {
  const auto* quads = static_cast<const float4*>(store) + entry;
  const auto* pairs =
      reinterpret_cast<const float2*>(static_cast<const float4*>(store) + 2 * Count * entries) + entry;
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const float4 low = quads[2 * i * entries], high = quads[(2 * i + 1) * entries];
    const float2 rest = pairs[i * entries];
    weights[i][0] = low.x, weights[i][1] = low.y, weights[i][2] = low.z, weights[i][3] = low.w;
    weights[i][4] = high.x, weights[i][5] = high.y, weights[i][6] = high.z, weights[i][7] = high.w;
    weights[i][8] = rest.x, weights[i][9] = rest.y;
  }
}

// Into registers before the waiting that follows; `offset` into shared memory is negative for weights that
// found no room there.
template <int Count>
__device__ inline void fetch_columns(const Context& c, float (&weights)[Count][kLaneDepth], int offset,
                                     int entries, int entry, const Columns& columns, int width,
                                     const Place& at) {
  if (offset >= 0) {
    read_kept(weights, c.at(offset), entries, entry);
  } else {
    read_columns(weights, columns, width, at);
  }
}

template <int Count>
__device__ inline void place_columns(const Context& c, int offset, int entries, int entry,
                                     const Columns& columns, int width, const Place& at) {
  float weights[Count][kLaneDepth];
  read_columns(weights, columns, width, at);
  keep_columns(weights, c.at(offset), entries, entry);
}

// Where a lane finds its part of a row.
struct LaneRow {
  const unsigned char* quads;
  const unsigned char* pair;
};

__device__ inline void read_row(float (&x)[kLaneDepth], const LaneRow& row) {
  const float4 low = *reinterpret_cast<const float4*>(row.quads);
  const float4 high = *reinterpret_cast<const float4*>(row.quads + 32 * sizeof(float));
  const float2 rest = *reinterpret_cast<const float2*>(row.pair);
  x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
  x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
  x[8] = rest.x, x[9] = rest.y;
}

// This warp's part of Rows rows (1, 2, 4 or 8) times the lane's columns: lane k gets row k % Rows. It
// multiplies this row and those that differ from it in one bit, in two, ...: of every two sums that differ in
// the lowest bit it keeps one and gives the other to the lane that wants it, then of those in the next bit.
// So a sum is always added up in the same order, whatever Rows is. A row is read while the one before is
// multiplied.
template <int Rows, int Count>
__device__ inline void multiply(const float (&weights)[Count][kLaneDepth], const float* slices, int k,
                                float (&sums)[Count]) {
  const auto lane_row = [&](int i) {
    const float* first = slices + (k % Rows ^ i) * kSlice;
    return LaneRow{reinterpret_cast<const unsigned char*>(first + 4 * k),
                   reinterpret_cast<const unsigned char*>(first + 64 + 2 * k)};
  };
  float next[kLaneDepth], kept[3][Count];
  read_row(next, lane_row(0));
#pragma unroll
  for (int row = 0; row < Rows; ++row) {
    float x[kLaneDepth];
#pragma unroll
    for (int d = 0; d < kLaneDepth; ++d) x[d] = next[d];
    if (row + 1 < Rows) read_row(next, lane_row(row + 1));
#pragma unroll
    for (int i = 0; i < Count; ++i) sums[i] = 0.0f;
#pragma unroll
    for (int d = 0; d < kLaneDepth; ++d) {
#pragma unroll
      for (int i = 0; i < Count; ++i) sums[i] = fmaf(weights[i][d], x[d], sums[i]);
    }
    bool complete = true;  // all sums that differ in lower bits are there
#pragma unroll
    for (int bit = 0; 1 << bit < Rows; ++bit) {
      if (!complete) continue;
#pragma unroll
      for (int i = 0; i < Count; ++i) {
        if ((row >> bit & 1) != 0) {
          sums[i] = kept[bit][i] + __shfl_xor_sync(kFullMask, sums[i], kColumnLanes << bit);
        } else {
          kept[bit][i] = sums[i];
        }
      }
      complete = (row >> bit & 1) != 0;
    }
  }
#pragma unroll
  for (int offset = Rows; offset < kDepthLanes; offset *= 2) {
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      sums[i] += __shfl_xor_sync(kFullMask, sums[i], offset * kColumnLanes);
    }
  }
}

// A lane's part of the slices of 8 rows: the quads at t of row g. `row` is null where there is nothing to
// read and 0 is to stand. The first attempt:
__device__ inline void request_rows(const Place& at, uint4 (&x)[kQuads], const float* row, int width) {
#pragma unroll
  for (int l = 0; l < kQuads; ++l) {
    const int depth = slice_depth(at.warp, 16 * l + 4 * at.t);
    x[l] = row != nullptr && depth < width ? empty_message() : uint4{0, 0, 0, 0};
    read_if_missing(x[l], row + depth);
  }
}

__device__ inline void await_rows(const Place& at, uint4 (&x)[kQuads], const float* row) {
  bool missing;
  int polls = 0;
  do {
    if (polls++ == kPatience) __trap();
#pragma unroll
    for (int l = 0; l < kQuads; ++l) {
      read_if_missing(x[l], row + slice_depth(at.warp, 16 * l + 4 * at.t));
    }
    missing = false;
#pragma unroll
    for (int l = 0; l < kQuads; ++l) missing |= is_missing(x[l]);
  } while (__any_sync(kFullMask, missing));
}

}  // namespace rnnt_fastdecode::cuda
