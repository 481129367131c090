// Joint + argmax in large tiles, on tensor cores for bf16 and fp16.
#pragma once

#include <cuda_runtime.h>

#include "joint_argmax.cuh"

namespace rnnt_fastdecode::cuda {

// Whether the kernel takes this problem: rows of 16-byte vectors, and a tile that fits the current device.
template <typename T>
bool joint_tiles_supports(const JointProblem& problem);

// Blocks along the columns for the current device.
template <typename T>
int joint_tiles_column_splits(const JointProblem& problem);

template <typename T>
cudaError_t launch_joint_tiles(const JointProblem& problem, JointPartial* partials, int splits,
                               const LoopSignal& signal, cudaStream_t stream);

}  // namespace rnnt_fastdecode::cuda
