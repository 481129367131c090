// One step of a GRU prediction network for the rows that have a new label. A label outside the vocabulary,
// which the host cannot see without waiting for the device, makes its row NaN instead of reading foreign
// memory.
#pragma once

#include <cuda_runtime.h>

namespace rnnt_fastdecode::cuda {

struct GruProblem {
  const int* labels;            // [B], -1 = leave the row as it is
  const void* embedding;        // [V, H]
  const void* weight;           // [L, 2, 3H, H]: for the input, for the hidden state; gates r, z, n
  const float* bias;            // [L, 2, 3H]
  const void* projection;       // [J, H]
  const void* projection_bias;  // [J]
  void* hidden;                 // [L, B, H]
  void* next_hidden;            // [L, B, H] scratch
  void* output;                 // [B, J]
  int batch;
  int layers;
  int vocab_size;    // V
  int hidden_width;  // H
  int output_width;  // J
};

template <typename T>
cudaError_t launch_gru_step(const GruProblem& problem, cudaStream_t stream);

}  // namespace rnnt_fastdecode::cuda
