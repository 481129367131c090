// The last blocks load rows. The others multiply: with few frames each owns 8 * kTiles frames and 32 columns
// of the joint for each of its column groups, and has every load on its way at once (streamed_operand.cuh).
// With more frames it owns a tile whose frames and columns both come through shared memory
// (block_product.cuh, in fp32 split_block.cuh).

#include <algorithm>
#include <type_traits>

#include "block_product.cuh"
#include "encoder_projection.cuh"
#include "numeric.cuh"
#include "row_copies.cuh"
#include "shared_memory.cuh"
#include "split_block.cuh"
#include "streamed_operand.cuh"
#include "tile_plan.cuh"
#include "weight_stream.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

using namespace product;

// As measured on an H200. For more frames a library's product makes up for what it costs the host to call it,
// but for that of splits in fp32.
template <typename T>
constexpr int kMostFrames = std::is_same_v<T, float> ? 1800 : 6000;
// Streamed up to here, in fp32 where warpgroup products can take over.
template <typename T>
constexpr int kMostStreamedFrames = std::is_same_v<T, float> ? 300 : 192;
// Tiles of 64 frames up to here, then of 128; in fp32 always of 128.
constexpr int kMostInSmallTiles = 3200;
constexpr int kRowGroups = 2;  // of a tile
// Of a multiprocessor; without warpgroup products a block needs its registers alone.
constexpr int kTileBlocks = wgmma::kExists ? 2 : 1;
// Blocks that load the counters or one state tensor, at most.
constexpr int kLoadBlocks = 8;

// product_blocks blocks with `groups` column groups each, column_blocks of them for the same frames. Those
// after them load rows: multiplying takes longer, and has the multiprocessors to itself.
struct Shares {
  int product_blocks;
  int column_blocks;
  int groups;
};

__device__ inline void load_share(const LoadProblem& load, const Shares& shares) {
  const int items = load.state.count + 1;
  const int block = blockIdx.x - shares.product_blocks, blocks = gridDim.x - shares.product_blocks;
  load_item(load, block % items, {block / items, blocks / items});
}

template <typename T, int kTiles>
__device__ inline void project(const EncoderProjection& p, const Shares& shares, unsigned char* ring) {
  const int block = blockIdx.x;
  constexpr int kRows = kTiles * kOctet;
  __shared__ SourceRow sources[kRows];
  const int lane = threadIdx.x % kWarp;
  const int vectors = p.width / kVector<T>;
  const WarpShare share(shares.groups, threadIdx.x / kWarp);
  const int group = block % shares.column_blocks * shares.groups + share.column_group;
  const int first_column = group * kWarpColumns + lane / 4;
  int columns[kOctets];
#pragma unroll
  for (int octet = 0; octet < kOctets; ++octet) {
    columns[octet] = min(first_column + octet * kOctet, p.output_width - 1);
  }
  WeightStream<kAhead<T, kTiles>> weights;
  weights.start(p.weight, columns, {vectors}, share, lane);

  const int64_t first_row = static_cast<int64_t>(block / shares.column_blocks) * kRows;
  const int count = static_cast<int>(min(static_cast<int64_t>(kRows), p.rows - first_row));
  if (threadIdx.x < count) {
    sources[threadIdx.x] = {static_cast<const uint4*>(p.frames) + (first_row + threadIdx.x) * vectors,
                            nullptr};
  }
  __syncthreads();
  float sums[kTiles][kSums] = {};
  StreamedOperand<T, kTiles> operand(ring, sources, count, vectors, vectors, share, lane);
  multiply<T>(sums, weights, operand.chunks(), operand, lane);

  float biases[kOctets];
#pragma unroll
  for (int octet = 0; octet < kOctets; ++octet) {
    biases[octet] = p.bias == nullptr ? 0.0f : to_float(static_cast<const T*>(p.bias)[columns[octet]]);
  }
  add_k_groups(sums, reinterpret_cast<float*>(ring), share, lane);
  const auto store = [&](int tile, const float (&column_sums)[kSums]) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int row = tile * kOctet + lane % 4 * 2 + j;
      if (row < count) {
        T* output = static_cast<T*>(p.output) + (first_row + row) * p.output_width;
#pragma unroll
        for (int octet = 0; octet < kOctets; ++octet) {
          if (first_column + octet * kOctet < p.output_width) {
            output[columns[octet]] = from_float<T>(column_sums[2 * octet + j] + biases[octet]);
          }
        }
      }
    }
  };
  for_own_tiles(share, store, sums);
}

template <typename T, int kTiles>
__global__ void __launch_bounds__(kThreads, 1)
    load_and_project_kernel(const __grid_constant__ LoadProblem load,
                            const __grid_constant__ EncoderProjection p,
                            const __grid_constant__ Shares shares) {
  extern __shared__ __align__(16) unsigned char ring[];
  if (blockIdx.x < shares.product_blocks) {
    project<T, kTiles>(p, shares, ring);
  } else {
    load_share(load, shares);
  }
}

