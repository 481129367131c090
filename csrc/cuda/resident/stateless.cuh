// What a stateless predictor does, whatever its element type.
#pragma once

#include "context.cuh"

namespace rnnt_fastdecode::cuda {

// Sum of the context's embeddings of a unit, most recent label first.
template <typename T>
__device__ inline float embed(const Context& c, int row, int label, int unit) {
  const ResidentProblem& p = c.p;
  float sum = 0.0f;
  for (int i = 0; i < p.context_size; ++i) {
    const int past = i == 0 ? label : c.rows.history[i - 1][row];
    const int tokens = p.greedy.joint.num_tokens;
    const bool known = past >= 0 && past < tokens;
    const int64_t index = (static_cast<int64_t>(i) * tokens + past) * p.width + unit;
    sum += known ? to_float(static_cast<const T*>(p.tables)[index]) : NAN;
  }
  const float rounded = to_float(from_float<T>(sum));
  return p.relu ? activate(rounded, Activation::kRelu) : rounded;
}

// By kThreads threads, once all of them have read what was there.
__device__ inline void shift_history(const Context& c, int round) {
  for (int row = c.thread; row < c.batch; row += kThreads) {
    const int label = c.labels(round)[row];
    if (label < 0) continue;
    for (int i = c.p.context_size - 2; i > 0; --i) c.rows.history[i][row] = c.rows.history[i - 1][row];
    c.rows.history[0][row] = label;
  }
}

}  // namespace rnnt_fastdecode::cuda
