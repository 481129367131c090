// One step of the prediction network for the rows that have a new label. A label outside the vocabulary,
// which the host cannot see without waiting for the device, makes its row NaN instead of reading foreign
// memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "numeric.cuh"

namespace rnnt_fastdecode::cuda {

// An LSTM or a GRU.
struct RecurrentProblem {
  const int* labels;      // [B], -1 = leave the row as it is
  const void* embedding;  // [V, H]
  // LSTM: [L, 4H, 2H], (W_ih | W_hh), gates i, f, g, o. GRU: [L, 2, 3H, H], for the input, for the hidden
  // state, gates r, z, n.
  const void* weight;
  const float* bias;            // LSTM: [L, 4H]. GRU: [L, 2, 3H]
  const void* projection;       // [J, H]
  const void* projection_bias;  // [J]
  void* hidden;                 // [L, B, H]
  float* cell;                  // LSTM: [L, B, H]
  void* next_hidden;            // [L, B, H] scratch
  void* output;                 // [B, J]
  int batch;
  int layers;
  int vocab_size;    // V
  int hidden_width;  // H
  int output_width;  // J
  bool gru;
};

struct StatelessProblem {
  const int* labels;            // [B], -1 = leave the row as it is
  const void* tables;           // [C, V, H]
  const void* projection;       // [J, H]
  const void* projection_bias;  // [J]
  int* context;                 // [B, C - 1], most recent first
  void* output;                 // [B, J]
  int batch;
  int context_size;  // C
  int vocab_size;    // V
  int hidden_width;  // H
  int output_width;  // J
  bool relu;
};

template <typename T>
cudaError_t launch_recurrent_step(const RecurrentProblem& problem, cudaStream_t stream);

template <typename T>
cudaError_t launch_stateless_step(const StatelessProblem& problem, cudaStream_t stream);

}  // namespace rnnt_fastdecode::cuda
