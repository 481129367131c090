// Which tile of operand rows x weight rows a block takes: the shape with the least estimated time.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <limits>

#include "warp_product.cuh"

namespace rnnt_fastdecode::cuda::product {

// Octets of operand rows that kernels are made for. A lane's float sums take four times the registers.
constexpr int kTileChoices[] = {1, 2, 4, 8, 12};
template <typename T>
constexpr int kMostTiles = std::is_same_v<T, float> ? 4 : 12;

struct DeviceLimits {
  int multiprocessors = 1;
  int shared_bytes = 0;  // of one block

  // Of the current device.
  static DeviceLimits query() {
    DeviceLimits limits;
    int device = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device);
    cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    return limits;
  }
};

struct Product {
  int rows;     // operand rows
  int columns;  // weight rows
  int depth;
};

// Cycles of all blocks together, when each of them takes 8 * tiles rows and `groups` groups of kWarpColumns
// columns. The rates are those of an H200: what one multiprocessor and what all of them can read from the L2
// cache, and the multiply-adds of one, each for a cycle.
template <typename T>
double estimated_cycles(const Product& product, int tiles, int groups, const DeviceLimits& limits) {
  constexpr double kStart = 1500, kBlockBytes = 48, kDeviceBytes = 3000, kSharedBytes = 128,
                   kMultiplyAdds = std::is_same_v<T, float> ? 90 : 1200;
  const double rows = kOctet * tiles;
  const double blocks = static_cast<double>(ceil_div(product.rows, kOctet * tiles)) *
                        ceil_div(ceil_div(product.columns, kWarpColumns), groups);
  const double waves = ceil_div(static_cast<int>(blocks), limits.multiprocessors);
  const double row_bytes = static_cast<double>(sizeof(T)) * product.depth;
  // The last groups of a block share its warps among them.
  const int last = groups % kWarps;
  const WarpShare share(last, 0);
  const double busy_groups = groups - last + (last == 0 ? 0 : kWarps / share.k_groups);
  const double multiply = rows * kWarpColumns * busy_groups * product.depth / kMultiplyAdds;
  const double load = groups * kWarpColumns * row_bytes / kBlockBytes;
  const double exchange =
      last == 0 ? 0 : 2.0 * (kWarps - kWarps / share.k_groups) * rows * kWarpColumns * 4 / kSharedBytes;
  const double block = kStart + rows * row_bytes / kBlockBytes + std::max(multiply, load) + exchange;
  const double traffic = blocks * (rows + groups * kWarpColumns) * row_bytes / kDeviceBytes;
  return std::max(waves * block, kStart + traffic);
}

struct TilePlan {
  int tiles = 0;   // 0: no tile fits
  int groups = 1;  // of kWarpColumns columns, for each block
  double cycles = std::numeric_limits<double>::infinity();

  int row_blocks(const Product& product) const { return ceil_div(product.rows, kOctet * tiles); }
  int column_blocks(const Product& product) const { return ceil_div(product.columns, kWarpColumns * groups); }
};

// The best plan with this number of groups for each block. shared(tiles): bytes of shared memory of a block.
template <typename T, typename Shared>
TilePlan plan_for_groups(const Product& product, int groups, const DeviceLimits& limits, Shared shared) {
  TilePlan best;
  for (const int tiles : kTileChoices) {
    const double cycles = estimated_cycles<T>(product, tiles, groups, limits);
    if (tiles <= kMostTiles<T> && shared(tiles) <= limits.shared_bytes && cycles < best.cycles) {
      best = {tiles, groups, cycles};
    }
  }
  return best;
}

// Calls launch.template operator()<kTiles>() for the planned number of tiles.
template <typename T, typename Launch>
cudaError_t with_tiles(int tiles, Launch launch) {
  switch (tiles) {
    case 1:
      return launch.template operator()<1>();
    case 2:
      return launch.template operator()<2>();
    case 4:
      return launch.template operator()<4>();
    default:
      if constexpr (kMostTiles<T> > 4) {
        return tiles == 8 ? launch.template operator()<8>() : launch.template operator()<12>();
      }
      return cudaErrorInvalidValue;
  }
}

}  // namespace rnnt_fastdecode::cuda::product
