// The prediction network, one label further, for any widths and addresses. What consists of whole, aligned
// 16-byte vectors goes to the kernels of predictor_tiles.cu, where they are faster.
//
// A block owns kTileRows rows, each of its warps builds one of them in shared memory, and then works on
// columns of its own.
//
// LSTM and GRU: a kernel for each layer, then the projection. In a layer's kernel a warp owns one hidden
// unit: its four sums over (input | hidden) are the four columns of a tile, so that after the dot product the
// four lanes of a row hold them, and the first of them updates the unit. A layer reads `hidden` of every unit
// while other blocks finish theirs: the new value goes to `next_hidden`, and the projection, which runs after
// every layer, commits it.
//
// Stateless: the sum of the context's embeddings is built in shared memory by every block of the projection;
// the context itself shifts in a kernel of its own, after all of them have read it.

#include <type_traits>

#include "predictor_tiles.cuh"
#include "recurrent_cell.cuh"
#include "shared_memory.cuh"
#include "tile_dot.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
static_assert(kWarps == kTileRows, "each warp builds one row of the operand");

// Labels of the kTileRows rows that a block owns, -1 for rows to leave alone. Returns whether there is any
// work.
__device__ bool load_labels(int* tile_labels, const int* labels, int first_row, int batch) {
  int label = -1;
  if (threadIdx.x < kTileRows) {
    const int row = first_row + static_cast<int>(threadIdx.x);
    label = row < batch ? labels[row] : -1;
    tile_labels[threadIdx.x] = label;
  }
  return __syncthreads_or(label >= 0);
}

template <typename T>
__device__ void copy_row(T* row, const T* source, int depth, int lane) {
  fill_row(row, depth, lane, [](float value) { return value; }, source);
}

// The operand of a recurrent layer, [kTileRows][input | hidden], and the labels of its rows. Returns whether
// there is any work.
template <typename T>
__device__ bool load_layer_operand(const RecurrentProblem& p, int layer, T* operand, int* tile_labels) {
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

// Adds the products of a unit's weights of one side, input or hidden state, to its sums.
template <typename T, int Vector, typename Cell, int... kSums>
__device__ void accumulate(float (&sums)[kWarp], CellSums<kSums...>, const T* operand, int stride,
                           const RecurrentProblem& p, int layer, int unit, bool hidden, int lane) {
  const CellRows rows = Cell::rows(p.hidden_width);
  const int64_t first =
      layer * static_cast<int64_t>(rows.layer) + unit * rows.unit + (hidden ? rows.side : 0);
  const auto* weight = static_cast<const T*>(p.weight);
  const T* const columns[] = {weight + (first + Cell::gate(kSums) * rows.gate) * p.hidden_width...};
  tile_accumulate<T, Vector, kSums...>(sums, operand, stride, columns, p.hidden_width, lane);
}

template <typename T, int Vector, typename Cell>
__global__ void __launch_bounds__(kThreads) layer_kernel(RecurrentProblem p, int layer) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  __shared__ int tile_labels[kTileRows];
  T* operand = reinterpret_cast<T*>(shared_bytes);  // [kTileRows][x | h]
  const int lane = threadIdx.x % kWarp;
  const int width = p.hidden_width;
  const int stride = padded_stride<T>(2 * width);

  if (!load_layer_operand(p, layer, operand, tile_labels)) {
    return;
  }
  const int unit = blockIdx.y * kWarps + threadIdx.x / kWarp;
  if (unit >= width) {
    return;
  }
  float sums[kWarp] = {};
  accumulate<T, Vector, Cell>(sums, typename Cell::Input{}, operand, stride, p, layer, unit, false, lane);
  accumulate<T, Vector, Cell>(sums, typename Cell::Hidden{}, operand + width, stride, p, layer, unit, true,
                              lane);
  const int own_sum = lane % kTileColumns;
  const float sum = reduce_to_lane(sums, lane) + Cell::bias(p, layer, own_sum, unit);
  float unit_sums[kCellSums];
#pragma unroll
  for (int i = 0; i < kCellSums; ++i) {
    unit_sums[i] = __shfl_sync(kFullMask, sum, lane - own_sum + i);
  }
  const int r = lane / kTileColumns;
  if (own_sum == 0 && tile_labels[r] >= 0) {
    const int row = static_cast<int>(blockIdx.x) * kTileRows + r;
    const int64_t place = (static_cast<int64_t>(layer) * p.batch + row) * width + unit;
    static_cast<T*>(p.next_hidden)[place] =
        from_float<T>(Cell::template update<T>(p, place, Cell::template state<T>(p, place), unit_sums));
  }
}

