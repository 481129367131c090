// joint_argmax on the CPU. Frames inside their utterance are gathered into groups that share one pass over
// the weights; the scores of a group live in a scratch buffer of the size of a cache and are reduced before
// the next group.

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "joint.h"

namespace rnnt_fastdecode {

Joint::Joint(const JointSizes& sizes, const Tensor& encoder, const Tensor& predictor, const Tensor& weight,
             const std::optional<Tensor>& bias)
    : sizes_(sizes), encoder_(encoder.const_data_ptr()), predictor_(predictor.const_data_ptr()) {
  if (bias) {
    bias_.resize(static_cast<size_t>(outputs()));
    load_row(sizes.dtype, bias->const_data_ptr(), 0, outputs(), bias_.data());
  }
  weight_ = {.data = weight.const_data_ptr(),
             .offset = 0,
             .rows = outputs(),
             .columns = sizes.joint_width,
             .dtype = sizes.dtype,
             .bias = bias ? bias_.data() : nullptr};
}

void Joint::logits(const JointFrame* frames, int64_t count, float* activations, float* logits) const {
  const int64_t width = sizes_.joint_width;
  std::vector<float> predicted(static_cast<size_t>(width));
  for (int64_t i = 0; i < count; ++i) {
    float* out = activations + i * width;
    load_row(sizes_.dtype, encoder_, frames[i].row * sizes_.encoder_batch_stride + frames[i].time * width,
             width, out);
    load_row(sizes_.dtype, predictor_, frames[i].row * width, width, predicted.data());
    for (int64_t k = 0; k < width; ++k) out[k] += predicted[k];
    round_row(sizes_.dtype, out, width);
    switch (sizes_.activation) {
      case Activation::kRelu:
        // Written so that NaN passes, as in torch.relu.
        for (int64_t k = 0; k < width; ++k) out[k] = out[k] < 0 ? 0 : out[k];
        break;
      case Activation::kTanh:
        for (int64_t k = 0; k < width; ++k) out[k] = std::tanh(out[k]);
        round_row(sizes_.dtype, out, width);
        break;
      case Activation::kSigmoid:
        for (int64_t k = 0; k < width; ++k) out[k] = 1 / (1 + std::exp(-out[k]));
        round_row(sizes_.dtype, out, width);
        break;
    }
  }
  multiply(activations, count, weight_, logits);
}

int64_t argmax(const float* values, int64_t count) {
  int64_t best = 0;
  for (int64_t i = 1; i < count and not std::isnan(values[best]); ++i) {
    if (values[i] > values[best] or std::isnan(values[i])) best = i;
  }
  return best;
}

float best_log_probability(const float* logits, int64_t vocab, int64_t token) {
  double sum = 0;
  for (int64_t v = 0; v < vocab; ++v) sum += std::exp(logits[v] - logits[token]);
  return static_cast<float>(-std::log(sum));
}

namespace {

constexpr int64_t kSmallestGroup = 8;
constexpr int64_t kLargestGroup = 64;  // 264 KB of scores at 1030 outputs

std::tuple<Tensor, Tensor, Tensor> joint_argmax(const Tensor& encoder, const Tensor& predictor,
                                                const Tensor& weight, const std::optional<Tensor>& bias,
                                                const Tensor& times, const Tensor& lengths, int64_t window,
                                                int64_t num_durations, const std::string& activation) {
  const JointSizes sizes =
      check_joint_argmax(encoder, predictor, weight, bias, times, lengths, window, num_durations, activation);
  const auto* first_frame = times.const_data_ptr<int32_t>();
  const auto* length = lengths.const_data_ptr<int32_t>();
  for (int64_t b = 0; b < sizes.batch; ++b) {
    check(first_frame[b] >= 0, "joint_argmax: times must not be negative, got ", first_frame[b], " in row ",
          b, ".");
  }

  Tensor tokens = torch::stable::new_empty(times, {sizes.batch, window}, ScalarType::Int);
  Tensor durations = torch::stable::new_empty(times, {sizes.batch, window}, ScalarType::Int);
  Tensor log_probs = torch::stable::new_empty(times, {sizes.batch, window}, ScalarType::Float);
  auto* token = tokens.mutable_data_ptr<int32_t>();
  auto* duration = durations.mutable_data_ptr<int32_t>();
  auto* log_prob = log_probs.mutable_data_ptr<float>();

  std::vector<JointFrame> frames;
  std::vector<int64_t> places;
  for (int64_t b = 0; b < sizes.batch; ++b) {
    const int64_t end = std::min<int64_t>(length[b], sizes.frames);
    for (int64_t w = 0; w < window; ++w) {
      const int64_t place = b * window + w, time = first_frame[b] + w;
      token[place] = -1;
      duration[place] = 0;
      log_prob[place] = 0;
      if (time >= end) continue;
      frames.push_back({b, time});
      places.push_back(place);
    }
  }

  const Joint joint(sizes, encoder, predictor, weight, bias);
  const auto count = static_cast<int64_t>(frames.size());
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t group = std::clamp((count + threads - 1) / threads, kSmallestGroup, kLargestGroup);
  torch::stable::parallel_for(0, (count + group - 1) / group, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> activations(static_cast<size_t>(group * sizes.joint_width));
    std::vector<float> logits(static_cast<size_t>(group * joint.outputs()));
    for (int64_t first = begin * group; first < std::min(end * group, count); first += group) {
      const int64_t size = std::min(group, count - first);
      joint.logits(frames.data() + first, size, activations.data(), logits.data());
      for (int64_t i = 0; i < size; ++i) {
        const float* scores = logits.data() + i * joint.outputs();
        const int64_t place = places[first + i], best = argmax(scores, sizes.vocab);
        token[place] = static_cast<int32_t>(best);
        log_prob[place] = best_log_probability(scores, sizes.vocab, best);
        if (num_durations > 0) {
          duration[place] = static_cast<int32_t>(argmax(scores + sizes.vocab, num_durations));
        }
      }
    }
  });
  return {tokens, durations, log_probs};
}

}  // namespace
}  // namespace rnnt_fastdecode

STABLE_TORCH_LIBRARY_IMPL(rnnt_fastdecode, CPU, m) {
  m.impl("joint_argmax", TORCH_BOX(&rnnt_fastdecode::joint_argmax));
}
