// predictor_step_ on the CPU. The rows that have a label are gathered and go through the network together, so
// that weights are read once for all of them.

#include "predictor.h"

namespace rnnt_fastdecode {

Predictor::Predictor(const PredictorSizes& sizes, const std::vector<Tensor>& weights,
                     const std::vector<Tensor>& state, const Tensor& output)
    : sizes_(sizes), embedding_(weights[0].const_data_ptr()), output_(output.mutable_data_ptr()) {
  const int64_t width = sizes.width;
  const bool lstm = sizes.kind == PredictorKind::kLstm;
  const int64_t matrices = lstm ? 1 : 2;  // of each layer
  const int64_t rows = (lstm ? 4 : 3) * width, columns = (lstm ? 2 : 1) * width;
  for (int64_t i = 0; i < matrices * sizes.layers; ++i) {
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
  for (size_t i = 0; i <= layers_.size(); ++i) inputs_.emplace_back(sizes.dtype);
}

void Predictor::step(Crew& crew, const PredictorLabel* labels, int64_t count) {
  if (count == 0) return;
  const bool is_lstm = sizes_.kind == PredictorKind::kLstm, is_gru = sizes_.kind == PredictorKind::kGru;
  // The gates of an LSTM; both sides of the gates of a GRU and its hidden state.
  const int64_t width = sizes_.width, layer_sums = (is_lstm ? 4 : is_gru ? 7 : 0) * width;
  const auto needed = static_cast<size_t>(count * std::max(layer_sums, sizes_.joint_width));
  if (sums_.size() < needed) sums_.resize(needed);
  for (Activations& input : inputs_) {
    input.resize(count, is_lstm and &input != &inputs_.back() ? 2 * width : width);
  }
  if (is_lstm) {
    lstm(crew, labels, count);
  } else if (is_gru) {
    gru(crew, labels, count);
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

// r, z = sigmoid(W x + b + U h + c); n = tanh(W x + b + r (U h + c)); h = (1 - z) n + z h
void Predictor::gru(Crew& crew, const PredictorLabel* labels, int64_t count) {
  const int64_t width = sizes_.width, layers = sizes_.layers;
  const auto state = [&](int64_t layer, int64_t i) { return (layer * sizes_.batch + labels[i].row) * width; };
  for (int64_t i = 0; i < count; ++i) {
    inputs_.front().load(i, 0, embedding_, labels[i].label * width, width);
    for (int64_t layer = 0; layer < layers; ++layer) {
      inputs_[2 * layer + 1].load(i, 0, hidden_, state(layer, i), width);
    }
  }
  float* from_input = sums_.data();
  float* from_hidden = from_input + count * 3 * width;
  float* hidden = from_hidden + count * 3 * width;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const int64_t x = 2 * layer, h = x + 1;
    multiply(crew, {{&inputs_[x], &layers_[x], from_input}, {&inputs_[h], &layers_[h], from_hidden}}, count,
             width, [&](int64_t first_row, int64_t end_row, int64_t first, int64_t end) {
               for (int64_t i = first_row; i < end_row; ++i) {
                 const int64_t place = state(layer, i) + first;
                 const int64_t gates = i * 3 * width + first;
                 float* own = hidden + i * width + first;
                 load_row(sizes_.dtype, hidden_, place, end - first, own);
                 kernels().gru_cell(from_input + gates, from_hidden + gates, width, end - first, own);
                 store_row(sizes_.dtype, own, end - first, hidden_, place);
                 inputs_[x + 2].load(i, first, hidden_, place, end - first);
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
  Predictor predictor(sizes, weights, state, output);
  const auto count = static_cast<int64_t>(fed.size());
  Crew::run(crew_size(count * work_of(sizes)), [&](Crew& crew) { predictor.step(crew, fed.data(), count); });
}

}  // namespace
}  // namespace rnnt_fastdecode

STABLE_TORCH_LIBRARY_IMPL(rnnt_fastdecode, CPU, m) {
  m.impl("predictor_step_", TORCH_BOX(&rnnt_fastdecode::predictor_step_));
}
