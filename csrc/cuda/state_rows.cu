// One launch each: a row of blocks (blockIdx.y) for every state tensor, and one more for the counters.

#include <algorithm>

#include "row_copies.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMaxBlocks = 1024;

__device__ BlockShare share() { return {static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x)}; }

__global__ void __launch_bounds__(kThreads) load_rows_kernel(const __grid_constant__ LoadProblem p) {
  load_item(p, blockIdx.y, share());
}

__device__ void save_counters(const SaveProblem& p) {
  for (int row = blockIdx.x * kThreads + threadIdx.x; row < p.state.batch; row += gridDim.x * kThreads) {
    end_row({p.times, p.row_lengths, p.time_jumps, p.decoded}, row,
            p.decoded_lengths[p.one_decoded_length ? 0 : row]);
  }
}

__global__ void __launch_bounds__(kThreads) save_rows_kernel(const __grid_constant__ SaveProblem p) {
  if (static_cast<int>(blockIdx.y) < p.state.count) {
    copy_rows(p.state.part[blockIdx.y], p.state.batch, share());
  } else {
    save_counters(p);
  }
}

dim3 grid(const StateParts& state, int rows) {
  int64_t pieces = (rows + kThreads - 1) / kThreads;
  for (int i = 0; i < state.count; ++i) {
    pieces = std::max(pieces, state.part[i].outer * state.batch);
  }
  return dim3(static_cast<unsigned>(std::clamp<int64_t>(pieces, 1, kMaxBlocks)), state.count + 1);
}

}  // namespace

cudaError_t launch_load_rows(const LoadProblem& problem, cudaStream_t stream) {
  load_rows_kernel<<<grid(problem.state, problem.rows), kThreads, 0, stream>>>(problem);
  return cudaGetLastError();
}

cudaError_t launch_save_rows(const SaveProblem& problem, cudaStream_t stream) {
  save_rows_kernel<<<grid(problem.state, problem.state.batch), kThreads, 0, stream>>>(problem);
  return cudaGetLastError();
}

}  // namespace rnnt_fastdecode::cuda
