// Operand rows times weight rows for many rows of 16-bit elements, by a whole block: both come through a ring
// of stages in shared memory, so that every element is read from the L2 cache once for a tile of
// 8 * kTiles * kRowGroups operand rows x 32 * (8 / kRowGroups) weight rows. A stage holds eight vectors of
// each row. Each warp multiplies 8 * kTiles operand rows with 32 weight rows; where a lane's sums belong is
// told in warp_product.cuh.
//
// In a stage the two halves of every second row change places: the eight lanes that read at a time, from two
// neighbouring rows, find different banks.
#pragma once

#include "warp_product.cuh"
#include "wgmma.cuh"

namespace rnnt_fastdecode::cuda::product {

// The weight rows of a thread: one of each 32 of the block.
struct WeightRows {
  const uint4* first;
  int64_t step;  // vectors from one to the next
  int count;     // those after it count as zeros
};

template <typename T, int kTiles, int kRowGroups>
class BlockProduct {
 public:
  static constexpr int kColumnGroups = kWarps / kRowGroups;
  static constexpr int kRows = kTiles * kOctet * kRowGroups;
  static constexpr int kColumns = kColumnGroups * kWarpColumns;
  static constexpr int kSumTiles = kTiles;
  static constexpr int kVectors = 2 * kChunkVectors;  // of a row in a stage
  static constexpr int kStride = kVectors * kVectorBytes;
  static constexpr int kStageBytes = (kRows + kColumns) * kStride;
  // As many as a block has room for on every device, and two blocks on large ones.
  static constexpr int kStages = 96 * 1024 / kStageBytes;
  static constexpr int kBytes = kStages * kStageBytes;
  // A thread copies vector `threadIdx.x % kVectors` of every kStrip-th row.
  static constexpr int kStrip = kThreads / kVectors;
  static constexpr int kOwnRows = kRows / kStrip;
  static_assert(kRows % kStrip == 0 && kStrip == kWarpColumns);

  __device__ static int own_vector() { return threadIdx.x % kVectors; }
  // The first of the thread's rows.
  __device__ static int own_row() { return threadIdx.x / kVectors; }
  __device__ static int row_group() { return threadIdx.x / kWarp / kColumnGroups; }
  __device__ static int column_group() { return threadIdx.x / kWarp % kColumnGroups; }

  // Begins to copy the weights. vectors: of a row.
  __device__ BlockProduct(unsigned char* ring, const WeightRows& weights, int vectors)
      : ring_(ring), weights_(weights), vectors_(vectors) {
#pragma unroll
    for (int step = 0; step < kStages - 1; ++step) {
      copy_weights(step);
    }
  }

  // Adds the product of the first `count` rows to the sums. operands: the thread's operand rows, null for
  // none. prepare(step, values) may change the thread's own operand vectors of a step, which are uint4
  // values(i), before anyone reads them.
  template <typename Prepare>
  __device__ void multiply(float (&sums)[kTiles][kSums], int count, const uint4* const (&operands)[kOwnRows],
                           Prepare prepare) {
#pragma unroll
    for (int step = 0; step < kStages - 1; ++step) {
      copy_operands(step, operands);
      ptx::commit_copies();
    }
    const int steps = ceil_div(vectors_, kVectors);
    const bool is_busy = row_group() * kTiles * kOctet < count;
    const auto prepare_step = [&](int step) {
      ptx::wait_for_copies<kStages - 2>();
      if (step < steps) {
        unsigned char* own = place(step) + own_offset();
        prepare(step, [&](int i) -> uint4& { return *reinterpret_cast<uint4*>(own + i * kStrip * kStride); });
        if constexpr (kUsesWarpgroups) {
          wgmma::publish();
        }
      }
    };
    prepare_step(0);
    for (int step = 0; step < steps; ++step) {
      // Every warp has left the step before, whose place is filled anew.
      __syncthreads();
      if constexpr (kUsesWarpgroups) {
        begin_step(sums, place(step));
      }
      copy_weights(step + kStages - 1);
      copy_operands(step + kStages - 1, operands);
      ptx::commit_copies();
      if constexpr (kUsesWarpgroups) {
        wgmma::finish();
      } else if (is_busy) {
        multiply_step(sums, place(step));
      }
      prepare_step(step + 1);
    }
    // The ring is free for other use.
    __syncthreads();
  }

