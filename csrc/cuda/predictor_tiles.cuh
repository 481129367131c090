// The prediction network in large tiles, on tensor cores for bf16 and fp16.
#pragma once

#include <cuda_runtime.h>

#include "predictor_step.cuh"

namespace rnnt_fastdecode::cuda {

// Whether the kernels take this problem: rows of 16-byte vectors, and tiles that fit the current device.
template <typename T>
bool lstm_tiles_supports(const RecurrentProblem& problem);

template <typename T>
bool stateless_tiles_supports(const StatelessProblem& problem);

template <typename T>
cudaError_t launch_lstm_tiles(const RecurrentProblem& problem, cudaStream_t stream);

// The projection of the context as it is with the new labels; the context itself stays.
template <typename T>
cudaError_t launch_stateless_tiles(const StatelessProblem& problem, cudaStream_t stream);

}  // namespace rnnt_fastdecode::cuda
