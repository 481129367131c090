// A GRU prediction network, one label further: a kernel for each layer, then the projection.
//
//   r = sigmoid(W_r x + b_r + U_r h + c_r)      z = sigmoid(W_z x + b_z + U_z h + c_z)
//   n = tanh(W_n x + b_n + r (U_n h + c_n))     h' = (1 - z) n + z h
//
// In a layer's kernel a warp owns one hidden unit. The reset gate multiplies only the second half of n, so
// the halves are kept apart and make, with r and z, the four columns of a tile. A pass over x adds to r, z
// and the first half, a pass over h to r, z and the second; after them the four lanes of a row hold the four
// sums, and the first lane puts the new value together. A layer reads `hidden` of every unit while other
// blocks finish theirs: the new value goes to `next_hidden`, and the projection, which runs after every
// layer, commits it.

#include "predictor_block.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

constexpr int kGates = 3;

template <typename T, int Vector>
__global__ void __launch_bounds__(kThreads) gru_layer_kernel(RecurrentProblem p, int layer) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  __shared__ int tile_labels[kTileRows];
  T* operand = reinterpret_cast<T*>(shared_bytes);  // [kTileRows][x | h]
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int width = p.hidden_width;
  const int stride = padded_stride<T>(2 * width);
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
  // Rows of the matrices for the input, then of those for the hidden state.
  const int64_t first_gate = static_cast<int64_t>(layer) * 2 * kGates * width + unit;
  const T* from_input[kGates];
  const T* from_hidden[kGates];
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) {
    from_input[gate] = static_cast<const T*>(p.weight) + (first_gate + gate * width) * width;
    from_hidden[gate] = static_cast<const T*>(p.weight) + (first_gate + (kGates + gate) * width) * width;
  }
  float sums[kWarp] = {};
  tile_accumulate<T, Vector, 0, 1, 2>(sums, operand, stride, from_input, width, lane);
  tile_accumulate<T, Vector, 0, 1, 3>(sums, operand + width, stride, from_hidden, width, lane);
  const float sum = reduce_to_lane(sums, lane);

  const int first_lane = lane - lane % kTileColumns;
  const float reset_sum = __shfl_sync(kFullMask, sum, first_lane);
  const float update_sum = __shfl_sync(kFullMask, sum, first_lane + 1);
  const float input_sum = __shfl_sync(kFullMask, sum, first_lane + 2);
  const float hidden_sum = __shfl_sync(kFullMask, sum, first_lane + 3);
  const int r = lane / kTileColumns;
  if (lane == first_lane && tile_labels[r] >= 0) {
    const float* input_bias = p.bias + first_gate;
    const float* hidden_bias = input_bias + kGates * width;
    const float reset = sigmoid(reset_sum + input_bias[0] + hidden_bias[0]);
    const float update = sigmoid(update_sum + input_bias[width] + hidden_bias[width]);
    const float fresh =
        tanhf(input_sum + input_bias[2 * width] + reset * (hidden_sum + hidden_bias[2 * width]));
    const float previous = to_float(operand[r * stride + width + unit]);
    next_hidden[layer_offset + static_cast<int64_t>(first_row + r) * width + unit] =
        from_float<T>(fresh + update * (previous - fresh));
  }
}

template <typename T, int Vector>
cudaError_t gru_step(const RecurrentProblem& p, cudaStream_t stream) {
  for (int layer = 0; layer < p.layers; ++layer) {
    const cudaError_t error = launch_tiles<T>(gru_layer_kernel<T, Vector>, p.batch, p.hidden_width,
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
cudaError_t launch_gru_step(const RecurrentProblem& problem, cudaStream_t stream) {
  if (is_vectorizable<T>(problem.weight, problem.hidden_width) &&
      is_vectorizable<T>(problem.projection, problem.hidden_width)) {
    return gru_step<T, kVector<T>>(problem, stream);
  }
  return gru_step<T, 1>(problem, stream);
}

template cudaError_t launch_gru_step<float>(const RecurrentProblem&, cudaStream_t);
template cudaError_t launch_gru_step<__nv_bfloat16>(const RecurrentProblem&, cudaStream_t);
template cudaError_t launch_gru_step<__half>(const RecurrentProblem&, cudaStream_t);

}  // namespace rnnt_fastdecode::cuda
