// The resident kernel under the ops that run it.
#pragma once

#include "problems.h"

namespace rnnt_fastdecode {

// greedy_rounds_ with rounds = -1: `greedy` knows the buffers, workspace is (gate_table, scratch).
void run_resident(const CallContext& call, const GreedySizes& sizes, const cuda::GreedyProblem& greedy,
                  const std::vector<Tensor>& weights, const std::vector<Tensor>& state, const Tensor& output,
                  const std::vector<Tensor>& workspace);

}  // namespace rnnt_fastdecode
