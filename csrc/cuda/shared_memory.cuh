// Dynamic shared memory beyond what every device has.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace rnnt_fastdecode::cuda {

// Lets a kernel have all the shared memory of a block of the current device. Never less than all: the limit
// is the kernel's in the whole process, and another thread may be about to launch it with another size.
template <typename Kernel>
cudaError_t allow_shared_memory(Kernel kernel) {
  // Asked for once by every thread: the calls take longer than a launch should.
  thread_local std::vector<std::pair<Kernel, int>> allowed;
  int device = 0, limit = 0;
  cudaFuncAttributes attributes{};
  cudaError_t error = cudaGetDevice(&device);
  const std::pair<Kernel, int> wanted{kernel, device};
  if (error == cudaSuccess && std::find(allowed.begin(), allowed.end(), wanted) != allowed.end()) {
    return error;
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error == cudaSuccess) {
    error = cudaFuncGetAttributes(&attributes, kernel);
  }
  if (error == cudaSuccess) {
    const int dynamic_limit = limit - static_cast<int>(attributes.sharedSizeBytes);
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic_limit);
  }
  if (error == cudaSuccess) {
    allowed.push_back(wanted);
  }
  return error;
}

}  // namespace rnnt_fastdecode::cuda
