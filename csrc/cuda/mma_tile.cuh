// The matrix primitive of the decoder on tensor cores, for bf16 and fp16: kWarpColumns weight rows in device
// memory times 8 * kTiles operand rows in shared memory, by one warp, accumulated in fp32.
//
// Weights are the left operand of `mma`, so that a handful of operand rows does not waste it. The 32 weight
// rows of a warp are four octets, which need not lie together: for an LSTM they are the four gates of eight
// units. The depth is cut into chunks of 32 elements. Which 16 of them an `mma` takes, and in which order, is
// free as long as both operands agree: lane 4 g + t takes elements 8t .. 8t + 7 of row g, one 16-byte access,
// and feeds the first half of them to one `mma` and the second half to another.
//
// The eight warps of a block are column_groups x k_groups: warps of one column group share their columns and
// take every k_groups-th chunk. add_k_groups adds their sums up.
//
// sums[tile][2 * octet + j] of lane 4 g + t belongs to weight row g of the octet and to operand row
// 8 * tile + 2t + j.
#pragma once

#include <cstdint>
#include <iterator>

#include "ptx.cuh"

namespace rnnt_fastdecode::cuda::mma {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr unsigned kFullMask = 0xffffffffu;
constexpr int kOctet = 8;
constexpr int kOctets = 4;
constexpr int kWarpColumns = kOctet * kOctets;
constexpr int kChunk = 32;       // elements of depth
constexpr int kLaneDepth = 8;    // elements of 16 bytes
constexpr int kChunkBytes = 64;  // of one row

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Bytes from row to row of an operand of `depth` elements in shared memory. Eight lanes read 64 bytes of two
// neighbouring rows at a time: an odd number of 64 bytes puts these into different banks.
__host__ __device__ constexpr int row_stride(int depth) {
  return ceil_div(depth, kChunk) * kChunkBytes | kChunkBytes;
}

// What a warp of the block does when `groups` column groups are left to share.
struct WarpShare {
  int column_group;
  int k_group;
  int k_groups;

  __host__ __device__ WarpShare(int groups, int warp) : k_groups(1) {
    while (k_groups < kWarps && groups * k_groups * 2 <= kWarps) {
      k_groups *= 2;
    }
    column_group = warp / k_groups;
    k_group = warp % k_groups;
  }

  // Chunks of the depth that are the warp's.
  __host__ __device__ int chunks(int depth) const {
    return ceil_div(max(ceil_div(depth, kChunk) - k_group, 0), k_groups);
  }
};

// A lane's weights on their way through registers: kAhead chunks are loaded before they are needed.
template <typename T, int kAhead>
class WeightStream {
 public:
  uint4 chunks[kAhead][kOctets];

  // rows: the lane's row of each octet, 16-byte aligned. Takes chunks first, first + step, ...
  __device__ void start(const T* const (&rows)[kOctets], int depth, int first, int step, int lane) {
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      rows_[octet] = rows[octet];
    }
    depth_ = depth;
    next_ = first * kChunk + lane % 4 * kLaneDepth;
    step_ = step * kChunk;
#pragma unroll
    for (int slot = 0; slot < kAhead; ++slot) {
      load(slot);
    }
  }

  // Fills a slot with the next chunk, zeros beyond the depth.
  __device__ void load(int slot) {
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      chunks[slot][octet] =
          next_ < depth_ ? __ldg(reinterpret_cast<const uint4*>(rows_[octet] + next_)) : uint4{0, 0, 0, 0};
    }
    next_ += step_;
  }

 private:
  const T* rows_[kOctets];
  int depth_;
  int next_;
  int step_;
};

// A chunk of weights as `mma` takes them: left operand i of octets 2 (i / 2) and the next, the first or the
// second half of the lane's elements.
struct LeftOperands {
  uint32_t words[kOctets][4];

  __device__ explicit LeftOperands(const uint4 (&chunk)[kOctets]) {
#pragma unroll
    for (int pair = 0; pair < kOctets; pair += 2) {
      const uint4& low = chunk[pair];
      const uint4& high = chunk[pair + 1];
      set(words[pair], low.x, high.x, low.y, high.y);
      set(words[pair + 1], low.z, high.z, low.w, high.w);
    }
  }

  template <typename T>
  __device__ void multiply(float (&sums)[2 * kOctets], const uint4& operand) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int pair = 0; pair < kOctets; pair += 2) {
        ptx::mma<T>(sums + 2 * pair, words[pair + half], half == 0 ? operand.x : operand.z,
                    half == 0 ? operand.y : operand.w);
      }
    }
  }

 private:
  __device__ static void set(uint32_t (&to)[4], uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    to[0] = a;
    to[1] = b;
    to[2] = c;
    to[3] = d;
    ptx::settle(to);
  }
};

