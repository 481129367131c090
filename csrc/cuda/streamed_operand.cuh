// Operand rows of a product that come from device memory as they are: copied through a ring of stages in
// shared memory, of kStageVectors vectors of each row, while earlier stages are multiplied.
#pragma once

#include <algorithm>

#include "warp_product.cuh"

namespace rnnt_fastdecode::cuda::product {

constexpr int kStageChunks = 8;
constexpr int kStageVectors = kStageChunks * kChunkVectors;
constexpr int kStageStride = row_stride(kStageVectors);
static_assert(kStageChunks % kWarps == 0 && kStageVectors == kWarp,
              "each k group has chunks in every stage, and a warp copies a row of one at a time");

template <int kTiles>
constexpr int kStages = kTiles <= 8 ? 4 : 3;

// An operand row: `width` vectors at `first`, then those at `second` if there are more.
struct SourceRow {
  const uint4* first;
  const uint4* second;
};

template <typename T, int kTiles>
class StreamedOperand {
 public:
  static constexpr int stride = kStageStride;

  // Begins to copy rows of `vectors` vectors. Rows from `count` on and what lies beyond `vectors` are 0.
  __device__ StreamedOperand(unsigned char* ring, const SourceRow* rows, int count, int width, int vectors,
                             const WarpShare& share, int lane)
      : ring_(ring),
        rows_(rows),
        count_(count),
        width_(width),
        vectors_(vectors),
        k_groups_(share.k_groups),
        offset_(WarpProduct<T, kTiles>::operand_offset(lane, kStageStride) + share.k_group * kChunkBytes) {
#pragma unroll
    for (int stage = 0; stage < kStages<kTiles> - 1; ++stage) {
      copy(stage);
    }
  }

  // Chunks of the warp: the same number for each, so that all of them come to the barriers.
  __device__ int chunks() const { return ceil_div(vectors_, kStageVectors) * (kStageChunks / k_groups_); }

  __device__ const unsigned char* chunk(int i) {
    const int chunk = i * k_groups_;
    if (chunk % kStageChunks == 0) {
      advance(chunk / kStageChunks);
    }
    return place(chunk / kStageChunks) + offset_ + chunk % kStageChunks * kChunkBytes;
  }

 private:
  __device__ unsigned char* place(int stage) const {
    return ring_ + stage % kStages<kTiles> * (kTiles * kOctet * kStageStride);
  }

  __device__ void copy(int stage) {
    const int lane = threadIdx.x % kWarp;
    const int v = stage * kStageVectors + lane;
    if (stage * kStageVectors < vectors_) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const int r = i * kWarps + static_cast<int>(threadIdx.x) / kWarp;
        const bool wanted = r < count_ && v < vectors_;
        const SourceRow row = rows_[wanted ? r : 0];
        const uint4* source = !wanted ? row.first : v < width_ ? row.first + v : row.second + (v - width_);
        ptx::copy_async(place(stage) + r * kStageStride + lane * kVectorBytes, source, wanted);
      }
    }
    ptx::commit_copies();
  }

  // Waits for a stage, and refills the place of the one before it, which every warp has left by then.
  __device__ void advance(int stage) {
    ptx::wait_for_copies<kStages<kTiles> - 2>();
    __syncthreads();
    copy(stage + kStages<kTiles> - 1);
  }

  unsigned char* ring_;
  const SourceRow* rows_;
  int count_;
  int width_;
  int vectors_;
  int k_groups_;
  int offset_;
};

// Shared memory of the ring, which serves add_k_groups afterwards.
template <int kTiles>
constexpr int kStreamBytes =
    std::max(kStages<kTiles> * kTiles * kOctet * kStageStride, exchange_bytes(kTiles));

}  // namespace rnnt_fastdecode::cuda::product
