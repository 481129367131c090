// predictor_step_ on the CPU. The rows that have a label are gathered, go through the network together, one
// pass over the weights for all of them, and are written back to their places.

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>

#include "predictor.h"

namespace rnnt_fastdecode {
namespace {

inline float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

}  // namespace

Predictor::Predictor(const PredictorSizes& sizes, const std::vector<Tensor>& weights,
                     const std::vector<Tensor>& state, const Tensor& output)
    : sizes_(sizes), embedding_(weights[0].const_data_ptr()), output_(output.mutable_data_ptr()) {
  const int64_t width = sizes.width;
  const bool lstm = sizes.kind == PredictorKind::kLstm;
  const int64_t rows = (lstm ? 4 : 3) * width, columns = (lstm ? 2 : 1) * width;
  for (int64_t i = 0; i < (lstm ? 1 : 2) * sizes.layers; ++i) {
    layers_.push_back({.data = weights[1].const_data_ptr(),
                       .offset = i * rows * columns,
                       .rows = rows,
                       .columns = columns,
                       .dtype = sizes.dtype,
                       .bias = weights[2].const_data_ptr<float>() + i * rows});
  }
  const Tensor& projection = weights[weights.size() - 2];
  projection_bias_.resize(static_cast<size_t>(sizes.joint_width));
  load_row(sizes.dtype, weights.back().const_data_ptr(), 0, sizes.joint_width, projection_bias_.data());
  projection_ = {.data = projection.const_data_ptr(),
                 .offset = 0,
                 .rows = sizes.joint_width,
                 .columns = width,
                 .dtype = sizes.dtype,
                 .bias = projection_bias_.data()};
  if (sizes.layers > 0) {
    hidden_ = state[0].mutable_data_ptr();
    if (lstm) cell_ = state[1].mutable_data_ptr<float>();
  } else {
    context_ = state[0].mutable_data_ptr<int32_t>();
  }
}

void Predictor::step(const PredictorLabel* labels, int64_t count) const {
  if (count == 0) return;
  std::vector<float> result(static_cast<size_t>(count * sizes_.width));
  if (sizes_.kind == PredictorKind::kLstm) {
    lstm(labels, count, result.data());
  } else if (sizes_.kind == PredictorKind::kGru) {
    gru(labels, count, result.data());
  } else {
    stateless(labels, count, result.data());
  }
  std::vector<float> projected(static_cast<size_t>(count * sizes_.joint_width));
  multiply(result.data(), count, projection_, projected.data());
  for (int64_t i = 0; i < count; ++i) {
    store_row(sizes_.dtype, projected.data() + i * sizes_.joint_width, sizes_.joint_width, output_,
              labels[i].row * sizes_.joint_width);
  }
}

// i, f, g, o = W [x, h] + b; c = sigmoid(f) c + sigmoid(i) tanh(g); h = sigmoid(o) tanh(c)
void Predictor::lstm(const PredictorLabel* labels, int64_t count, float* result) const {
  const int64_t width = sizes_.width;
  std::vector<float> input(static_cast<size_t>(count * 2 * width));
  std::vector<float> gates(static_cast<size_t>(count * 4 * width));
  for (int64_t i = 0; i < count; ++i) {
    load_row(sizes_.dtype, embedding_, labels[i].label * width, width, result + i * width);
  }
  for (int64_t layer = 0; layer < sizes_.layers; ++layer) {
    const auto state = [&](int64_t i) { return (layer * sizes_.batch + labels[i].row) * width; };
    for (int64_t i = 0; i < count; ++i) {
      float* row = input.data() + i * 2 * width;
      std::copy_n(result + i * width, width, row);
      load_row(sizes_.dtype, hidden_, state(i), width, row + width);
    }
    multiply(input.data(), count, layers_[static_cast<size_t>(layer)], gates.data());
    for (int64_t i = 0; i < count; ++i) {
      const float* gate = gates.data() + i * 4 * width;
      float* cell = cell_ + state(i);
      float* hidden = result + i * width;
      for (int64_t k = 0; k < width; ++k) {
        cell[k] = sigmoid(gate[width + k]) * cell[k] + sigmoid(gate[k]) * std::tanh(gate[2 * width + k]);
        hidden[k] = sigmoid(gate[3 * width + k]) * std::tanh(cell[k]);
      }
      round_row(sizes_.dtype, hidden, width);
      store_row(sizes_.dtype, hidden, width, hidden_, state(i));
    }
  }
}

// r, z = sigmoid(W x + b + U h + c); n = tanh(W x + b + r (U h + c)); h = (1 - z) n + z h
void Predictor::gru(const PredictorLabel* labels, int64_t count, float* result) const {
  const int64_t width = sizes_.width;
  std::vector<float> previous(static_cast<size_t>(count * width));
  std::vector<float> from_input(static_cast<size_t>(count * 3 * width)), from_hidden(from_input.size());
  for (int64_t i = 0; i < count; ++i) {
    load_row(sizes_.dtype, embedding_, labels[i].label * width, width, result + i * width);
  }
  for (int64_t layer = 0; layer < sizes_.layers; ++layer) {
    const auto state = [&](int64_t i) { return (layer * sizes_.batch + labels[i].row) * width; };
    for (int64_t i = 0; i < count; ++i) {
      load_row(sizes_.dtype, hidden_, state(i), width, previous.data() + i * width);
    }
    multiply(result, count, layers_[static_cast<size_t>(2 * layer)], from_input.data());
    multiply(previous.data(), count, layers_[static_cast<size_t>(2 * layer + 1)], from_hidden.data());
    for (int64_t i = 0; i < count; ++i) {
      const float* in = from_input.data() + i * 3 * width;
      const float* own = from_hidden.data() + i * 3 * width;
      float* hidden = result + i * width;
      for (int64_t k = 0; k < width; ++k) {
        const float reset = sigmoid(in[k] + own[k]);
        const float update = sigmoid(in[width + k] + own[width + k]);
        const float fresh = std::tanh(in[2 * width + k] + reset * own[2 * width + k]);
        hidden[k] = fresh + update * (previous[static_cast<size_t>(i * width + k)] - fresh);
      }
      round_row(sizes_.dtype, hidden, width);
      store_row(sizes_.dtype, hidden, width, hidden_, state(i));
    }
  }
}

void Predictor::stateless(const PredictorLabel* labels, int64_t count, float* result) const {
  const int64_t width = sizes_.width, history = sizes_.context - 1;
  std::vector<float> entry(static_cast<size_t>(width));
  for (int64_t i = 0; i < count; ++i) {
    int32_t* previous = context_ + labels[i].row * history;
    float* sum = result + i * width;
    load_row(sizes_.dtype, embedding_, labels[i].label * width, width, sum);
    for (int64_t k = 0; k < history; ++k) {
      load_row(sizes_.dtype, embedding_, ((k + 1) * sizes_.vocab + previous[k]) * width, width, entry.data());
      for (int64_t h = 0; h < width; ++h) sum[h] += entry[h];
    }
    round_row(sizes_.dtype, sum, width);
    if (sizes_.kind == PredictorKind::kStatelessRelu) {
      for (int64_t h = 0; h < width; ++h) sum[h] = sum[h] < 0 ? 0 : sum[h];
    }
    if (history > 0) {
      std::copy_backward(previous, previous + history - 1, previous + history);
      previous[0] = labels[i].label;
    }
  }
}

void check_context(const char* op, const PredictorSizes& sizes, const std::vector<Tensor>& state) {
  if (sizes.context == 0) return;
  const auto* labels = state[0].const_data_ptr<int32_t>();
  for (int64_t i = 0; i < state[0].numel(); ++i) {
    check(labels[i] >= 0 and labels[i] < sizes.vocab, op, ": the context must hold labels between 0 and ",
          sizes.vocab - 1, ", got ", labels[i], ".");
  }
}

namespace {

void predictor_step_(const std::string& kind, const std::vector<Tensor>& weights, const Tensor& labels,
                     const std::vector<Tensor>& state, const Tensor& output) {
  const PredictorSizes sizes = check_predictor_step(kind, weights, labels, state, output);
  const auto* label = labels.const_data_ptr<int32_t>();
  std::vector<PredictorLabel> fed;
  for (int64_t b = 0; b < sizes.batch; ++b) {
    check(label[b] >= -1 and label[b] < sizes.vocab, "predictor_step_: labels must be between -1 and ",
          sizes.vocab - 1, ", got ", label[b], " in row ", b, ".");
    if (label[b] >= 0) fed.push_back({b, label[b]});
  }
  check_context("predictor_step_", sizes, state);
  Predictor(sizes, weights, state, output).step(fed.data(), static_cast<int64_t>(fed.size()));
}

}  // namespace
}  // namespace rnnt_fastdecode

STABLE_TORCH_LIBRARY_IMPL(rnnt_fastdecode, CPU, m) {
  m.impl("predictor_step_", TORCH_BOX(&rnnt_fastdecode::predictor_step_));
}
