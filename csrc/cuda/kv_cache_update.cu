// A ring for each slot and head: frame number n of a stream lives at n % C, so nothing moves when frames
// arrive. One block copies one frame of one row, all heads; frames beyond the row's length and frames that
// newer ones of the same call would overwrite are not written at all, which leaves no two blocks with the
// same destination.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kv_cache_update.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kThreads) kv_cache_update_kernel(KvCacheProblem p) {
  const int row = blockIdx.y;
  const int frame = blockIdx.x;
  const int slot = p.slots[row];
  const int length = min(p.lengths[row], p.frames);
  if (slot < 0 || slot >= p.num_slots || frame >= length || frame < length - p.capacity) {
    return;
  }
  const int ring = static_cast<int>((static_cast<int64_t>(p.positions[slot]) + frame) % p.capacity);
  const int width = p.heads * p.head_width;
  const int64_t source = (static_cast<int64_t>(row) * p.frames + frame) * width;
  for (int i = threadIdx.x; i < width; i += kThreads) {
    const int head = i / p.head_width;
    const int64_t target =
        ((static_cast<int64_t>(slot) * p.heads + head) * p.capacity + ring) * p.head_width + i % p.head_width;
    static_cast<T*>(p.key_cache)[target] = static_cast<const T*>(p.keys)[source + i];
    static_cast<T*>(p.value_cache)[target] = static_cast<const T*>(p.values)[source + i];
  }
}

}  // namespace

template <typename T>
cudaError_t launch_kv_cache_update(const KvCacheProblem& problem, cudaStream_t stream) {
  const dim3 grid(problem.frames, problem.batch);
  kv_cache_update_kernel<T><<<grid, kThreads, 0, stream>>>(problem);
  return cudaGetLastError();
}

#define INSTANTIATE(T) template cudaError_t launch_kv_cache_update<T>(const KvCacheProblem&, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(__nv_bfloat16)
INSTANTIATE(__half)
#undef INSTANTIATE

}  // namespace rnnt_fastdecode::cuda
