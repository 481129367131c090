// The resident kernel under the ops that run it.
#pragma once

#include "problems.h"
#include "resident/resident.cuh"

namespace rnnt_fastdecode {

// How a batch is cut into launches: as many rows at a time as one takes, then those that are left.
struct Launches {
  int most;  // rows
  cuda::ResidentPlan full, last;
  int64_t scratch_bytes;  // 0 where the kernel cannot run
};

// The plan of the last call with these sizes in this thread, or a new one. It stays until the next call.
const Launches& launches_for(const PredictorSizes& predictor, const cuda::JointProblem& joint, int device);

// What the kernel reads of the predictor, as in ResidentProblem.
struct ResidentConstants {
  const void *gate_table, *tables, *weight, *bias, *projection, *projection_bias;
};

// weight(i): where the predictor's tensor i lies.
template <typename Weight>
ResidentConstants resident_constants(PredictorKind kind, const void* gate_table, Weight weight) {
  const bool lstm = kind == PredictorKind::kLstm;
  return {.gate_table = gate_table,
          .tables = weight(0),
          .weight = lstm ? weight(1) : nullptr,
          .bias = lstm ? weight(2) : nullptr,
          .projection = weight(lstm ? 3 : 1),
          .projection_bias = weight(lstm ? 4 : 2)};
}

// The problem of a whole batch. state: what the predictor carries, where the kernel updates it, as it does
// output.
cuda::ResidentProblem resident_problem(const PredictorSizes& predictor, const cuda::GreedyProblem& greedy,
                                       const ResidentConstants& constants, const std::vector<Tensor>& state,
                                       const Tensor& output);

void check_alignment(const CallContext& call, const char* name, const void* pointer, int64_t row_bytes = 0);

void launch_rows(const CallContext& call, const Launches& launches, const cuda::ResidentProblem& batch,
                 ScalarType dtype, cudaStream_t stream);

// greedy_rounds_ with rounds = -1: `greedy` knows the buffers, workspace is (gate_table, scratch).
void run_resident(const CallContext& call, const GreedySizes& sizes, const cuda::GreedyProblem& greedy,
                  const std::vector<Tensor>& weights, const std::vector<Tensor>& state, const Tensor& output,
                  const std::vector<Tensor>& workspace);

}  // namespace rnnt_fastdecode