// Adds `count` chunks of the product to the sums. operand.chunk(i) is where the lane finds its 16 bytes of
// the warp's i-th chunk, in the first tile; the other tiles follow at operand.tile_bytes.
template <typename T, int kTiles, int kAhead, typename Operand>
__device__ inline void multiply(float (&sums)[kTiles][2 * kOctets], WeightStream<T, kAhead>& weights,
                                int count, Operand& operand) {
  for (int first = 0; first < count; first += kAhead) {
#pragma unroll
    for (int slot = 0; slot < kAhead; ++slot) {
      if (first + slot < count) {
        const unsigned char* place = operand.chunk(first + slot);
        const LeftOperands left(weights.chunks[slot]);
        weights.load(slot);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          left.multiply<T>(sums[tile], *reinterpret_cast<const uint4*>(place + tile * operand.tile_bytes));
        }
      }
    }
  }
}

// Operand rows that lie in shared memory as a whole.
class ResidentOperand {
 public:
  int tile_bytes;

  __device__ ResidentOperand(const unsigned char* rows, int depth, const WarpShare& share, int lane)
      : tile_bytes(kOctet * row_stride(depth)),
        place_(rows + lane / 4 * row_stride(depth) + lane % 4 * 16 + share.k_group * kChunkBytes),
        step_(share.k_groups * kChunkBytes) {}

  __device__ const unsigned char* chunk(int i) const { return place_ + i * step_; }

 private:
  const unsigned char* place_;
  int step_;
};

// Bytes of shared memory that add_k_groups needs, whatever the number of groups.
__host__ __device__ constexpr int exchange_bytes(int tiles) {
  return (kWarps - 1) * tiles * 2 * kOctets * kWarp * static_cast<int>(sizeof(float));
}

__host__ __device__ constexpr bool owns_tile(const WarpShare& share, int tile) {
  return (tile & (share.k_groups - 1)) == share.k_group;
}

// Each warp gives its sums to the others of its column group, except those of the tiles that it owns: these
// are complete afterwards. The order of the additions does not depend on the owner. The whole block takes
// part, and the exchange memory is free again after the next barrier.
template <int kTiles>
__device__ inline void add_k_groups(float (&sums)[kTiles][2 * kOctets], float* exchange,
                                    const WarpShare& share, int lane) {
  if (share.k_groups == 1) {
    return;
  }
  constexpr int kSums = 2 * kOctets;
  const int others = share.k_groups - 1;
  float* own = exchange + share.column_group * kTiles * others * kSums * kWarp + lane;
  __syncthreads();
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    if (!owns_tile(share, tile)) {
      const int owner = tile & others;
      float* slot = own + (tile * others + share.k_group - (share.k_group > owner ? 1 : 0)) * kSums * kWarp;
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        slot[i * kWarp] = sums[tile][i];
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    if (owns_tile(share, tile)) {
      const float* slot = own + tile * others * kSums * kWarp;
      float total[kSums] = {};
      for (int group = 0; group < share.k_groups; ++group) {
#pragma unroll
        for (int i = 0; i < kSums; ++i) {
          total[i] += group == share.k_group ? sums[tile][i] : slot[i * kWarp];
        }
        slot += group == share.k_group ? 0 : kSums * kWarp;
      }
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        sums[tile][i] = total[i];
      }
    }
  }
}

// Calls visit(tile, values...) for each tile that the warp owns, with the tile's share of each array. A loop
// that is not unrolled, through which the values move down to constant places: the code of `visit` is long,
// and registers cannot be indexed.
template <int kTiles, typename Visit, int... kValues>
__device__ inline void for_own_tiles(const WarpShare& share, Visit visit,
                                     float (&... arrays)[kTiles][kValues]) {
  constexpr int kStep = kTiles < 2 ? 1 : 2;
#pragma unroll 1
  for (int first = 0; first < kTiles; first += kStep) {
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      if (owns_tile(share, first + i)) {
        visit(first + i, arrays[i]...);
      }
    }
    const auto move_down = [](auto& array) {
#pragma unroll
      for (int tile = 0; tile + kStep < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < static_cast<int>(std::size(array[tile])); ++i) {
          array[tile][i] = array[tile + kStep][i];
        }
      }
    };
    (move_down(arrays), ...);
  }
}

// Finds places first .. first + kPlaces - 1 of the list of all items, in which batch row b has count(b) of
// them: calls place(i, b, n) where item n of row b belongs at first + i. Returns the length of the list, or
// a number beyond these places. The whole block takes part; what `place` writes is visible after a barrier.
template <int kPlaces, typename Count, typename Place>
__device__ inline int find_items(int batch, int first, Count count, Place place) {
  __shared__ int warp_totals[2][kWarps];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  int before = 0;
  for (int base = 0; base < batch && before < first + kPlaces; base += kThreads) {
    const int row = base + static_cast<int>(threadIdx.x);
    const int own = row < batch ? count(row) : 0;
    int start = own;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int lower = __shfl_up_sync(kFullMask, start, offset);
      start += lane >= offset ? lower : 0;
    }
    // Two sets of totals in turn: a warp may be a step ahead of another.
    int (&totals)[kWarps] = warp_totals[base / kThreads % 2];
    if (lane == kWarp - 1) {
      totals[warp] = start;
    }
    __syncthreads();
    start += before - own;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      start += w < warp ? totals[w] : 0;
      before += totals[w];
    }
    for (int n = max(0, first - start); n < own && start + n < first + kPlaces; ++n) {
      place(start + n - first, row, n);
    }
  }
  return before;
}

}  // namespace rnnt_fastdecode::cuda::mma
