// Fused joint + argmax: logits = act(encoder + predictor) . weight + bias, reduced to the best token, the
// best duration and the log-sum-exp of the tokens; the logits live in registers only.
//
// Rows are (batch row, window frame) pairs. A block owns kTileRows of them and a slice of the columns: it
// builds the activations once in shared memory (sum and activation each rounded to the element type, as
// separate torch kernels would), its warps walk the slice kTileColumns at a time, each lane keeps the running
// result of one row, and the block merges its lanes into one JointPartial for each row. Rows beyond the end
// of their utterance cost nothing where a whole tile of them lies together. Any widths and addresses; what
// consists of whole, aligned 16-byte vectors goes to the faster kernels of joint_tiles.cu.

#include <algorithm>

#include "joint_argmax.cuh"
#include "joint_tiles.cuh"
#include "shared_memory.cuh"
#include "tile_dot.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

constexpr int kWarps = 8;
static_assert(kWarps == kTileRows, "each warp builds one row of activations");
constexpr int kThreads = kWarps * kWarp;

struct Row {
  int batch;
  int frame;
  bool valid;
};

__device__ inline Row locate(const JointProblem& p, int row) {
  const int batch = row / p.window;
  if (batch >= p.batch) {
    return {0, 0, false};
  }
  const int frame = p.times[batch] + row % p.window;
  return {batch, frame, frame < min(p.lengths[batch], p.frames)};
}

__device__ inline void include(JointPartial& best, float logit, int column, int num_tokens) {
  if (column >= num_tokens) {
    if (comes_before(logit, column - num_tokens, best.duration_max, best.duration)) {
      best.duration_max = logit;
      best.duration = column - num_tokens;
    }
    return;
  }
  const float before = best.token_max;
  if (comes_before(logit, column, best.token_max, best.token)) {
    best.token_max = logit;
    best.token = column;
  }
  best.token_sum = rescaled(best.token_sum, before, best.token_max);
  if (logit != -INFINITY) {
    best.token_sum += expf(logit - best.token_max);
  }
}

template <typename T, int Vector>
__global__ void __launch_bounds__(kThreads)
    joint_partials_kernel(JointProblem p, JointPartial* partials, int splits, int columns_per_split,
                          LoopSignal signal) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  __shared__ JointPartial warp_partials[kWarps][kTileRows];
  __shared__ Row tile_rows[kTileRows];
  T* activations = reinterpret_cast<T*>(shared_bytes);
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int first_row = blockIdx.x * kTileRows;
  const int stride = padded_stride<T>(p.width);

  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) {
    signal.clear();
  }

  if (threadIdx.x < kTileRows) {
    tile_rows[threadIdx.x] = locate(p, first_row + threadIdx.x);
  }
  if (!__syncthreads_or(threadIdx.x < kTileRows && tile_rows[threadIdx.x].valid)) {
    return;
  }
  const Row row = tile_rows[warp];
  T* own_activations = activations + warp * stride;
  if (row.valid) {
    const T* encoder = static_cast<const T*>(p.encoder) + row.batch * p.encoder_batch_stride +
                       static_cast<int64_t>(row.frame) * p.width;
    const T* predictor = static_cast<const T*>(p.predictor) + static_cast<int64_t>(row.batch) * p.width;
    const auto activated = [&](float a, float b) {
      return activate(to_float(from_float<T>(a + b)), p.activation);
    };
    fill_row(own_activations, p.width, lane, activated, encoder, predictor);
  } else {
    fill_row_with(own_activations, p.width, lane, 0.0f);
  }
  __syncthreads();

  const T* weight = static_cast<const T*>(p.weight);
  const T* bias = static_cast<const T*>(p.bias);
  const int begin = blockIdx.y * columns_per_split;
  const int end = min(begin + columns_per_split, p.columns());
  JointPartial best = empty_partial();
  for (int tile = begin + warp * kTileColumns; tile < end; tile += kWarps * kTileColumns) {
    const T* columns[kTileColumns];
#pragma unroll
    for (int c = 0; c < kTileColumns; ++c) {
      columns[c] = weight + static_cast<int64_t>(min(tile + c, end - 1)) * p.width;
    }
    const float sum = tile_dot<T, Vector>(activations, stride, columns, p.width, lane);
    const int column = tile + lane % kTileColumns;
    if (column < end) {
      include(best, bias == nullptr ? sum : sum + to_float(bias[column]), column, p.num_tokens);
    }
  }
  best = merge(best, shuffled(best, 1));
  best = merge(best, shuffled(best, 2));
  if (lane % kTileColumns == 0) {
    warp_partials[warp][lane / kTileColumns] = best;
  }
  __syncthreads();

  const int out_row = first_row + threadIdx.x;
  if (threadIdx.x < kTileRows && out_row < p.rows()) {
    JointPartial total = warp_partials[0][threadIdx.x];
    for (int w = 1; w < kWarps; ++w) {
      total = merge(total, warp_partials[w][threadIdx.x]);
    }
    partials[static_cast<int64_t>(out_row) * splits + blockIdx.y] = total;
  }
}

