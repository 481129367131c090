// joint_argmax on the CPU. Frames inside their utterance are gathered into groups that share one pass over
// the weights; the scores of a group live in a scratch buffer of the size of a cache and are reduced before
// the next group.

#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <tuple>

#include "joint.h"

namespace rnnt_fastdecode {

Joint::Joint(const JointSizes& sizes, const Tensor& encoder, const Tensor& predictor, const Tensor& weight,
             const std::optional<Tensor>& bias)
    : sizes_(sizes),
      encoder_(encoder.const_data_ptr()),
      predictor_(predictor.const_data_ptr()),
      activations_(sizes.dtype) {
  const int64_t outputs = sizes.vocab + sizes.num_durations;
  if (bias) {
    bias_.resize(static_cast<size_t>(outputs));
    load_row(sizes.dtype, bias->const_data_ptr(), 0, outputs, bias_.data());
  }
  weight_ = {.data = weight.const_data_ptr(),
             .offset = 0,
             .rows = outputs,
             .columns = sizes.joint_width,
             .dtype = sizes.dtype,
             .bias = bias ? bias_.data() : nullptr};
}

void Joint::evaluate(Crew& crew, const JointFrame* frames, int64_t count) {
  const auto needed = static_cast<size_t>(count * weight_.rows);
  if (scores_.size() < needed) scores_.resize(needed);
  activations_.resize(count, sizes_.joint_width);
  // A number costs about as much as 16 multiply-adds here.
  crew.share(count, 16 * count * sizes_.joint_width, [&](int64_t i) { join(frames[i], i); });
  multiply(crew, {{&activations_, &weight_, scores_.data()}}, count, weight_.rows,
           [](int64_t, int64_t, int64_t, int64_t) {});
}

// Activations of the i-th frame: activation(encoder + predictor), the sum and the result rounded to dtype.
void Joint::join(const JointFrame& frame, int64_t i) {
  constexpr int64_t kBlock = 256;
  const int64_t width = sizes_.joint_width;
  float sum[kBlock], predicted[kBlock];
  for (int64_t first = 0; first < width; first += kBlock) {
    const int64_t size = std::min(kBlock, width - first);
    load_row(sizes_.dtype, encoder_, frame.row * sizes_.encoder_batch_stride + frame.time * width + first,
             size, sum);
    load_row(sizes_.dtype, predictor_, frame.row * width + first, size, predicted);
    kernels().add(predicted, size, sum);
    if (sizes_.activation == Activation::kRelu) {
      // Rounding before and after it is the same.
      kernels().relu(sum, size);
    } else {
      round_row(sizes_.dtype, sum, size);
      (sizes_.activation == Activation::kTanh ? kernels().tanh : kernels().sigmoid)(sum, size);
    }
    activations_.store(i, first, sum, size);
  }
}

int64_t Joint::token(int64_t i) const {
  return kernels().argmax(scores_.data() + i * weight_.rows, sizes_.vocab);
}

float Joint::log_probability(int64_t i, int64_t token) const {
  const float* scores = scores_.data() + i * weight_.rows;
  return static_cast<float>(-std::log(kernels().sum_exp(scores, sizes_.vocab, scores[token])));
}

int64_t Joint::duration(int64_t i) const {
  return kernels().argmax(scores_.data() + i * weight_.rows + sizes_.vocab, sizes_.num_durations);
}

namespace {

constexpr int64_t kGroup = 64;  // 264 KB of scores at 1030 outputs

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

  Tensor tokens = new_tensor(times, {sizes.batch, window}, ScalarType::Int);
  Tensor durations = new_tensor(times, {sizes.batch, window}, ScalarType::Int);
  Tensor log_probs = new_tensor(times, {sizes.batch, window}, ScalarType::Float);
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

  Joint joint(sizes, encoder, predictor, weight, bias);
  const auto count = static_cast<int64_t>(frames.size());
  Crew::run(crew_size(count * work_of(sizes)), [&](Crew& crew) {
    for (int64_t first = 0; first < count; first += kGroup) {
      const int64_t size = std::min(kGroup, count - first);
      joint.evaluate(crew, frames.data() + first, size);
      crew.share(size, 16 * size * sizes.vocab, [&](int64_t i) {
        const int64_t place = places[first + i], best = joint.token(i);
        token[place] = static_cast<int32_t>(best);
        log_prob[place] = joint.log_probability(i, best);
        if (num_durations > 0) duration[place] = static_cast<int32_t>(joint.duration(i));
      });
    }
  });
  return {tokens, durations, log_probs};
}

}  // namespace
}  // namespace rnnt_fastdecode

STABLE_TORCH_LIBRARY_IMPL(rnnt_fastdecode, CPU, m) {
  m.impl("joint_argmax", TORCH_BOX(&rnnt_fastdecode::joint_argmax));
}
