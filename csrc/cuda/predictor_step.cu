// The prediction network, one label further.
//
// LSTM: a kernel for each layer, then the projection. In a layer's kernel a warp owns one hidden unit: its
// four gates are the four columns of a tile, so that after the dot product over (input | hidden) the four
// lanes of a row hold i, f, g, o, and the first of them updates the cell. A layer reads `hidden` of every
// unit while other blocks finish theirs: the new value goes to `next_hidden`, and the projection, which runs
// after every layer, commits it.
//
// Stateless: the sum of the context's embeddings is built in shared memory by every block of the projection;
// the context itself shifts in a kernel of its own, after all of them have read it.
//
// Any widths and addresses; what consists of whole, aligned 16-byte vectors goes to the faster kernels of
// predictor_tiles.cu.

#include "predictor_block.cuh"
#include "predictor_step.cuh"
#include "predictor_tiles.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

template <typename T, int Vector>
__global__ void __launch_bounds__(kThreads) lstm_layer_kernel(RecurrentProblem p, int layer) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  __shared__ int tile_labels[kTileRows];
  T* operand = reinterpret_cast<T*>(shared_bytes);  // [kTileRows][x | h]
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int width = p.hidden_width;
  const int depth = 2 * width;
  const int stride = padded_stride<T>(depth);
  const int first_row = blockIdx.x * kTileRows;
  const int64_t layer_offset = static_cast<int64_t>(layer) * p.batch * width;
  T* next_hidden = static_cast<T*>(p.next_hidden);

  if (!load_layer_operand(p, layer, operand, tile_labels)) {
    return;
  }
  const int unit = blockIdx.y * kWarps + warp;
  if (unit >= width) {
    return;
  }
  const T* weight = static_cast<const T*>(p.weight) + static_cast<int64_t>(layer) * 4 * width * depth;
  const T* gates[kTileColumns];
#pragma unroll
  for (int gate = 0; gate < kTileColumns; ++gate) {
    gates[gate] = weight + static_cast<int64_t>(gate * width + unit) * depth;
  }
  const int own_gate = lane % kTileColumns;
  const float sum = tile_dot<T, Vector>(operand, stride, gates, depth, lane) +
                    p.bias[(layer * 4 + own_gate) * width + unit];
  const int first_lane = lane - own_gate;
  const float i = __shfl_sync(kFullMask, sum, first_lane);
  const float f = __shfl_sync(kFullMask, sum, first_lane + 1);
  const float g = __shfl_sync(kFullMask, sum, first_lane + 2);
  const float o = __shfl_sync(kFullMask, sum, first_lane + 3);
  const int r = lane / kTileColumns;
  if (own_gate == 0 && tile_labels[r] >= 0) {
    const int64_t index = layer_offset + static_cast<int64_t>(first_row + r) * width + unit;
    const float cell = sigmoid(f) * p.cell[index] + sigmoid(i) * tanhf(g);
    p.cell[index] = cell;
    next_hidden[index] = from_float<T>(sigmoid(o) * tanhf(cell));
  }
}

template <typename T, int Vector>
__global__ void __launch_bounds__(kThreads) stateless_projection_kernel(StatelessProblem p) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  __shared__ int tile_labels[kTileRows];
  T* operand = reinterpret_cast<T*>(shared_bytes);
  const int width = p.hidden_width;
  const int stride = padded_stride<T>(width);
  const int first_row = blockIdx.x * kTileRows;
  const T* tables = static_cast<const T*>(p.tables);
  const int history = p.context_size - 1;

  if (!load_labels(tile_labels, p.labels, first_row, p.batch)) {
    return;
  }
  for (int r = 0; r < kTileRows; ++r) {
    const int label = tile_labels[r];
    for (int k = threadIdx.x; k < width; k += kThreads) {
      float sum = 0.0f;
      for (int c = 0; label >= 0 && c <= history; ++c) {
        const int past = c == 0 ? label : p.context[static_cast<int64_t>(first_row + r) * history + c - 1];
        const bool known = past >= 0 && past < p.vocab_size;
        sum += known ? to_float(tables[(static_cast<int64_t>(c) * p.vocab_size + past) * width + k]) : NAN;
      }
      const T rounded = from_float<T>(sum);
      operand[r * stride + k] =
          p.relu ? from_float<T>(activate(to_float(rounded), Activation::kRelu)) : rounded;
    }
  }
  __syncthreads();
  project<T, Vector>(operand, stride, tile_labels, static_cast<const T*>(p.projection),
                     static_cast<const T*>(p.projection_bias), static_cast<T*>(p.output), first_row, width,
                     p.output_width, threadIdx.x % kWarp);
}

__global__ void shift_context_kernel(StatelessProblem p) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= p.batch || p.labels[row] < 0) {
    return;
  }
  const int history = p.context_size - 1;
  int* context = p.context + static_cast<int64_t>(row) * history;
  for (int c = history - 1; c > 0; --c) {
    context[c] = context[c - 1];
  }
  context[0] = p.labels[row];
}

template <typename T, int Vector>
cudaError_t lstm_step(const RecurrentProblem& p, cudaStream_t stream) {
  for (int layer = 0; layer < p.layers; ++layer) {
    const cudaError_t error = launch_tiles<T>(lstm_layer_kernel<T, Vector>, p.batch, p.hidden_width,
                                              2 * p.hidden_width, stream, p, layer);
    if (error != cudaSuccess) {
      return error;
    }
  }
  return launch_tiles<T>(recurrent_projection_kernel<T, Vector>, p.batch, column_tiles(p.output_width),
                         p.hidden_width, stream, p);
}

template <typename T, int Vector>
cudaError_t stateless_projection(const StatelessProblem& p, cudaStream_t stream) {
  return launch_tiles<T>(stateless_projection_kernel<T, Vector>, p.batch, column_tiles(p.output_width),
                         p.hidden_width, stream, p);
}

template <typename T>
cudaError_t project_context(const StatelessProblem& p, cudaStream_t stream) {
  if (stateless_tiles_supports<T>(p)) {
    return launch_stateless_tiles<T>(p, stream);
  }
  return is_vectorizable<T>(p.projection, p.hidden_width) ? stateless_projection<T, kVector<T>>(p, stream)
                                                          : stateless_projection<T, 1>(p, stream);
}

}  // namespace

template <typename T>
cudaError_t launch_lstm_step(const RecurrentProblem& problem, cudaStream_t stream) {
  if (lstm_tiles_supports<T>(problem)) {
    return launch_lstm_tiles<T>(problem, stream);
  }
  if (is_vectorizable<T>(problem.weight, problem.hidden_width) &&
      is_vectorizable<T>(problem.projection, problem.hidden_width)) {
    return lstm_step<T, kVector<T>>(problem, stream);
  }
  return lstm_step<T, 1>(problem, stream);
}

template <typename T>
cudaError_t launch_stateless_step(const StatelessProblem& problem, cudaStream_t stream) {
  const cudaError_t error = project_context<T>(problem, stream);
  if (error != cudaSuccess || problem.context_size == 1) {
    return error;
  }
  shift_context_kernel<<<(problem.batch + kThreads - 1) / kThreads, kThreads, 0, stream>>>(problem);
  return cudaGetLastError();
}

#define INSTANTIATE(T)                                                             \
  template cudaError_t launch_lstm_step<T>(const RecurrentProblem&, cudaStream_t); \
  template cudaError_t launch_stateless_step<T>(const StatelessProblem&, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(__nv_bfloat16)
INSTANTIATE(__half)
#undef INSTANTIATE

}  // namespace rnnt_fastdecode::cuda
