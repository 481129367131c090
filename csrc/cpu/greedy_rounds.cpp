// greedy_rounds_ on the CPU: the whole greedy loop, threaded over rows.
//
// A thread walks its rows together, so that they share passes over the weights: the joint network for a few
// frames of every row that has not yet found its next label, then one predictor step for all rows that did.
// Blank does not change the predictor's output, so looking at frames ahead is exact; frames that a row then
// skips were computed in vain, so only as many are looked at as it takes to fill a pass. With fewer rows than
// threads the rows stay together and the threads share the matrix products instead.

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "joint.h"
#include "predictor.h"

namespace rnnt_fastdecode {
namespace {

constexpr int64_t kFramesPerPass = 16;

struct Rules {
  int32_t blank_id;
  std::vector<int64_t> durations;
  int64_t max_symbols, window, rounds;
};

// Where the emissions and the positions of all rows live.
struct Outputs {
  int32_t *times, *symbols, *tokens, *frames, *token_durations, *counts;
  float* log_probs;
  int64_t capacity;
};

class RowGroup {
 public:
  RowGroup(const JointSizes& sizes, const Joint& joint, const Predictor& predictor, const Rules& rules,
           const Outputs& outputs, const int32_t* lengths, int64_t begin, int64_t end)
      : sizes_(sizes),
        joint_(joint),
        predictor_(predictor),
        rules_(rules),
        out_(outputs),
        lengths_(lengths),
        begin_(begin),
        end_(end) {}

  // Runs the rounds; returns the number of rows that are still active.
  int64_t run() {
    for (int64_t round = 0; rules_.rounds < 0 or round < rules_.rounds; ++round) {
      pending_.clear();
      labels_.clear();
      for (int64_t row = begin_; row < end_; ++row) {
        if (not active(row)) continue;
        pending_.push_back({row, rules_.rounds < 0 ? end_of(row) : out_.times[row] + rules_.window});
      }
      if (pending_.empty()) return 0;
      // Without a limit on rounds nobody counts them, and a row that found its label need not wait for the
      // others.
      do {
        look_ahead();
        walk();
      } while (rules_.rounds > 0 and not pending_.empty());
      predictor_.step(labels_.data(), static_cast<int64_t>(labels_.size()));
    }
    int64_t remaining = 0;
    for (int64_t row = begin_; row < end_; ++row) remaining += active(row);
    return remaining;
  }

 private:
  struct Window {
    int64_t row, end;
  };

  int64_t end_of(int64_t row) const { return std::min<int64_t>(lengths_[row], sizes_.frames); }
  bool active(int64_t row) const {
    return out_.times[row] < end_of(row) and out_.counts[row] < out_.capacity;
  }

  // The joint network for the next frames of every pending row.
  void look_ahead() {
    const int64_t share = std::max<int64_t>(1, kFramesPerPass / static_cast<int64_t>(pending_.size()));
    frames_.clear();
    for (const Window& window : pending_) {
      const int64_t first = out_.times[window.row];
      const int64_t last = std::min({first + share, window.end, end_of(window.row)});
      for (int64_t time = first; time < last; ++time) frames_.push_back({window.row, time});
    }
    activations_.resize(frames_.size() * static_cast<size_t>(sizes_.joint_width));
    logits_.resize(frames_.size() * static_cast<size_t>(joint_.outputs()));
    joint_.logits(frames_.data(), static_cast<int64_t>(frames_.size()), activations_.data(), logits_.data());
  }

  // Moves every pending row over its blanks, to its first label or to the end of what was looked at. Rows
  // that have frames of their window left stay pending.
  void walk() {
    size_t kept = 0, next = 0;
    for (const Window& window : pending_) {
      int32_t& time = out_.times[window.row];
      const size_t base = next;
      const int64_t first = frames_[base].time;
      while (next < frames_.size() and frames_[next].row == window.row) ++next;
      const int64_t seen = first + static_cast<int64_t>(next - base);
      bool found = false;
      while (time < seen and not found) {
        found = advance(window.row,
                        logits_.data() + (base + static_cast<size_t>(time - first)) * joint_.outputs());
      }
      if (not found and time < std::min(window.end, end_of(window.row))) pending_[kept++] = window;
    }
    pending_.resize(kept);
  }

  // One frame of one row: true if it gave a label.
  bool advance(int64_t row, const float* scores) {
    const bool tdt = not rules_.durations.empty();
    const auto token = static_cast<int32_t>(argmax(scores, sizes_.vocab));
    const int64_t duration = tdt ? rules_.durations[argmax(scores + sizes_.vocab, sizes_.num_durations)] : 0;
    int32_t& time = out_.times[row];
    int32_t& symbols = out_.symbols[row];
    if (token == rules_.blank_id) {
      time += static_cast<int32_t>(tdt ? std::max<int64_t>(duration, 1) : 1);
      symbols = 0;
      return false;
    }
    const int64_t place = row * out_.capacity + out_.counts[row]++;
    out_.tokens[place] = token;
    out_.frames[place] = time;
    out_.token_durations[place] = static_cast<int32_t>(duration);
    out_.log_probs[place] = best_log_probability(scores, sizes_.vocab, token);
    labels_.push_back({row, token});
    if (duration > 0) {
      time += static_cast<int32_t>(duration);
      symbols = 0;
    } else if (++symbols >= rules_.max_symbols) {
      time += 1;
      symbols = 0;
    }
    return true;
  }

