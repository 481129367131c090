// Kernels that start before the one before them on the stream has ended (programmatic dependent launch).
#pragma once

#include <cuda_runtime.h>

namespace rnnt_fastdecode::cuda {

// Whether the kernels of a round start early: with many rows, blocks that wait take the place of others that
// could work.
constexpr bool starts_early(int rows) { return rows < 256; }

// The kernel calls ptx::wait_for_kernel_before before it touches what an earlier one writes or reads, in
// every block. Devices before sm_90 start it when the one before has ended, and so do all unless `early`.
template <typename... Parameters, typename... Args>
cudaError_t launch_dependent(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes,
                             bool early, cudaStream_t stream, const Args&... args) {
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = early && major >= 9 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

}  // namespace rnnt_fastdecode::cuda
