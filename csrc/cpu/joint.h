// The joint network on the CPU, for joint_argmax and for the greedy loop.
#pragma once

#include "../arguments.h"
#include "matmul.h"

namespace rnnt_fastdecode {

struct JointFrame {
  int64_t row, time;
};

class Joint {
 public:
  Joint(const JointSizes& sizes, const Tensor& encoder, const Tensor& predictor, const Tensor& weight,
        const std::optional<Tensor>& bias);

  int64_t outputs() const { return sizes_.vocab + sizes_.num_durations; }

  // Scores of `count` frames: activations [count, J] is scratch, logits [count, V + N] the result.
  void logits(const JointFrame* frames, int64_t count, float* activations, float* logits) const;

 private:
  JointSizes sizes_;
  const void* encoder_;
  const void* predictor_;
  std::vector<float> bias_;
  WeightMatrix weight_;
};

// Index of the first maximum; NaN counts as greatest, as in torch.argmax.
int64_t argmax(const float* values, int64_t count);

// log_softmax(logits)[token] for the token with the highest score.
float best_log_probability(const float* logits, int64_t vocab, int64_t token);

}  // namespace rnnt_fastdecode
