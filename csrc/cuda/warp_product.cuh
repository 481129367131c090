// The matrix primitive of the decoder: kWarpColumns weight rows in device memory times 8 * kTiles operand
// rows in shared memory, by one warp, accumulated in fp32. bf16 and fp16 go through the tensor cores, float
// through ordinary multiply-adds (true fp32, no TF32). Rows consist of whole, aligned 16-byte vectors.
//
// The 32 weight rows of a warp are four octets, which need not lie together: for an LSTM or a GRU they are
// those of the four sums of eight units. The depth is cut into chunks of four vectors, and lane 4 g + t loads
// vector t of row g of each octet. Tensor cores: the weights are the left operand of `mma`, so that a handful
// of operand rows does not waste it. Which elements an `mma` takes, and in which order, is free as long as
// both operands agree: the first half of every lane's vectors feeds one, the second half another. Float: a
// lane multiplies its vectors with those that all operand rows have at the same depth, and the four lanes of
// a weight row add up what they have at the end.
//
// The eight warps of a block are column_groups x k_groups: warps of one column group share their columns and
// take every k_groups-th chunk. add_k_groups adds their sums up.
//
// sums[tile][2 * octet + j] of lane 4 g + t belongs to weight row g of the octet and to operand row
// 8 * tile + 2t + j.
#pragma once

#include <cstdint>
#include <iterator>
#include <type_traits>

#include "ptx.cuh"

namespace rnnt_fastdecode::cuda::product {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr unsigned kFullMask = 0xffffffffu;
constexpr int kOctet = 8;
constexpr int kOctets = 4;
constexpr int kWarpColumns = kOctet * kOctets;
constexpr int kSums = 2 * kOctets;  // of a lane and a tile
constexpr int kVectorBytes = 16;
constexpr int kChunkVectors = 4;
constexpr int kChunkBytes = kChunkVectors * kVectorBytes;  // of one row

// Elements of a vector.
template <typename T>
constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(T));

// Whether a row-major matrix of whole vectors may lie there.
inline bool are_vectors(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % kVectorBytes == 0;
}

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Bytes from row to row of an operand of `vectors` vectors in shared memory. Eight lanes read 64 bytes of two
// neighbouring rows at a time: an odd number of 64 bytes puts these into different banks.
__host__ __device__ constexpr int row_stride(int vectors) {
  return ceil_div(vectors, kChunkVectors) * kChunkBytes | kChunkBytes;
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

  // Chunks of rows of `vectors` that are the warp's.
  __device__ int chunks(int vectors) const {
    return ceil_div(max(ceil_div(vectors, kChunkVectors) - k_group, 0), k_groups);
  }
};

// Multiplies chunks on tensor cores.
template <typename T, int kTiles>
class TensorProduct {
 public:
  // Where the lane finds its first vector of an operand.
  __device__ static int operand_offset(int lane, int stride) {
    return lane / kChunkVectors * stride + lane % kChunkVectors * kVectorBytes;
  }

  __device__ explicit TensorProduct(float (&sums)[kTiles][kSums]) : sums_(sums) {}

  __device__ void load(const uint4 (&chunk)[kOctets]) {
#pragma unroll
    for (int pair = 0; pair < kOctets; pair += 2) {
      const uint4& low = chunk[pair];
      const uint4& high = chunk[pair + 1];
      set(left_[pair], low.x, high.x, low.y, high.y);
      set(left_[pair + 1], low.z, high.z, low.w, high.w);
    }
  }

  __device__ void multiply(const unsigned char* operand, int stride) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint4 right = *reinterpret_cast<const uint4*>(operand + tile * kOctet * stride);
#pragma unroll
      for (int pair = 0; pair < kOctets; pair += 2) {
        ptx::mma<T>(sums_[tile] + 2 * pair, left_[pair], right.x, right.y);
      }
#pragma unroll
      for (int pair = 0; pair < kOctets; pair += 2) {
        ptx::mma<T>(sums_[tile] + 2 * pair, left_[pair + 1], right.z, right.w);
      }
    }
  }

  __device__ void finish(int) {}

 private:
  __device__ static void set(uint32_t (&to)[4], uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    to[0] = a;
    to[1] = b;
    to[2] = c;
    to[3] = d;
    ptx::settle(to);
  }

  float (&sums_)[kTiles][kSums];
  // The left operands of two octets: of the first halves of the vectors, then of the second.
  uint32_t left_[kOctets][4];
};

