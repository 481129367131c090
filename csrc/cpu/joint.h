// The joint network on the CPU, for joint_argmax and for the greedy loop.
#pragma once

#include "../arguments.h"
#include "matmul.h"

namespace rnnt_fastdecode {

struct JointFrame {
  int64_t row, time;
};

// Multiply-adds of one frame, which is also the number of weights.
inline int64_t work_of(const JointSizes& sizes) {
  return (sizes.vocab + sizes.num_durations) * sizes.joint_width;
}

class Joint {
 public:
  Joint(const JointSizes& sizes, const Tensor& encoder, const Tensor& predictor, const Tensor& weight,
        const std::optional<Tensor>& bias);

  Joint(const Joint&) = delete;
  Joint& operator=(const Joint&) = delete;

  // Scores of `count` frames.
  void evaluate(Crew& crew, const JointFrame* frames, int64_t count);

  // What evaluate found for its i-th frame: the first token with the highest score (NaN counts as highest),
  // log_softmax of the tokens' scores there, and the first best of the durations.
  int64_t token(int64_t i) const;
  float log_probability(int64_t i, int64_t token) const;
  int64_t duration(int64_t i) const;

 private:
  void join(const JointFrame& frame, int64_t i);

  JointSizes sizes_;
  const void* encoder_;
  const void* predictor_;
  std::vector<float> bias_;
  WeightMatrix weight_;

  // Scratch memory, kept from call to call.
  Activations activations_;
  std::vector<float> scores_;  // [count, V + N]
};

}  // namespace rnnt_fastdecode
