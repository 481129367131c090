// The rules of greedy RNN-T and TDT decoding, one warp for a row.
//
// The joint has judged the next W frames of a row with the predictor output that the row has now. That output
// stays valid over blanks, so the walk follows blanks (RNN-T: one frame each; TDT: their duration, at least
// one) and stops at the first label, at the end of the window or at the end of the row. Frames that a TDT
// jump passes over are never merged. The joint kernel before this one has set *active to 0.

#include "greedy_rounds.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) advance_kernel(GreedyProblem p) {
  const int row = (blockIdx.x * kThreads + threadIdx.x) / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (row >= p.joint.batch) {
    return;
  }
  const int length = min(p.joint.lengths[row], p.joint.frames);
  const int start = p.times[row];
  const int count = p.counts[row];
  RowState state{start, p.symbols[row]};
  int label = -1;
  if (count < p.capacity) {
    while (label < 0 && state.time < length && state.time - start < p.joint.window) {
      const int64_t joint_row = static_cast<int64_t>(row) * p.joint.window + state.time - start;
      const JointPartial best = merge_row(p.partials + joint_row * p.splits, p.splits, lane);
      const int duration = p.joint.num_durations > 0 ? p.durations[best.duration] : 0;
      if (best.token == p.blank_id) {
        state = {state.time + max(duration, 1), 0};
        continue;
      }
      label = best.token;
      if (lane == 0) {
        const int64_t index = static_cast<int64_t>(row) * p.capacity + count;
        p.tokens[index] = label;
        p.frames[index] = state.time;
        p.token_durations[index] = duration;
        p.log_probs[index] = chosen_log_prob(best);
      }
      state = after_label(state, duration, p.max_symbols);
    }
  }
  if (lane == 0) {
    const int new_count = count + (label >= 0 ? 1 : 0);
    p.labels[row] = label;
    p.times[row] = state.time;
    p.symbols[row] = state.symbols;
    p.counts[row] = new_count;
    if (state.time < length && new_count < p.capacity) {
      atomicAdd(p.active, 1);
    }
  }
}

__global__ void set_condition_kernel(const int* active, cudaGraphConditionalHandle condition) {
  cudaGraphSetConditional(condition, *active != 0 ? 1 : 0);
}

}  // namespace

cudaError_t launch_advance(const GreedyProblem& problem, cudaStream_t stream) {
  constexpr int kRowsPerBlock = kThreads / kWarp;
  const int blocks = (problem.joint.batch + kRowsPerBlock - 1) / kRowsPerBlock;
  advance_kernel<<<blocks, kThreads, 0, stream>>>(problem);
  return cudaGetLastError();
}

cudaError_t launch_set_condition(const int* active, unsigned long long condition, cudaStream_t stream) {
  set_condition_kernel<<<1, 1, 0, stream>>>(active, condition);
  return cudaGetLastError();
}

}  // namespace rnnt_fastdecode::cuda