// Multiplies chunks of floats.
template <int kTiles>
class FloatProduct {
 public:
  __device__ static int operand_offset(int lane, int) { return lane % kChunkVectors * kVectorBytes; }

  __device__ explicit FloatProduct(float (&sums)[kTiles][kSums]) : sums_(sums), parts_{} {}

  __device__ void load(const uint4 (&chunk)[kOctets]) {
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      weights_[octet] = reinterpret_cast<const float4&>(chunk[octet]);
    }
  }

  __device__ void multiply(const unsigned char* operand, int stride) {
#pragma unroll
    for (int row = 0; row < kTiles * kOctet; ++row) {
      const float4 right = *reinterpret_cast<const float4*>(operand + row * stride);
#pragma unroll
      for (int octet = 0; octet < kOctets; ++octet) {
        float& part = parts_[row][octet];
        part = fmaf(weights_[octet].x, right.x, part);
        part = fmaf(weights_[octet].y, right.y, part);
        part = fmaf(weights_[octet].z, right.z, part);
        part = fmaf(weights_[octet].w, right.w, part);
      }
    }
  }

  // Lane t of a weight row keeps operand rows 2t and 2t + 1 of a tile: the upper two lanes give the lower two
  // rows 0 .. 3 for rows 4 .. 7, then neighbours do the like.
  __device__ void finish(int lane) {
    const bool upper = (lane & 2) != 0;
    const bool odd = (lane & 1) != 0;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int octet = 0; octet < kOctets; ++octet) {
        float half[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float low = parts_[tile * kOctet + i][octet];
          const float high = parts_[tile * kOctet + 4 + i][octet];
          half[i] = (upper ? high : low) + __shfl_xor_sync(kFullMask, upper ? low : high, 2);
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float low = half[j];
          const float high = half[2 + j];
          sums_[tile][2 * octet + j] += (odd ? high : low) + __shfl_xor_sync(kFullMask, odd ? low : high, 1);
        }
      }
    }
  }

 private:
  float (&sums_)[kTiles][kSums];
  float parts_[kTiles * kOctet][kOctets];
  float4 weights_[kOctets];
};

template <typename T, int kTiles>
using WarpProduct =
    std::conditional_t<std::is_same_v<T, float>, FloatProduct<kTiles>, TensorProduct<T, kTiles>>;

// Operand rows that lie in shared memory as a whole.
template <typename Product>
class ResidentOperand {
 public:
  int stride;

  __device__ ResidentOperand(const unsigned char* rows, int vectors, const WarpShare& share, int lane)
      : stride(row_stride(vectors)),
        place_(rows + Product::operand_offset(lane, stride) + share.k_group * kChunkBytes),
        step_(share.k_groups * kChunkBytes) {}

  __device__ const unsigned char* chunk(int i) const { return place_ + i * step_; }

 private:
  const unsigned char* place_;
  int step_;
};

// Bytes of shared memory that add_k_groups needs, whatever the number of groups.
__host__ __device__ constexpr int exchange_bytes(int tiles) {
  return (kWarps - 1) * tiles * kSums * kWarp * static_cast<int>(sizeof(float));
}

__host__ __device__ constexpr bool owns_tile(const WarpShare& share, int tile) {
  return (tile & (share.k_groups - 1)) == share.k_group;
}

// Each warp gives its sums to the others of its column group, except those of the tiles that it owns: these
// are complete afterwards. The order of the additions does not depend on the owner. The whole block takes
// part, and the exchange memory is free again after the next barrier.
template <int kTiles>
__device__ inline void add_k_groups(float (&sums)[kTiles][kSums], float* exchange, const WarpShare& share,
                                    int lane) {
  if (share.k_groups == 1) {
    return;
  }
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

}  // namespace rnnt_fastdecode::cuda::product
