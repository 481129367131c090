// A block's product of two fp32 matrices, both row-major along the depth, by warpgroup products of exact
// splits (split.cuh): 128 rows times 128 columns. A stage of both lies in shared memory as three planes, of
// the high, middle and low parts; while it is multiplied, the next one is loaded and split.
#pragma once

#include "split.cuh"
#include "wgmma.cuh"

namespace rnnt_fastdecode::cuda {

// Part: bf16; devices without warpgroup products have no use for it.
template <typename Part>
struct SplitBlock {
  static constexpr int kRows = 128, kColumns = 128;
  static constexpr int kThreads = 256;
  static constexpr int kDepth = 64;   // of a stage, whose large products are one sum
  static constexpr int kVectors = 8;  // of 8 numbers, of a row in a stage
  static constexpr int kStride = 128;
  static constexpr int kPlaneBytes = (kRows + kColumns) * kStride;
  static constexpr int kStageBytes = 3 * kPlaneBytes;
  static constexpr int kBytes = 2 * kStageBytes;
  // A thread loads one vector of every kStrip-th row, of frames and then of columns.
  static constexpr int kStrip = kThreads / kVectors;
  static constexpr int kOwnRows = kRows / kStrip;
  static constexpr int kTiles = 8;           // of 8 rows, of a warpgroup
  static constexpr int kWarpgroupRows = 64;  // and columns of a product

  // A thread's sums: of row(tile, j) and column(half, i) at [tile][4 half + 2 i + j].
  using Sums = float[kTiles][8];

  const float4* rows;     // [row_count, vectors]
  const float4* columns;  // [column_count, vectors]
  int row_count;
  int column_count;
  int vectors;          // of 4 numbers
  unsigned char* ring;  // kBytes, from a multiple of 1024 on

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;

  __device__ int first_row() const { return warp / 4 * kWarpgroupRows; }
  __device__ int row(int tile, int j) const { return first_row() + 8 * tile + 2 * (lane % 4) + j; }
  __device__ int column(int half, int i) const {
    return half * kWarpgroupRows + warp % 4 * 16 + lane / 4 + 8 * i;
  }

  __device__ float4 load(const float4* matrix, int count, int row, int v) const {
    const bool wanted = row < count && v < vectors;
    return wanted ? __ldg(matrix + static_cast<int64_t>(row) * vectors + v) : float4{};
  }

  // Splits this thread's vectors of both matrices into a stage.
  __device__ void fill(int stage) const {
    const int vector = threadIdx.x % kVectors, strip = threadIdx.x / kVectors;
    const int v = (stage * kVectors + vector) * 2;
    unsigned char* const own = ring + stage % 2 * kStageBytes + strip * kStride +
                               (vector ^ strip % 8) * static_cast<int>(sizeof(uint4));
#pragma unroll 1
    for (int i = 0; i < kOwnRows; ++i) {
      const int index = strip + i * kStrip;
      const float4 numbers[2][2] = {
          {load(rows, row_count, index, v), load(rows, row_count, index, v + 1)},
          {load(columns, column_count, index, v), load(columns, column_count, index, v + 1)}};
#pragma unroll
      for (int matrix = 0; matrix < 2; ++matrix) {
        const auto& [low, high] = numbers[matrix];
        uint32_t part[3][4];
        split_pair(part, 0, low.x, low.y);
        split_pair(part, 1, low.z, low.w);
        split_pair(part, 2, high.x, high.y);
        split_pair(part, 3, high.z, high.w);
#pragma unroll
        for (int plane = 0; plane < 3; ++plane) {
          *reinterpret_cast<uint4*>(own + plane * kPlaneBytes + (matrix * kRows + i * kStrip) * kStride) = {
              part[plane][0], part[plane][1], part[plane][2], part[plane][3]};
        }
      }
    }
  }

  // sums += columns' part kColumn x rows' part kRow, over a stage.
  template <int kColumn, int kRow>
  __device__ void add(Sums& sums, const unsigned char* stage) const {
    const uint64_t rows = wgmma::descriptor(stage + kRow * kPlaneBytes + first_row() * kStride);
    const unsigned char* const first_column = stage + kColumn * kPlaneBytes + kRows * kStride;
    const uint64_t low = wgmma::descriptor(first_column);
    const uint64_t high = wgmma::descriptor(first_column + kWarpgroupRows * kStride);
#pragma unroll
    for (int step = 0; step < kDepth / kStepDepth; ++step) {
      wgmma::Product<Part, 0, kTiles>::add(sums, low + 2 * step, rows + 2 * step);
      wgmma::Product<Part, 1, kTiles>::add(sums, high + 2 * step, rows + 2 * step);
    }
  }

  __device__ void multiply(Sums& sums) const {
    const int stages = (vectors + 2 * kVectors - 1) / (2 * kVectors);
    fill(0);
    wgmma::publish();
#pragma unroll 1
    for (int stage = 0; stage < stages; ++stage) {
      __syncthreads();
      const unsigned char* const own = ring + stage % 2 * kStageBytes;
      Sums high = {}, rest = {};
      wgmma::begin();
      add<1, 1>(rest, own);
      add<2, 0>(rest, own);
      add<0, 2>(rest, own);
      add<1, 0>(rest, own);
      add<0, 1>(rest, own);
      add<0, 0>(high, own);
      // Whoever multiplied the stage before, whose place is filled anew, has finished.
      if (stage + 1 < stages) fill(stage + 1);
      wgmma::finish();
      wgmma::publish();
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[tile][i] += whole_sum(high[tile][i], rest[tile][i]);
      }
    }
  }
};

}  // namespace rnnt_fastdecode::cuda