// One tile: 128 columns, 64 or 128 frames.
template <typename T, int kTiles>
__device__ inline void project_tile(const EncoderProjection& p, const Shares& shares, unsigned char* ring) {
  const int block = blockIdx.x;
  using Tile = BlockProduct<T, kTiles, kRowGroups>;
  const int vectors = p.width / kVector<T>;
  const int first_column = block % shares.column_blocks * Tile::kColumns;
  const int columns = min(Tile::kColumns, p.output_width - first_column);
  const int own = min(Tile::own_row(), columns - 1);
  Tile tile(ring,
            {static_cast<const uint4*>(p.weight) + static_cast<int64_t>(first_column + own) * vectors,
             static_cast<int64_t>(Tile::kStrip) * vectors, ceil_div(columns - Tile::own_row(), Tile::kStrip)},
            vectors);

  const int64_t first_row = static_cast<int64_t>(block / shares.column_blocks) * Tile::kRows;
  const int count = static_cast<int>(min(static_cast<int64_t>(Tile::kRows), p.rows - first_row));
  const uint4* frames[Tile::kOwnRows];
#pragma unroll
  for (int i = 0; i < Tile::kOwnRows; ++i) {
    const int row = Tile::own_row() + i * Tile::kStrip;
    frames[i] = row < count ? static_cast<const uint4*>(p.frames) + (first_row + row) * vectors : nullptr;
  }
  float sums[Tile::kSumTiles][kSums] = {};
  tile.multiply(sums, count, frames, [](int, auto) {});

  // By way of shared memory, so that rows are written in whole vectors.
  constexpr int kRowElements = Tile::kColumns + kVector<T>;
  T* rounded = reinterpret_cast<T*>(ring);
  const int lane = threadIdx.x % kWarp;
  const int first_own = Tile::row_group() * kTiles * kOctet + lane % 4 * 2;
#pragma unroll
  for (int octet = 0; octet < kOctets; ++octet) {
    const int column = Tile::column_group() * kWarpColumns + octet * kOctet + lane / 4;
    const bool biased = p.bias != nullptr && column < columns;
    const float bias = biased ? to_float(static_cast<const T*>(p.bias)[first_column + column]) : 0.0f;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        rounded[(first_own + t * kOctet + j) * kRowElements + column] =
            from_float<T>(sums[t][2 * octet + j] + bias);
      }
    }
  }
  __syncthreads();
  constexpr int kRowVectors = Tile::kColumns / kVector<T>;
  for (int i = threadIdx.x; i < count * kRowVectors; i += kThreads) {
    const int row = i / kRowVectors, column = i % kRowVectors * kVector<T>;
    if (column < columns) {
      T* output = static_cast<T*>(p.output) + (first_row + row) * p.output_width + first_column + column;
      *reinterpret_cast<uint4*>(output) = *reinterpret_cast<uint4*>(rounded + row * kRowElements + column);
    }
  }
}

template <typename T, int kTiles>
__global__ void __launch_bounds__(kThreads, kTileBlocks)
    load_and_project_tiles_kernel(const __grid_constant__ LoadProblem load,
                                  const __grid_constant__ EncoderProjection p,
                                  const __grid_constant__ Shares shares) {
  extern __shared__ __align__(1024) unsigned char tile_ring[];
  if (blockIdx.x < shares.product_blocks) {
    project_tile<T, kTiles>(p, shares, tile_ring);
  } else {
    load_share(load, shares);
  }
}

template <typename Part>
__device__ inline void project_split(const EncoderProjection& p, const Shares& shares, unsigned char* ring) {
  if constexpr (wgmma::kExists) {
    using Block = SplitBlock<Part>;
    const int block = blockIdx.x, vectors = p.width / kVector<float>;
    const int64_t first_row = static_cast<int64_t>(block / shares.column_blocks) * Block::kRows;
    const int first_column = block % shares.column_blocks * Block::kColumns;
    const Block product{
        .rows = static_cast<const float4*>(p.frames) + first_row * vectors,
        .columns = static_cast<const float4*>(p.weight) + static_cast<int64_t>(first_column) * vectors,
        .row_count = static_cast<int>(min(static_cast<int64_t>(Block::kRows), p.rows - first_row)),
        .column_count = min(Block::kColumns, p.output_width - first_column),
        .vectors = vectors,
        .ring = ring};
    typename Block::Sums sums = {};
    product.multiply(sums);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = product.column(i / 2, i % 2);
      if (column >= product.column_count) continue;
      const float bias = p.bias == nullptr ? 0.0f : static_cast<const float*>(p.bias)[first_column + column];
      float* const output =
          static_cast<float*>(p.output) + first_row * p.output_width + first_column + column;
#pragma unroll
      for (int tile = 0; tile < Block::kTiles; ++tile) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int row = product.row(tile, j);
          if (row < product.row_count) {
            output[static_cast<int64_t>(row) * p.output_width] = sums[tile][2 * i + j] + bias;
          }
        }
      }
    }
  }
}

