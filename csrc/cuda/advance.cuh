// The rules of greedy RNN-T and TDT decoding, one block for a row.
//
// The joint has judged the next W frames of a row with the predictor output that the row has now. That output
// stays valid over blanks, so the walk follows blanks (RNN-T: one frame each; TDT: their duration, at least
// one) and stops at the first label, at the end of the window or at the end of the row. The warps merge the
// partial results of kAdvanceWarps frames at a time, each of them one, without knowing yet which frames the
// walk will see: what it passes over, or what lies beyond the row, is merged in vain. Every thread takes the
// walk.

#pragma once

#include <algorithm>

#include "dependent_launch.cuh"
#include "greedy_rounds.cuh"
#include "ptx.cuh"

namespace rnnt_fastdecode::cuda {

constexpr int kAdvanceWarps = 8;
constexpr int kAdvanceThreads = kAdvanceWarps * 32;

// What follows in the same kernel for a row with a label: nothing.
struct NoStep {
  static constexpr int kWarps = 0;
  __device__ void operator()(int, int) const {}
};

template <typename Step>
__global__ void __launch_bounds__(kAdvanceThreads) advance_kernel(GreedyProblem p, Step step) {
  __shared__ JointPartial merged[kAdvanceWarps];
  ptx::wait_for_kernel_before();
  ptx::let_next_kernel_start();
  const int row = blockIdx.x;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int window = p.joint.window;
  const int length = min(p.joint.lengths[row], p.joint.frames);
  const int start = p.times[row];
  const int count = p.counts[row];
  const bool has_room = count < p.capacity;
  RowState state{start, p.symbols[row]};
  int label = -1;
  for (int first = 0; first < window && label < 0 && has_room; first += kAdvanceWarps) {
    __syncthreads();
    if (first + warp < window) {
      const int64_t joint_row = static_cast<int64_t>(row) * window + first + warp;
      const JointPartial best = merge_row(p.partials + joint_row * p.splits, p.splits, lane);
      if (lane == 0) {
        merged[warp] = best;
      }
    }
    __syncthreads();
    const int end = min(length, start + min(first + kAdvanceWarps, window));
    while (label < 0 && state.time < end) {
      const JointPartial& best = merged[state.time - start - first];
      const int duration = p.joint.num_durations > 0 ? p.durations[best.duration] : 0;
      if (best.token == p.blank_id) {
        state = {state.time + max(duration, 1), 0};
        continue;
      }
      label = best.token;
      if (threadIdx.x == 0) {
        const int64_t index = static_cast<int64_t>(row) * p.capacity + count;
        p.tokens[index] = label;
        p.frames[index] = state.time;
        p.token_durations[index] = duration;
        p.log_probs[index] = chosen_log_prob(best);
      }
      state = after_label(state, duration, p.max_symbols);
    }
  }
  // Every thread has read what thread 0 changes now.
  __syncthreads();
  if (threadIdx.x == 0) {
    const int new_count = count + (label >= 0 ? 1 : 0);
    p.labels[row] = label;
    p.times[row] = state.time;
    p.symbols[row] = state.symbols;
    p.counts[row] = new_count;
    if (p.signal.active != nullptr && state.time < length && new_count < p.capacity) {
      atomicAdd(p.signal.active, 1);
      p.signal.set_condition(true);
    }
  }
  if (label >= 0) {
    step(row, label);
  }
}

// Walks every row to its first label and counts the rows that are not done, for a signal if there is one.
// step(row, label) is called by the whole block of a row with a label, of Step::kWarps warps at least.
template <typename Step>
cudaError_t launch_advance(const GreedyProblem& problem, const Step& step, cudaStream_t stream) {
  // No more warps than frames.
  const int warps = std::max(std::min(problem.joint.window, kAdvanceWarps), Step::kWarps);
  const int rows = problem.joint.batch;
  return launch_dependent(advance_kernel<Step>, rows, warps * 32, 0, starts_early(rows), stream, problem,
                          step);
}

}  // namespace rnnt_fastdecode::cuda
