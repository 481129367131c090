// Joint + argmax over a window of frames: launchers, and the partial results that the greedy loop merges
// itself.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "numeric.cuh"

namespace rnnt_fastdecode::cuda {

// What one block knows of one row (batch row x window frame) after its share of the columns.
struct JointPartial {
  float token_max;
  int token;
  float token_sum;  // sum of exp(logit - token_max)
  float duration_max;
  int duration;
};

struct JointProblem {
  const void* encoder;    // [B, T, J], rows `encoder_batch_stride` elements apart
  const void* predictor;  // [B, J]
  const void* weight;     // [V + N, J]
  const void* bias;       // [V + N] or null
  const int* times;       // [B]
  const int* lengths;     // [B]
  int64_t encoder_batch_stride;
  int batch;
  int frames;  // T
  int width;   // J
  int num_tokens;
  int num_durations;
  int window;
  Activation activation;

  __host__ __device__ int rows() const { return batch * window; }
  __host__ __device__ int columns() const { return num_tokens + num_durations; }
};

// What tells the greedy loop to go on: the number of active rows, and the conditional node of a CUDA graph.
struct LoopSignal {
  int* active = nullptr;             // [1], or null outside of the loop
  unsigned long long condition = 0;  // 0 = none

  __device__ void set_condition(bool go_on) const {
    if (condition != 0) {
      cudaGraphSetConditional(condition, go_on ? 1 : 0);
    }
  }

  __device__ void clear() const {
    if (active != nullptr) {
      *active = 0;
      set_condition(false);
    }
  }
};

// Blocks along the columns; the partials are [rows, column_splits].
template <typename T>
int joint_column_splits(const JointProblem& problem, int multiprocessors);

// Clears the signal: the kernel after it counts the active rows.
template <typename T>
cudaError_t launch_joint_partials(const JointProblem& problem, JointPartial* partials, int splits,
                                  const LoopSignal& signal, cudaStream_t stream);

cudaError_t launch_joint_finish(const JointProblem& problem, const JointPartial* partials, int splits,
                                int* tokens, int* durations, float* log_probs, cudaStream_t stream);

__device__ inline JointPartial empty_partial() { return {-INFINITY, INT32_MAX, 0.0f, -INFINITY, INT32_MAX}; }

// log-sum-exp pieces in units of exp(max): exp(-inf - -inf) must count as nothing, not as NaN.
__device__ inline float rescaled(float sum, float from, float to) {
  return sum == 0.0f || from == to ? sum : sum * expf(from - to);
}

__device__ inline JointPartial merge(const JointPartial& a, const JointPartial& b) {
  JointPartial out = a;
  if (comes_before(b.token_max, b.token, a.token_max, a.token)) {
    out.token_max = b.token_max;
    out.token = b.token;
  }
  out.token_sum =
      rescaled(a.token_sum, a.token_max, out.token_max) + rescaled(b.token_sum, b.token_max, out.token_max);
  if (comes_before(b.duration_max, b.duration, a.duration_max, a.duration)) {
    out.duration_max = b.duration_max;
    out.duration = b.duration;
  }
  return out;
}

__device__ inline JointPartial shuffled(const JointPartial& partial, int offset,
                                        unsigned mask = 0xffffffffu) {
  return {__shfl_xor_sync(mask, partial.token_max, offset), __shfl_xor_sync(mask, partial.token, offset),
          __shfl_xor_sync(mask, partial.token_sum, offset),
          __shfl_xor_sync(mask, partial.duration_max, offset),
          __shfl_xor_sync(mask, partial.duration, offset)};
}

// The whole warp merges the partials of one row; every lane returns the result.
__device__ inline JointPartial merge_row(const JointPartial* partials, int splits, int lane) {
  JointPartial total = empty_partial();
  for (int split = lane; split < splits; split += 32) {
    total = merge(total, partials[split]);
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    total = merge(total, shuffled(total, offset));
  }
  return total;
}

// The chosen token's logit is the maximum, so its log-probability is minus the log of the sum.
__device__ inline float chosen_log_prob(const JointPartial& total) { return -logf(total.token_sum); }

}  // namespace rnnt_fastdecode::cuda
