// What the layer and projection kernels of a prediction network share: a block owns kTileRows rows, each of
// its warps builds one of them in shared memory, and then works on columns of its own.
#pragma once

#include "predictor_step.cuh"
#include "shared_memory.cuh"
#include "tile_dot.cuh"

namespace rnnt_fastdecode::cuda {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
static_assert(kWarps == kTileRows, "each warp builds one row of the operand");

// Labels of the kTileRows rows that a block owns, -1 for rows to leave alone. Returns whether there is any
// work.
__device__ inline bool load_labels(int* tile_labels, const int* labels, int first_row, int batch) {
  int label = -1;
  if (threadIdx.x < kTileRows) {
    const int row = first_row + static_cast<int>(threadIdx.x);
    label = row < batch ? labels[row] : -1;
    tile_labels[threadIdx.x] = label;
  }
  return __syncthreads_or(label >= 0);
}

template <typename T>
__device__ inline void copy_row(T* row, const T* source, int depth, int lane) {
  fill_row(row, depth, lane, [](float value) { return value; }, source);
}

// The operand of a recurrent layer, [kTileRows][input | hidden], and the labels of its rows. Returns whether
// there is any work.
template <typename T>
__device__ inline bool load_layer_operand(const RecurrentProblem& p, int layer, T* operand,
                                          int* tile_labels) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int width = p.hidden_width;
  const int first_row = blockIdx.x * kTileRows;
  const int64_t layer_offset = static_cast<int64_t>(layer) * p.batch * width;
  const T* next_hidden = static_cast<const T*>(p.next_hidden);
  if (!load_labels(tile_labels, p.labels, first_row, p.batch)) {
    return false;
  }
  const int label = tile_labels[warp];
  T* own_operand = operand + warp * padded_stride<T>(2 * width);
  if (label >= 0 && label < p.vocab_size) {
    const int64_t state = layer_offset + static_cast<int64_t>(first_row + warp) * width;
    const T* input = layer == 0 ? static_cast<const T*>(p.embedding) + static_cast<int64_t>(label) * width
                                : next_hidden + state - static_cast<int64_t>(p.batch) * width;
    copy_row(own_operand, input, width, lane);
    copy_row(own_operand + width, static_cast<const T*>(p.hidden) + state, width, lane);
  } else {
    fill_row_with(own_operand, 2 * width, lane, label < 0 ? 0.0f : NAN);
  }
  __syncthreads();
  return true;
}

// Columns of the projection, kTileColumns for each warp, from the operand rows in shared memory.
template <typename T, int Vector>
__device__ inline void project(const T* operand, int stride, const int* tile_labels, const T* projection,
                               const T* bias, T* output, int first_row, int width, int output_width,
                               int lane) {
  const int tile = (blockIdx.y * kWarps + threadIdx.x / kWarp) * kTileColumns;
  if (tile >= output_width) {
    return;
  }
  const T* columns[kTileColumns];
#pragma unroll
  for (int c = 0; c < kTileColumns; ++c) {
    columns[c] = projection + static_cast<int64_t>(min(tile + c, output_width - 1)) * width;
  }
  const float sum = tile_dot<T, Vector>(operand, stride, columns, width, lane);
  const int column = tile + lane % kTileColumns;
  const int r = lane / kTileColumns;
  if (column < output_width && tile_labels[r] >= 0) {
    output[static_cast<int64_t>(first_row + r) * output_width + column] =
        from_float<T>(sum + to_float(bias[column]));
  }
}

// The last step of a recurrent network: projects the last layer's `next_hidden`, and makes what every layer
// left there its `hidden`.
template <typename T, int Vector>
__global__ void __launch_bounds__(kThreads) recurrent_projection_kernel(RecurrentProblem p) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  __shared__ int tile_labels[kTileRows];
  T* operand = reinterpret_cast<T*>(shared_bytes);
  const int width = p.hidden_width;
  const int stride = padded_stride<T>(width);
  const int first_row = blockIdx.x * kTileRows;
  const T* next_hidden = static_cast<const T*>(p.next_hidden);

  if (!load_labels(tile_labels, p.labels, first_row, p.batch)) {
    return;
  }
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  T* own_operand = operand + warp * stride;
  if (tile_labels[warp] >= 0) {
    const int64_t row = static_cast<int64_t>(first_row + warp) * width;
    const int64_t layer_stride = static_cast<int64_t>(p.batch) * width;
    copy_row(own_operand, next_hidden + (p.layers - 1) * layer_stride + row, width, lane);
    for (int layer = blockIdx.y; layer < p.layers; layer += gridDim.y) {
      const int64_t state = layer * layer_stride + row;
      copy_row(static_cast<T*>(p.hidden) + state, next_hidden + state, width, lane);
    }
  } else {
    fill_row_with(own_operand, width, lane, 0.0f);
  }
  __syncthreads();
  project<T, Vector>(operand, stride, tile_labels, static_cast<const T*>(p.projection),
                     static_cast<const T*>(p.projection_bias), static_cast<T*>(p.output), first_row, width,
                     p.output_width, lane);
}

// A block for every kTileRows rows and every kWarps units.
template <typename T, typename Kernel, typename... Args>
cudaError_t launch_tiles(Kernel kernel, int batch, int units, int depth, cudaStream_t stream, Args... args) {
  const int shared = kTileRows * padded_stride<T>(depth) * static_cast<int>(sizeof(T));
  const cudaError_t error = allow_shared_memory(kernel);
  if (error != cudaSuccess) {
    return error;
  }
  const dim3 grid((batch + kTileRows - 1) / kTileRows, (units + kWarps - 1) / kWarps);
  kernel<<<grid, kThreads, shared, stream>>>(args...);
  return cudaGetLastError();
}

inline int column_tiles(int columns) { return (columns + kTileColumns - 1) / kTileColumns; }

}  // namespace rnnt_fastdecode::cuda
