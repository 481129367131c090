// One warp for a row, a few consecutive rows for a block; every record, of a row or of a label, is 16 bytes.
//
// Where the labels of a block begin is the sum of all counts before it. Each block adds those up itself,
// which needs no scratch memory and no order among blocks; with large batches a block takes more rows, so
// that the counts are not read too often.
//
// The host's records are written to its memory from here: a copy behind this kernel would cost more time.

#include <algorithm>

#include "dependent_launch.cuh"
#include "pack_labels.cuh"
#include "ptx.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
// Blocks that are worth it: a few on each multiprocessor.
constexpr int kMaxBlocks = 1024;
constexpr unsigned kAllLanes = 0xffffffff;

__device__ int clamped_count(const PackProblem& p, int row) { return min(max(p.counts[row], 0), p.capacity); }

// The sum over the lanes of a warp, in every lane.
template <typename Number>
__device__ Number warp_sum(Number value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, step);
  }
  return value;
}

// Labels in rows begin .. end-1, counted by the lanes `lane`, `lane` + stride, ...: a part of the sum.
__device__ int count_part(const PackProblem& p, int begin, int end, int lane, int stride) {
  int sum = 0;
  for (int row = begin + lane; row < end; row += stride) {
    sum += clamped_count(p, row);
  }
  return sum;
}

__device__ int length_as_given(const PackProblem& p, int row) {
  if (not p.wide_lengths) {
    return static_cast<const int*>(p.lengths)[row];
  }
  const int64_t length = static_cast<const int64_t*>(p.lengths)[row];
  return static_cast<int>(min(max(length, static_cast<int64_t>(INT32_MIN)), static_cast<int64_t>(INT32_MAX)));
}

__device__ void store(const PackProblem& p, int64_t place, const int4& record) {
  p.packed[place] = record;
  if (place < p.host_records) p.host[place] = record;
}

__device__ void pack_row(const PackProblem& p, int row, int begin, int lane) {
  const int count = clamped_count(p, row);
  const int64_t decoded = p.decoded_lengths[p.one_decoded_length ? 0 : row];
  const int before = static_cast<int>(decoded);
  const int64_t table = static_cast<int64_t>(row) * p.capacity;
  double score = 0;
  for (int i = lane; i < count; i += kWarp) {
    const float log_prob = p.log_probs[table + i];
    score += log_prob;
    if (begin + i < p.room) {
      store(p, static_cast<int64_t>(p.batch) + begin + i,
            make_int4(p.tokens[table + i], p.frames[table + i] + before, p.token_durations[table + i],
                      __float_as_int(log_prob)));
    }
  }
  score = warp_sum(score);
  if (lane == 0) {
    store(p, row,
          make_int4(begin, count, __float_as_int(static_cast<float>(score)), length_as_given(p, row)));
    if (p.ends.time_jumps != nullptr) end_row(p.ends, row, decoded);
  }
}

__global__ void __launch_bounds__(kThreads) pack_labels_kernel(PackProblem p, int rows_per_block) {
  __shared__ int partial[kWarps];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int first = blockIdx.x * rows_per_block;
  const int end = min(first + rows_per_block, p.batch);
  ptx::wait_for_kernel_before();

  const int part = warp_sum(count_part(p, 0, first, threadIdx.x, kThreads));
  if (lane == 0) {
    partial[warp] = part;
  }
  __syncthreads();
  int before = 0;
  for (int i = 0; i < kWarps; ++i) {
    before += partial[i];
  }
  for (int row = first + warp; row < end; row += kWarps) {
    pack_row(p, row, before + warp_sum(count_part(p, first, row, lane, kWarp)), lane);
  }
}

}  // namespace

cudaError_t launch_pack_labels(const PackProblem& problem, cudaStream_t stream) {
  const int per_warp = std::max(1, (problem.batch + kMaxBlocks * kWarps - 1) / (kMaxBlocks * kWarps));
  const int rows_per_block = per_warp * kWarps;
  const int blocks = (problem.batch + rows_per_block - 1) / rows_per_block;
  return launch_dependent(pack_labels_kernel, dim3(blocks), kThreads, 0, true, stream, problem,
                          rows_per_block);
}

}  // namespace rnnt_fastdecode::cuda
