// predictor_step_ on the CPU. The rows that have a label are gathered and go through the network together, so
// that weights are read once for all of them.

#include "predictor.h"

namespace rnnt_fastdecode {

Predictor::Predictor(const PredictorSizes& sizes, const std::vector<Tensor>& weights,
                     const std::vector<Tensor>& state, const Tensor& output)
    : sizes_(sizes), embedding_(weights[0].const_data_ptr()), output_(output.mutable_data_ptr()) {
  const int64_t width = sizes.width;
  for (int64_t layer = 0; layer < sizes.layers; ++layer) {
    layers_.push_back({.data = weights[1].const_data_ptr(),
                       .offset = layer * 8 * width * width,
                       .rows = 4 * width,
                       .columns = 2 * width,
                       .dtype = sizes.dtype,
                       .bias = weights[2].const_data_ptr<float>() + layer * 4 * width});
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
  if (sizes.kind == PredictorKind::kLstm) {
    hidden_ = state[0].mutable_data_ptr();
    cell_ = state[1].mutable_data_ptr<float>();
  } else {
    context_ = state[0].mutable_data_ptr<int32_t>();
  }
  for (int64_t layer = 0; layer <= sizes.layers; ++layer) inputs_.emplace_back(sizes.dtype);
}

void Predictor::step(Crew& crew, const PredictorLabel* labels, int64_t count) {
  if (count == 0) return;
  const int64_t width = sizes_.width, largest = std::max(layers_.empty() ? 0 : 4 * width, sizes_.joint_width);
  if (static_cast<int64_t>(sums_.size()) < count * largest)
    sums_.resize(static_cast<size_t>(count * largest));
  for (Activations& input : inputs_) input.resize(count, &input == &inputs_.back() ? width : 2 * width);
  if (sizes_.kind == PredictorKind::kLstm) {
    lstm(crew, labels, count);
  } else {
    stateless(crew, labels, count);
  }
  multiply(crew, {{&inputs_.back(), &projection_, sums_.data()}}, count, sizes_.joint_width,
           [&](int64_t first_row, int64_t end_row, int64_t first, int64_t end) {
             for (int64_t i = first_row; i < end_row; ++i) {
               store_row(sizes_.dtype, sums_.data() + i * sizes_.joint_width + first, end - first, output_,
                         labels[i].row * sizes_.joint_width + first);
             }
           });
}

// i, f, g, o = W [x, h] + b; c = sigmoid(f) c + sigmoid(i) tanh(g); h = sigmoid(o) tanh(c)
void Predictor::lstm(Crew& crew, const PredictorLabel* labels, int64_t count) {
  const int64_t width = sizes_.width, layers = sizes_.layers;
  const auto state = [&](int64_t layer, int64_t i) { return (layer * sizes_.batch + labels[i].row) * width; };
  for (int64_t i = 0; i < count; ++i) {
    inputs_.front().load(i, 0, embedding_, labels[i].label * width, width);
    for (int64_t layer = 0; layer < layers; ++layer) {
      inputs_[layer].load(i, width, hidden_, state(layer, i), width);
    }
  }
  for (int64_t layer = 0; layer < layers; ++layer) {
    multiply(crew, {{&inputs_[layer], &layers_[layer], sums_.data()}}, count, width,
             [&](int64_t first_row, int64_t end_row, int64_t first, int64_t end) {
               for (int64_t i = first_row; i < end_row; ++i) {
                 const int64_t place = state(layer, i) + first;
                 float* gates = sums_.data() + i * 4 * width + first;
                 // The hidden state takes the place of the input gate, which is not needed any more.
                 kernels().lstm_cell(gates, width, end - first, cell_ + place, gates);
                 store_row(sizes_.dtype, gates, end - first, hidden_, place);
                 inputs_[layer + 1].load(i, first, hidden_, place, end - first);
               }
             });
  }
}

void Predictor::stateless(Crew& crew, const PredictorLabel* labels, int64_t count) {
  constexpr int64_t kBlock = 256;
  const int64_t width = sizes_.width, history = sizes_.context - 1;
  crew.share(count, count * sizes_.context * width, [&](int64_t i) {
    int32_t* previous = context_ + labels[i].row * history;
    float sum[kBlock], entry[kBlock];
    for (int64_t first = 0; first < width; first += kBlock) {
      const int64_t size = std::min(kBlock, width - first);
      load_row(sizes_.dtype, embedding_, labels[i].label * width + first, size, sum);
      for (int64_t k = 0; k < history; ++k) {
        load_row(sizes_.dtype, embedding_, ((k + 1) * sizes_.vocab + previous[k]) * width + first, size,
                 entry);
        kernels().add(entry, size, sum);
      }
      if (sizes_.kind == PredictorKind::kStatelessRelu) kernels().relu(sum, size);
      inputs_.back().store(i, first, sum, size);
    }
    if (history > 0) {
      std::copy_backward(previous, previous + history - 1, previous + history);
      previous[0] = labels[i].label;
    }
  });
}

void check_context(const char* op, const PredictorSizes& sizes, const std::vector<Tensor>& state) {
  if (sizes.kind == PredictorKind::kLstm) return;
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
  Predictor predictor(sizes, weights, state, output);
  const auto count = static_cast<int64_t>(fed.size());
  Crew::run(crew_size(count * work_of(sizes)), [&](Crew& crew) { predictor.step(crew, fed.data(), count); });
}

}  // namespace
}  // namespace rnnt_fastdecode

STABLE_TORCH_LIBRARY_IMPL(rnnt_fastdecode, CPU, m) {
  m.impl("predictor_step_", TORCH_BOX(&rnnt_fastdecode::predictor_step_));
}
