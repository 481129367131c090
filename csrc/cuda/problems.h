// Arguments of the greedy loop's kernels out of checked tensors, for every binding that launches them.
#pragma once

#include <algorithm>

#include "../arguments.h"
#include "greedy_rounds.cuh"
#include "launch.h"

namespace rnnt_fastdecode {

inline int multiprocessors(int device) {
  int count = 0;
  check_cuda("cudaDeviceGetAttribute",
             cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

template <typename Function>
void dispatch(ScalarType dtype, Function function) {
  switch (dtype) {
    case ScalarType::Float:
      return function(float{});
    case ScalarType::BFloat16:
      return function(__nv_bfloat16{});
    default:
      return function(__half{});
  }
}

inline const void* pointer_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

inline cuda::JointProblem joint_problem(const JointSizes& sizes, const void* encoder, const void* predictor,
                                        const void* weight, const void* bias, const int* times,
                                        const int* lengths, int64_t window) {
  return {.encoder = encoder,
          .predictor = predictor,
          .weight = weight,
          .bias = bias,
          .times = times,
          .lengths = lengths,
          .encoder_batch_stride = sizes.encoder_batch_stride,
          .batch = static_cast<int>(sizes.batch),
          .frames = static_cast<int>(sizes.frames),
          .width = static_cast<int>(sizes.joint_width),
          .num_tokens = static_cast<int>(sizes.vocab),
          .num_durations = static_cast<int>(sizes.num_durations),
          .window = static_cast<int>(std::min<int64_t>(window, INT32_MAX)),
          .activation = static_cast<cuda::Activation>(sizes.activation)};
}
static_assert(static_cast<int>(Activation::kTanh) == static_cast<int>(cuda::Activation::kTanh));
static_assert(static_cast<int>(Activation::kSigmoid) == static_cast<int>(cuda::Activation::kSigmoid));

// The rules of a search; what the loop writes is left to the caller.
inline cuda::GreedyProblem greedy_problem(const CallContext& call, const cuda::JointProblem& joint,
                                          int64_t capacity, int64_t blank_id,
                                          const std::vector<int64_t>& durations, int64_t max_symbols) {
  check(durations.size() <= cuda::kMaxDurations, call.op, ": at most ", cuda::kMaxDurations,
        " durations are supported on CUDA, got ", durations.size(), ".");
  cuda::GreedyProblem problem{};
  problem.joint = joint;
  problem.blank_id = static_cast<int>(blank_id);
  problem.max_symbols = static_cast<int>(std::min<int64_t>(max_symbols, INT32_MAX));
  problem.capacity = static_cast<int>(capacity);
  std::copy(durations.begin(), durations.end(), problem.durations);
  return problem;
}

}  // namespace rnnt_fastdecode