__global__ void joint_finish_kernel(JointProblem p, const JointPartial* partials, int splits, int* tokens,
                                    int* durations, float* log_probs) {
  const int row = blockIdx.x * kWarps + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (row >= p.rows()) {
    return;
  }
  const bool valid = locate(p, row).valid;
  JointPartial total = empty_partial();
  if (valid) {
    total = merge_row(partials + static_cast<int64_t>(row) * splits, splits, lane);
  }
  if (lane == 0) {
    tokens[row] = valid ? total.token : -1;
    durations[row] = valid && p.num_durations > 0 ? total.duration : 0;
    log_probs[row] = valid ? chosen_log_prob(total) : 0.0f;
  }
}

template <typename T, int Vector>
cudaError_t launch_partials(const JointProblem& p, JointPartial* partials, int splits,
                            const LoopSignal& signal, cudaStream_t stream) {
  const auto kernel = joint_partials_kernel<T, Vector>;
  const int shared = kTileRows * padded_stride<T>(p.width) * static_cast<int>(sizeof(T));
  const cudaError_t error = allow_shared_memory(kernel);
  if (error != cudaSuccess) {
    return error;
  }
  const int columns_per_split =
      (p.columns() + splits * kTileColumns - 1) / (splits * kTileColumns) * kTileColumns;
  const dim3 grid((p.rows() + kTileRows - 1) / kTileRows, splits);
  kernel<<<grid, kThreads, shared, stream>>>(p, partials, splits, columns_per_split, signal);
  return cudaGetLastError();
}

}  // namespace

template <typename T>
int joint_column_splits(const JointProblem& problem, int multiprocessors) {
  if (joint_tiles_supports<T>(problem)) {
    return joint_tiles_column_splits<T>(problem);
  }
  constexpr int kBlocksPerMultiprocessor = 2;
  // Every warp of a block gets a tile at least: more splits would be more partials to merge and no more
  // speed.
  constexpr int kLeastColumns = kWarps * kTileColumns;
  const int row_tiles = (problem.rows() + kTileRows - 1) / kTileRows;
  const int wanted = (multiprocessors * kBlocksPerMultiprocessor + row_tiles - 1) / row_tiles;
  const int most = (problem.columns() + kLeastColumns - 1) / kLeastColumns;
  return std::min(wanted, most);
}

template <typename T>
cudaError_t launch_joint_partials(const JointProblem& problem, JointPartial* partials, int splits,
                                  const LoopSignal& signal, cudaStream_t stream) {
  if (joint_tiles_supports<T>(problem)) {
    return launch_joint_tiles<T>(problem, partials, splits, signal, stream);
  }
  if (is_vectorizable<T>(problem.weight, problem.width)) {
    return launch_partials<T, kVector<T>>(problem, partials, splits, signal, stream);
  }
  return launch_partials<T, 1>(problem, partials, splits, signal, stream);
}

cudaError_t launch_joint_finish(const JointProblem& problem, const JointPartial* partials, int splits,
                                int* tokens, int* durations, float* log_probs, cudaStream_t stream) {
  const int blocks = (problem.rows() + kWarps - 1) / kWarps;
  joint_finish_kernel<<<blocks, kThreads, 0, stream>>>(problem, partials, splits, tokens, durations,
                                                       log_probs);
  return cudaGetLastError();
}

#define INSTANTIATE(T)                                                                                      \
  template int joint_column_splits<T>(const JointProblem&, int);                                            \
  template cudaError_t launch_joint_partials<T>(const JointProblem&, JointPartial*, int, const LoopSignal&, \
                                                cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(__nv_bfloat16)
INSTANTIATE(__half)
#undef INSTANTIATE

}  // namespace rnnt_fastdecode::cuda
