// The prediction network on the CPU, for predictor_step_ and for the greedy loop.
#pragma once

#include "../arguments.h"
#include "matmul.h"

namespace rnnt_fastdecode {

struct PredictorLabel {
  int64_t row;
  int32_t label;
};

class Predictor {
 public:
  Predictor(const PredictorSizes& sizes, const std::vector<Tensor>& weights, const std::vector<Tensor>& state,
            const Tensor& output);

  // Feeds each label to its row: the row's state and output are replaced, all others stay. A row occurs at
  // most once.
  void step(const PredictorLabel* labels, int64_t count) const;

 private:
  void lstm(const PredictorLabel* labels, int64_t count, float* result) const;
  void gru(const PredictorLabel* labels, int64_t count, float* result) const;
  void stateless(const PredictorLabel* labels, int64_t count, float* result) const;

  PredictorSizes sizes_;
  const void* embedding_;  // of an LSTM or a GRU: [V, H]; of a stateless predictor: tables [C, V, H]
  std::vector<WeightMatrix> layers_;  // one for each layer of an LSTM, (input, hidden) for each of a GRU
  std::vector<float> projection_bias_;
  WeightMatrix projection_;
  void* hidden_ = nullptr;
  float* cell_ = nullptr;
  int32_t* context_ = nullptr;
  void* output_;
};

// Fails if a stateless predictor's context holds anything but labels.
void check_context(const char* op, const PredictorSizes& sizes, const std::vector<Tensor>& state);

}  // namespace rnnt_fastdecode
