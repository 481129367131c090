// One launch each: a row of blocks (blockIdx.y) for every state tensor, and one more for the counters.
//
// A state tensor is [outer, rows, bytes]; a block copies whole (outer, row) pieces, its threads side by side
// in the widest words that the addresses and sizes allow.

#include <algorithm>

#include "state_rows.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMaxBlocks = 1024;

template <typename Word>
__device__ void copy_piece(const char* from, char* to, int64_t bytes) {
  const int64_t words = bytes / sizeof(Word);
  for (int64_t i = threadIdx.x; i < words; i += kThreads) {
    reinterpret_cast<Word*>(to)[i] = reinterpret_cast<const Word*>(from)[i];
  }
}

__device__ void copy_rows(const StatePart& part, int batch) {
  const auto from_start = reinterpret_cast<uintptr_t>(part.from);
  const auto to_start = reinterpret_cast<uintptr_t>(part.to);
  const uintptr_t grain = from_start | to_start | static_cast<uintptr_t>(part.row_bytes);
  const int64_t pieces = part.outer * batch;
  for (int64_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    const int64_t block = piece / batch, row = piece % batch;
    const int64_t source = block * part.from_rows + (part.from_rows == 1 ? 0 : row);
    const int64_t target = block * part.to_rows + row;
    const char* from = static_cast<const char*>(part.from) + source * part.row_bytes;
    char* to = static_cast<char*>(part.to) + target * part.row_bytes;
    if (grain % sizeof(int4) == 0) {
      copy_piece<int4>(from, to, part.row_bytes);
    } else if (grain % sizeof(int) == 0) {
      copy_piece<int>(from, to, part.row_bytes);
    } else {
      copy_piece<char>(from, to, part.row_bytes);
    }
  }
}

__device__ int first_row() { return blockIdx.x * kThreads + threadIdx.x; }
__device__ int row_stride() { return gridDim.x * kThreads; }

__device__ void load_counters(const LoadProblem& p) {
  for (int row = first_row(); row < p.rows; row += row_stride()) {
    int length = 0;
    if (row < p.state.batch) {
      const int64_t given = p.wide_lengths ? static_cast<const int64_t*>(p.lengths)[row]
                                           : static_cast<const int*>(p.lengths)[row];
      length = static_cast<int>(min(max(given, int64_t{0}), static_cast<int64_t>(p.frames)));
      p.times[row] = p.time_jumps[p.one_time_jump ? 0 : row];
    }
    p.row_lengths[row] = length;
    p.symbols[row] = 0;
    p.counts[row] = 0;
  }
}

__global__ void __launch_bounds__(kThreads) load_rows_kernel(const __grid_constant__ LoadProblem p) {
  if (static_cast<int>(blockIdx.y) < p.state.count) {
    copy_rows(p.state.part[blockIdx.y], p.state.batch);
  } else {
    load_counters(p);
  }
}

__device__ void save_counters(const SaveProblem& p) {
  for (int row = first_row(); row < p.state.batch; row += row_stride()) {
    const int length = p.row_lengths[row];
    p.time_jumps[row] = max(p.times[row] - length, 0);
    p.decoded[row] = p.decoded_lengths[p.one_decoded_length ? 0 : row] + length;
  }
}

__global__ void __launch_bounds__(kThreads) save_rows_kernel(const __grid_constant__ SaveProblem p) {
  if (static_cast<int>(blockIdx.y) < p.state.count) {
    copy_rows(p.state.part[blockIdx.y], p.state.batch);
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
