// What every binding of a CUDA kernel needs: the device and stream of a tensor, raw pointers, errors.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <string>

#include "../checks.h"

namespace rnnt_fastdecode {

inline void check_cuda(const char* op, cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(op) + ": CUDA error: " + cudaGetErrorString(error));
  }
}

// Makes the tensor's device current and knows its stream.
struct Launch {
  explicit Launch(const Tensor& tensor) : guard(tensor.get_device_index()) {
    void* raw = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &raw));
    stream = static_cast<cudaStream_t>(raw);
  }
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;
};

inline const int* ints(const Tensor& tensor) { return static_cast<const int*>(tensor.const_data_ptr()); }
inline int* mutable_ints(const Tensor& tensor) { return static_cast<int*>(tensor.mutable_data_ptr()); }
inline float* mutable_floats(const Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

}  // namespace rnnt_fastdecode
