// What an LSTM and a GRU do not share. A unit of either has four sums: of an LSTM the gates i, f, g and o, of
// a GRU the gates r and z and the two halves of n. These are kept apart, one over the input and one over the
// hidden state, because the reset gate multiplies the second alone.
//
//   LSTM   c' = sigmoid(f) c + sigmoid(i) tanh(g)    h' = sigmoid(o) tanh(c')
//   GRU    n = tanh(n_x + sigmoid(r) n_h)            h' = (1 - sigmoid(z)) n + sigmoid(z) h
#pragma once

#include <type_traits>

#include "numeric.cuh"
#include "predictor_step.cuh"

namespace rnnt_fastdecode::cuda {

constexpr int kCellSums = 4;

// Those of a unit's sums that have weights on one side, input or hidden state.
template <int... kSums>
struct CellSums {
  __host__ __device__ static constexpr bool has(int sum) { return ((sum == kSums) || ...); }
};

// The weights are rows of H elements. How many rows it is to the next layer, gate and unit, and from a unit's
// row for the input to that for the hidden state.
struct CellRows {
  int layer;
  int gate;
  int unit;
  int side;
};

struct LstmCell {
  using Input = CellSums<0, 1, 2, 3>;
  using Hidden = CellSums<0, 1, 2, 3>;

  __host__ __device__ static constexpr CellRows rows(int width) { return {8 * width, 2 * width, 2, 1}; }

  // The gate that a sum belongs to.
  __device__ static constexpr int gate(int sum) { return sum; }

  __device__ static float bias(const RecurrentProblem& p, int layer, int sum, int unit) {
    return p.bias[(layer * kCellSums + sum) * p.hidden_width + unit];
  }

  // What a step reads of the state of the unit that lies at `place`.
  template <typename T>
  __device__ static float state(const RecurrentProblem& p, int64_t place) {
    return p.cell[place];
  }

  // The unit's new hidden value, which the caller stores as T.
  template <typename T>
  __device__ static float update(const RecurrentProblem& p, int64_t place, float cell,
                                 const float (&sums)[kCellSums]) {
    const float hidden =
        (std::is_same_v<T, float> ? exact_lstm : quick_lstm)(cell, sums[0], sums[1], sums[2], sums[3]);
    p.cell[place] = cell;
    return hidden;
  }
};

struct GruCell {
  using Input = CellSums<0, 1, 2>;
  using Hidden = CellSums<0, 1, 3>;

  __host__ __device__ static constexpr CellRows rows(int width) { return {6 * width, width, 1, 3 * width}; }

  __device__ static constexpr int gate(int sum) { return sum < 3 ? sum : 2; }

  __device__ static float bias(const RecurrentProblem& p, int layer, int sum, int unit) {
    const int width = p.hidden_width;
    const float* input = p.bias + (layer * 6 + gate(sum)) * width + unit;
    const float* hidden = input + 3 * width;
    return (Input::has(sum) ? *input : 0.0f) + (Hidden::has(sum) ? *hidden : 0.0f);
  }

  template <typename T>
  __device__ static float state(const RecurrentProblem& p, int64_t place) {
    return to_float(static_cast<const T*>(p.hidden)[place]);
  }

  template <typename T>
  __device__ static float update(const RecurrentProblem&, int64_t, float hidden,
                                 const float (&sums)[kCellSums]) {
    return (std::is_same_v<T, float> ? exact_gru : quick_gru)(hidden, sums[0], sums[1], sums[2], sums[3]);
  }
};

// Calls function(LstmCell{}) or function(GruCell{}).
template <typename Function>
__host__ __device__ inline decltype(auto) with_cell(const RecurrentProblem& p, Function&& function) {
  return p.gru ? function(GruCell{}) : function(LstmCell{});
}

}  // namespace rnnt_fastdecode::cuda
