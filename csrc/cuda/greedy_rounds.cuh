// Masked rounds of the greedy loop: joint over a window, walk to the first label, predictor step, for every
// row.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "joint_argmax.cuh"
#include "predictor_step.cuh"

namespace rnnt_fastdecode::cuda {

constexpr int kMaxDurations = 64;

struct GreedyProblem {
  JointProblem joint;  // joint.predictor is the predictor's output, joint.times is `times`
  int blank_id;
  int max_symbols;
  int capacity;  // C
  int durations[kMaxDurations];
  int* times;            // [B]
  int* symbols;          // [B] labels already emitted at frame times[b]
  int* tokens;           // [B, C]
  int* frames;           // [B, C]
  int* token_durations;  // [B, C]
  float* log_probs;      // [B, C]
  int* counts;           // [B]
  int* labels;           // [B] scratch: the label of this round, -1 = none
  JointPartial* partials;
  int splits;
  LoopSignal signal;
};

struct RowState {
  int time;
  int symbols;
};

// Where the row stands after a label of `duration` frames: a frame that has emitted max_symbols labels is
// left.
__device__ inline RowState after_label(RowState state, int duration, int max_symbols) {
  if (duration > 0) {
    return {state.time + duration, 0};
  }
  if (state.symbols + 1 >= max_symbols) {
    return {state.time + 1, 0};
  }
  return {state.time, state.symbols + 1};
}

// Walks every row to its first label and counts the rows that are not done.
cudaError_t launch_advance(const GreedyProblem& problem, cudaStream_t stream);

// For a batch without rows.
cudaError_t launch_clear_signal(const LoopSignal& signal, cudaStream_t stream);

// `step` launches the predictor for the rows with a label: labels, then stream.
template <typename T, typename Step>
cudaError_t launch_greedy_rounds(const GreedyProblem& problem, int rounds, Step step, cudaStream_t stream) {
  for (int round = 0; round < rounds; ++round) {
    cudaError_t error =
        launch_joint_partials<T>(problem.joint, problem.partials, problem.splits, problem.signal, stream);
    if (error == cudaSuccess) {
      error = launch_advance(problem, stream);
    }
    if (error == cudaSuccess) {
      error = step(stream);
    }
    if (error != cudaSuccess) {
      return error;
    }
  }
  return cudaSuccess;
}

}  // namespace rnnt_fastdecode::cuda
