// Writes the valid new frames of keys and values into the rings of their slots.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace rnnt_fastdecode::cuda {

struct KvCacheProblem {
  const void* keys;      // [B, T, heads, head_width]
  const void* values;    // [B, T, heads, head_width]
  const int* lengths;    // [B]
  const int* slots;      // [B], -1 = padding row
  const int* positions;  // [S]
  void* key_cache;       // [S, heads, C, head_width]
  void* value_cache;     // [S, heads, C, head_width]
  int batch;
  int frames;
  int heads;
  int head_width;
  int num_slots;
  int capacity;
};

template <typename T>
cudaError_t launch_kv_cache_update(const KvCacheProblem& problem, cudaStream_t stream);

}  // namespace rnnt_fastdecode::cuda