template <typename Part>
__global__ void __launch_bounds__(kThreads, 1)
    load_and_project_split_kernel(const __grid_constant__ LoadProblem load,
                                  const __grid_constant__ EncoderProjection p,
                                  const __grid_constant__ Shares shares) {
  static_assert(SplitBlock<Part>::kThreads == kThreads);
  extern __shared__ __align__(1024) unsigned char split_ring[];
  if (blockIdx.x < shares.product_blocks) {
    project_split<Part>(p, shares, split_ring);
  } else {
    load_share(load, shares);
  }
}

template <typename T>
TilePlan plan_projection(const Product& product) {
  const DeviceLimits limits = DeviceLimits::query();
  TilePlan best;
  for (int groups = 1; groups <= kWarps; groups *= 2) {
    const TilePlan plan = plan_for_groups<T>(product, groups, limits, [](int tiles) {
      int bytes = 0;
      with_tiles<T>(tiles, [&]<int kTiles>() {
        bytes = kStreamBytes<kTiles> + static_cast<int>(kTiles * kOctet * sizeof(SourceRow));
        return cudaSuccess;
      });
      return bytes;
    });
    best = plan.cycles < best.cycles ? plan : best;
  }
  return best;
}

// The plan of the last call with these sizes in this thread and on this device, or a new one.
template <typename T>
const TilePlan& plan_for(const Product& product) {
  struct Planned {
    Product product{};
    int device = -1;
    TilePlan plan;
  };
  thread_local Planned last;
  int device = 0;
  cudaGetDevice(&device);
  if (last.device != device || last.product.rows != product.rows || last.product.columns != product.columns ||
      last.product.depth != product.depth) {
    last = {product, device, plan_projection<T>(product)};
  }
  return last.plan;
}

// Of the current device.
bool has_warpgroups() {
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  return major == 9;
}

int load_blocks(const LoadProblem& load) {
  int64_t most = 1;
  for (int i = 0; i < load.state.count; ++i) {
    most = std::max(most, load.state.part[i].outer * load.state.batch);
  }
  return static_cast<int>(std::min<int64_t>(most, kLoadBlocks)) * (load.state.count + 1);
}

}  // namespace

template <typename T>
bool projection_supports(const EncoderProjection& p) {
  const bool splits = std::is_same_v<T, float> && has_warpgroups();
  return p.rows <= (splits ? INT32_MAX : kMostFrames<T>) && p.width % kVector<T> == 0 &&
         are_vectors(p.frames) && are_vectors(p.weight);
}

template <typename T>
cudaError_t launch_load_and_project(const LoadProblem& load, const EncoderProjection& p,
                                    cudaStream_t stream) {
  const auto launch = [&](auto kernel, int row_blocks, int column_blocks, int groups, int shared_bytes) {
    const cudaError_t error = allow_shared_memory(kernel);
    if (error != cudaSuccess) {
      return error;
    }
    const Shares shares{row_blocks * column_blocks, column_blocks, groups};
    kernel<<<shares.product_blocks + load_blocks(load), kThreads, shared_bytes, stream>>>(load, p, shares);
    return cudaGetLastError();
  };
  const int rows = static_cast<int>(p.rows);
  if constexpr (!std::is_same_v<T, float>) {
    const auto in_tiles = [&]<int kTiles>() {
      using Tile = BlockProduct<T, kTiles, kRowGroups>;
      return launch(load_and_project_tiles_kernel<T, kTiles>, ceil_div(rows, Tile::kRows),
                    ceil_div(p.output_width, Tile::kColumns), 1, Tile::kBytes);
    };
    if (rows > kMostInSmallTiles && p.output_width % kVector<T> == 0) {
      return in_tiles.template operator()<8>();
    }
    if (rows > kMostStreamedFrames<T> && p.output_width % kVector<T> == 0) {
      return in_tiles.template operator()<4>();
    }
  } else if (rows > kMostStreamedFrames<T> && has_warpgroups()) {
    using Tile = SplitBlock<__nv_bfloat16>;
    return launch(load_and_project_split_kernel<__nv_bfloat16>, ceil_div(rows, Tile::kRows),
                  ceil_div(p.output_width, Tile::kColumns), 1, Tile::kBytes);
  }
  const Product product{rows, p.output_width, p.width};
  const TilePlan& plan = plan_for<T>(product);
  return with_tiles<T>(plan.tiles, [&]<int kTiles>() {
    return launch(load_and_project_kernel<T, kTiles>, plan.row_blocks(product), plan.column_blocks(product),
                  plan.groups, kStreamBytes<kTiles>);
  });
}

#define INSTANTIATE(T)                                            \
  template bool projection_supports<T>(const EncoderProjection&); \
  template cudaError_t launch_load_and_project<T>(const LoadProblem&, const EncoderProjection&, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(__nv_bfloat16)
INSTANTIATE(__half)
#undef INSTANTIATE

}  // namespace rnnt_fastdecode::cuda