  // Instead of multiply: a block must not end before its copies.
  __device__ static void give_up() {
    ptx::commit_copies();
    ptx::wait_for_copies<0>();
  }

 private:
  // Where the block's columns are those of a warpgroup.
  static constexpr bool kUsesWarpgroups =
      wgmma::kExists && kColumnGroups == 4 && (kTiles == 4 || kTiles == 8);
  static constexpr int kWarpgroupRows = 64;
  // Bytes between the rows of a thread in one column group and in the next.
  static constexpr int kWeightStrip = (kUsesWarpgroups ? 2 * kOctet : kStrip) * kStride;

  __device__ unsigned char* place(int step) const { return ring_ + step % kStages * kStageBytes; }

  // Of chunk `chunk` of a row whose number in its octet is `row`.
  __device__ static int chunk_offset(int row, int chunk) {
    return row * kStride + (chunk ^ (row & 1)) * kChunkBytes;
  }

  __device__ static int own_offset() {
    if constexpr (kUsesWarpgroups) {
      return own_row() * kStride + (own_vector() ^ own_row() % kOctet) * kVectorBytes;
    }
    return chunk_offset(own_row(), own_vector() / kChunkVectors) +
           own_vector() % kChunkVectors * kVectorBytes;
  }

  __device__ void copy_operands(int step, const uint4* const (&operands)[kOwnRows]) const {
    const int v = step * kVectors + own_vector();
    if (step * kVectors < vectors_) {
      unsigned char* own = place(step) + own_offset();
#pragma unroll
      for (int i = 0; i < kOwnRows; ++i) {
        const bool wanted = v < vectors_ && operands[i] != nullptr;
        ptx::copy_async(own + i * kStrip * kStride, wanted ? operands[i] + v : weights_.first, wanted);
      }
    }
  }

  __device__ void copy_weights(int step) const {
    const int v = step * kVectors + own_vector();
    if (step * kVectors < vectors_) {
      unsigned char* own = place(step) + kRows * kStride + own_offset();
      if constexpr (kUsesWarpgroups) {
        // Two octets of every column group, then the other two.
        own += own_row() / (2 * kOctet) * (kWarpgroupRows - 2 * kOctet) * kStride;
      }
#pragma unroll
      for (int i = 0; i < kColumnGroups; ++i) {
        const bool wanted = v < vectors_ && i < weights_.count;
        ptx::copy_async(own + i * kWeightStrip, weights_.first + (wanted ? i * weights_.step + v : 0),
                        wanted);
      }
    }
  }

  // Begins the products of the warp's warpgroup: of two octets of each column group, then of the others.
  __device__ void begin_step(float (&sums)[kTiles][kSums], const unsigned char* stage) const {
    constexpr int kDepths = 4;
    const uint64_t rows = wgmma::descriptor(stage + row_group() * kTiles * kOctet * kStride);
    const uint64_t low = wgmma::descriptor(stage + kRows * kStride);
    const uint64_t high = wgmma::descriptor(stage + (kRows + kWarpgroupRows) * kStride);
    wgmma::begin();
#pragma unroll
    for (int depth = 0; depth < kDepths; ++depth) {
      wgmma::Product<T, 0, kTiles>::add(sums, low + 2 * depth, rows + 2 * depth);
      wgmma::Product<T, 1, kTiles>::add(sums, high + 2 * depth, rows + 2 * depth);
    }
  }

  __device__ void multiply_step(float (&sums)[kTiles][kSums], const unsigned char* stage) const {
    const int lane = threadIdx.x % kWarp;
    TensorProduct<T, kTiles> product(sums);
#pragma unroll
    for (int chunk = 0; chunk < kVectors / kChunkVectors; ++chunk) {
      const unsigned char* lanes =
          stage + chunk_offset(lane / kChunkVectors, chunk) + lane % kChunkVectors * kVectorBytes;
      const unsigned char* weights = lanes + (kRows + column_group() * kWarpColumns) * kStride;
      uint4 left[kOctets];
#pragma unroll
      for (int octet = 0; octet < kOctets; ++octet) {
        left[octet] = *reinterpret_cast<const uint4*>(weights + octet * kOctet * kStride);
      }
      product.load(left);
      product.multiply(lanes + row_group() * kTiles * kOctet * kStride, kStride);
    }
  }

  unsigned char* ring_;
  WeightRows weights_;
  int vectors_;
};

}  // namespace rnnt_fastdecode::cuda::product
