// Launchers of the kernels that serve every batch.

#include "advance.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

__global__ void clear_signal_kernel(LoopSignal signal) { signal.clear(); }

}  // namespace

cudaError_t launch_advance(const GreedyProblem& problem, cudaStream_t stream) {
  return launch_advance(problem, NoStep{}, stream);
}

cudaError_t launch_clear_signal(const LoopSignal& signal, cudaStream_t stream) {
  clear_signal_kernel<<<1, 1, 0, stream>>>(signal);
  return cudaGetLastError();
}

}  // namespace rnnt_fastdecode::cuda
