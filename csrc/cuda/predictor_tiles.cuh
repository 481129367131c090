// The prediction network in large tiles, on tensor cores for bf16 and fp16: LSTM and GRU of these types,
// stateless predictors of any.
#pragma once

#include <cuda_runtime.h>

#include "predictor_step.cuh"

namespace rnnt_fastdecode::cuda {

// Whether the kernels take this problem: rows of 16-byte vectors, and tiles that fit the current device.
template <typename T>
bool recurrent_tiles_support(const RecurrentProblem& problem);

template <typename T>
bool stateless_tiles_support(const StatelessProblem& problem);

template <typename T>
cudaError_t launch_recurrent_tiles(const RecurrentProblem& problem, cudaStream_t stream);

// The projection of the context as it is with the new labels; the context itself stays.
template <typename T>
cudaError_t launch_stateless_tiles(const StatelessProblem& problem, cudaStream_t stream);

}  // namespace rnnt_fastdecode::cuda
