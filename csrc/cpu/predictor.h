// The prediction network on the CPU, for predictor_step_ and for the greedy loop.
#pragma once

#include "../arguments.h"
#include "matmul.h"

namespace rnnt_fastdecode {

struct PredictorLabel {
  int64_t row;
  int32_t label;
};

// Multiply-adds of one label, which is also the number of weights without the embedding.
inline int64_t work_of(const PredictorSizes& sizes) {
  const int64_t gates = sizes.kind == PredictorKind::kGru ? 3 : 4;
  return (2 * gates * sizes.layers * sizes.width + sizes.joint_width) * sizes.width;
}

class Predictor {
 public:
  Predictor(const PredictorSizes& sizes, const std::vector<Tensor>& weights, const std::vector<Tensor>& state,
            const Tensor& output);

  Predictor(const Predictor&) = delete;
  Predictor& operator=(const Predictor&) = delete;

  // Feeds each label to its row: the row's state and output are replaced, all others stay. A row occurs at
  // most once.
  void step(Crew& crew, const PredictorLabel* labels, int64_t count);

 private:
  void lstm(Crew& crew, const PredictorLabel* labels, int64_t count);
  void gru(Crew& crew, const PredictorLabel* labels, int64_t count);
  void stateless(Crew& crew, const PredictorLabel* labels, int64_t count);

  PredictorSizes sizes_;
  const void* embedding_;  // of an LSTM or a GRU: [V, H]; of a stateless predictor: tables [C, V, H]
  std::vector<WeightMatrix> layers_;  // one for each layer of an LSTM, (input, hidden) for each of a GRU
  std::vector<float> projection_bias_;
  WeightMatrix projection_;
  void* hidden_ = nullptr;
  float* cell_ = nullptr;
  int32_t* context_ = nullptr;
  void* output_;

  // Scratch memory, kept from step to step: what is multiplied in each layer, [x, h] of an LSTM, x and then h
  // of a GRU, and last the input of the projection; and what the products at hand give.
  std::vector<Activations> inputs_;
  std::vector<float> sums_;
};

// Fails if a stateless predictor's context holds anything but labels.
void check_context(const char* op, const PredictorSizes& sizes, const std::vector<Tensor>& state);

}  // namespace rnnt_fastdecode
