// Masked rounds of the greedy loop for large batches: 16-bit elements, LSTM or GRU, the predictor's rounds
// prepared ahead.
#pragma once

#include "greedy_rounds.cuh"
#include "recurrent_blocks.cuh"

namespace rnnt_fastdecode::cuda {

// room: for how many partials of each row there is memory.
template <typename T>
bool ahead_rounds_support(const GreedyProblem& problem, const AheadProblem& ahead, int room);

template <typename T>
cudaError_t launch_ahead_rounds(GreedyProblem problem, const AheadProblem& ahead, int rounds,
                                cudaStream_t stream);

}  // namespace rnnt_fastdecode::cuda