// Columns of a problem's projection, kTileColumns for each warp, from the operand rows in shared memory.
template <typename T, int Vector, typename Problem>
__device__ void project(const Problem& p, const T* operand, int stride, const int* tile_labels, int first_row,
                        int lane) {
  const auto* projection = static_cast<const T*>(p.projection);
  const auto* bias = static_cast<const T*>(p.projection_bias);
  const int width = p.hidden_width, output_width = p.output_width;
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
    static_cast<T*>(p.output)[static_cast<int64_t>(first_row + r) * output_width + column] =
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
  project<T, Vector>(p, operand, stride, tile_labels, first_row, lane);
}

template <typename T>
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
  project<T, 1>(p, operand, stride, tile_labels, first_row, threadIdx.x % kWarp);
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

int column_tiles(int columns) { return (columns + kTileColumns - 1) / kTileColumns; }

template <typename T, int Vector>
cudaError_t recurrent_step(const RecurrentProblem& p, cudaStream_t stream) {
  const auto layer_kernel_of = [](auto cell) { return layer_kernel<T, Vector, decltype(cell)>; };
  for (int layer = 0; layer < p.layers; ++layer) {
    const cudaError_t error = launch_tiles<T>(with_cell(p, layer_kernel_of), p.batch, p.hidden_width,
                                              2 * p.hidden_width, stream, p, layer);
    if (error != cudaSuccess) {
      return error;
    }
  }
  return launch_tiles<T>(recurrent_projection_kernel<T, Vector>, p.batch, column_tiles(p.output_width),
                         p.hidden_width, stream, p);
}

}  // namespace

template <typename T>
cudaError_t launch_recurrent_step(const RecurrentProblem& problem, cudaStream_t stream) {
  if constexpr (!std::is_same_v<T, float>) {
    if (recurrent_tiles_support<T>(problem)) {
      return launch_recurrent_tiles<T>(problem, stream);
    }
  } else if (is_vectorizable<T>(problem.weight, problem.hidden_width) &&
             is_vectorizable<T>(problem.projection, problem.hidden_width)) {
    return recurrent_step<T, kVector<T>>(problem, stream);
  }
  return recurrent_step<T, 1>(problem, stream);
}

template <typename T>
cudaError_t launch_stateless_step(const StatelessProblem& problem, cudaStream_t stream) {
  const cudaError_t error =
      stateless_tiles_support<T>(problem)
          ? launch_stateless_tiles<T>(problem, stream)
          : launch_tiles<T>(stateless_projection_kernel<T>, problem.batch, column_tiles(problem.output_width),
                            problem.hidden_width, stream, problem);
  if (error != cudaSuccess || problem.context_size == 1) {
    return error;
  }
  shift_context_kernel<<<(problem.batch + kThreads - 1) / kThreads, kThreads, 0, stream>>>(problem);
  return cudaGetLastError();
}

#define INSTANTIATE(T)                                                                  \
  template cudaError_t launch_recurrent_step<T>(const RecurrentProblem&, cudaStream_t); \
  template cudaError_t launch_stateless_step<T>(const StatelessProblem&, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(__nv_bfloat16)
INSTANTIATE(__half)
#undef INSTANTIATE

}  // namespace rnnt_fastdecode::cuda