  const JointSizes& sizes_;
  const Joint& joint_;
  const Predictor& predictor_;
  const Rules& rules_;
  const Outputs& out_;
  const int32_t* lengths_;
  const int64_t begin_, end_;
  std::vector<Window> pending_;
  std::vector<JointFrame> frames_;
  std::vector<PredictorLabel> labels_;
  std::vector<float> activations_, logits_;
};

void check_values(const GreedySizes& sizes, const Outputs& out) {
  for (int64_t b = 0; b < sizes.joint.batch; ++b) {
    check(out.times[b] >= 0, "greedy_rounds_: times must not be negative, got ", out.times[b], " in row ", b,
          ".");
    check(out.symbols[b] >= 0, "greedy_rounds_: symbols must not be negative, got ", out.symbols[b],
          " in row ", b, ".");
    check(out.counts[b] >= 0 and out.counts[b] <= sizes.capacity,
          "greedy_rounds_: counts must be between 0 and ", sizes.capacity, ", got ", out.counts[b],
          " in row ", b, ".");
  }
}

// Multiply-adds of the joint network alone, for every frame that a call can reach in a row.
int64_t work_per_row(const GreedySizes& sizes, int64_t rounds) {
  const int64_t looks = rounds < 0 ? sizes.joint.frames : std::min(rounds, sizes.joint.frames);
  return looks * sizes.joint.joint_width * (sizes.joint.vocab + sizes.joint.num_durations);
}

void greedy_rounds_(const Tensor& encoder, const Tensor& lengths, const Tensor& weight,
                    const std::optional<Tensor>& bias, const std::string& activation, int64_t blank_id,
                    const std::vector<int64_t>& durations, int64_t max_symbols, int64_t window,
                    int64_t rounds, const std::string& predictor_kind,
                    const std::vector<Tensor>& predictor_weights, const std::vector<Tensor>& predictor_state,
                    const Tensor& predictor_output, const Tensor& times, const Tensor& symbols,
                    const Tensor& tokens, const Tensor& frames, const Tensor& token_durations,
                    const Tensor& log_probs, const Tensor& counts, const Tensor& active,
                    const std::vector<Tensor>& /*workspace*/, int64_t condition, int64_t rows) {
  const GreedySizes sizes = check_greedy_rounds(
      encoder, lengths, weight, bias, activation, blank_id, durations, max_symbols, window, rounds,
      predictor_kind, predictor_weights, predictor_state, predictor_output, times, symbols, tokens, frames,
      token_durations, log_probs, counts, active);
  check(condition == 0, "greedy_rounds_: condition must be 0 on the CPU, got ", condition, ".");
  check(rows == -1, "greedy_rounds_: rows must be -1 on the CPU, got ", rows, ".");
  const Outputs outputs{.times = times.mutable_data_ptr<int32_t>(),
                        .symbols = symbols.mutable_data_ptr<int32_t>(),
                        .tokens = tokens.mutable_data_ptr<int32_t>(),
                        .frames = frames.mutable_data_ptr<int32_t>(),
                        .token_durations = token_durations.mutable_data_ptr<int32_t>(),
                        .counts = counts.mutable_data_ptr<int32_t>(),
                        .log_probs = log_probs.mutable_data_ptr<float>(),
                        .capacity = sizes.capacity};
  check_values(sizes, outputs);
  check_context("greedy_rounds_", sizes.predictor, predictor_state);

  const Joint joint(sizes.joint, encoder, predictor_output, weight, bias);
  const Predictor predictor(sizes.predictor, predictor_weights, predictor_state, predictor_output);
  const Rules rules{.blank_id = static_cast<int32_t>(blank_id),
                    .durations = durations,
                    .max_symbols = max_symbols,
                    .window = window,
                    .rounds = rounds};
  const int64_t batch = sizes.joint.batch;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t worthwhile = kMinimumWork / std::max<int64_t>(1, work_per_row(sizes, rounds));
  const int64_t rows_per_thread =
      batch < threads ? batch : std::max((batch + threads - 1) / threads, worthwhile);
  std::atomic<int64_t> remaining = 0;
  torch::stable::parallel_for(0, batch, std::max<int64_t>(1, rows_per_thread),
                              [&](int64_t begin, int64_t end) {
                                remaining += RowGroup(sizes.joint, joint, predictor, rules, outputs,
                                                      lengths.const_data_ptr<int32_t>(), begin, end)
                                                 .run();
                              });
  active.mutable_data_ptr<int32_t>()[0] = static_cast<int32_t>(remaining.load());
}

// There is no resident kernel on a CPU.
int64_t greedy_resident_bytes(const Tensor& weight, const std::string& predictor_kind,
                              const std::vector<Tensor>& predictor_weights, int64_t /*batch*/,
                              int64_t /*num_durations*/, int64_t /*window*/) {
  predictor_sizes("greedy_resident_bytes", predictor_kind, predictor_weights, weight.size(1));
  return 0;
}

}  // namespace
}  // namespace rnnt_fastdecode

STABLE_TORCH_LIBRARY_IMPL(rnnt_fastdecode, CPU, m) {
  m.impl("greedy_rounds_", TORCH_BOX(&rnnt_fastdecode::greedy_rounds_));
  m.impl("greedy_resident_bytes", TORCH_BOX(&rnnt_fastdecode::greedy_resident_bytes));
}
