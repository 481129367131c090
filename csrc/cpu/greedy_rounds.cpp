// greedy_rounds_ on the CPU: the whole greedy loop.
//
// Rows advance on their own and share passes over the weights: the joint network for a few frames of every
// row that has not yet found its next label, and a predictor step for the rows that did. Blank does not
// change the predictor's output, so looking at frames ahead is exact; frames that a row then skips were
// computed in vain, so only as many are looked at as it takes to fill a pass. The predictor's weights are
// most of all weights: its step waits until enough rows have a label to make the pass worth it.
//
// Threads share each pass, so that a weight is read once for all rows and by one thread. Where the weights
// are small enough for every thread to keep them near, threads take rows of their own instead and never wait.

#include <torch/csrc/stable/ops.h>

#include "joint.h"
#include "loop.h"
#include "predictor.h"

namespace rnnt_fastdecode {
namespace {

// Rows of activations from which on a pass over the weights is bound by arithmetic and not by memory. Of
// frames fewer are looked at, as some of them are in vain; of labels more are awaited where there are many
// rows.
constexpr int64_t kFramesPerPass = 8;
constexpr int64_t kLabelsPerPass = 12;

// Numbers that a core's own cache holds.
constexpr int64_t kPrivateWeights = 1 << 18;

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
  RowGroup(Crew& crew, const JointSizes& sizes, Joint& joint, Predictor& predictor, const Rules& rules,
           const Outputs& outputs, const int32_t* lengths, int64_t begin, int64_t end)
      : crew_(crew),
        sizes_(sizes),
        joint_(joint),
        predictor_(predictor),
        rules_(rules),
        out_(outputs),
        lengths_(lengths),
        begin_(begin),
        end_(end) {}

  // Runs the rounds; returns the number of rows that are still active.
  int64_t run() {
    if (rules_.rounds < 0) {
      run_to_the_end();
      return 0;
    }
    for (int64_t round = 0; round < rules_.rounds; ++round) {
      for (int64_t row = begin_; row < end_; ++row) {
        if (active(row)) searches_.push_back({.row = row, .end = out_.times[row] + rules_.window});
      }
      if (searches_.empty()) return 0;
      while (not searches_.empty()) search();
      feed();
    }
    int64_t remaining = 0;
    for (int64_t row = begin_; row < end_; ++row) remaining += active(row);
    return remaining;
  }

 private:
  // A row looks for its next label, before frame `end`.
  struct Search {
    int64_t row, end;
    int64_t first = 0, count = 0;  // its part of frames_
    int32_t label = -1;            // what it found
  };

  int64_t end_of(int64_t row) const { return std::min<int64_t>(lengths_[row], sizes_.frames); }
  bool active(int64_t row) const {
    return out_.times[row] < end_of(row) and out_.counts[row] < out_.capacity;
  }

  // Nobody counts the rounds, so that a row need not wait for the others' labels.
  void run_to_the_end() {
    for (int64_t row = begin_; row < end_; ++row) {
      if (active(row)) searches_.push_back({.row = row, .end = end_of(row)});
    }
    const auto enough = static_cast<size_t>(std::max(kLabelsPerPass, (end_ - begin_) / 4));
    while (not searches_.empty()) {
      while (not searches_.empty() and labels_.size() < enough) search();
      for (const PredictorLabel& fed : labels_) {
        if (active(fed.row)) searches_.push_back({.row = fed.row, .end = end_of(fed.row)});
      }
      feed();
    }
  }

  void feed() {
    predictor_.step(crew_, labels_.data(), static_cast<int64_t>(labels_.size()));
    labels_.clear();
  }

  // Looks at the next frames of every row that searches. Rows that find a label go over to labels_, rows at
  // their end are done.
  void search() {
    const auto rows = static_cast<int64_t>(searches_.size());
    const int64_t share = std::max<int64_t>(1, kFramesPerPass / rows);
    frames_.clear();
    for (Search& search : searches_) {
      const int64_t first = out_.times[search.row];
      const int64_t last = std::min({first + share, search.end, end_of(search.row)});
      search.first = static_cast<int64_t>(frames_.size());
      search.count = last - first;
      for (int64_t time = first; time < last; ++time) frames_.push_back({search.row, time});
    }
    const auto count = static_cast<int64_t>(frames_.size());
    joint_.evaluate(crew_, frames_.data(), count);
    crew_.share(rows, count * sizes_.vocab, [&](int64_t i) { walk(searches_[i]); });

    size_t kept = 0;
    for (const Search& search : searches_) {
      if (search.label >= 0) {
        labels_.push_back({search.row, search.label});
      } else if (out_.times[search.row] < std::min(search.end, end_of(search.row))) {
        searches_[kept++] = search;
      }
    }
    searches_.resize(kept);
  }

  // Moves a row over its blanks, to its first label or to the end of what was looked at.
  void walk(Search& search) {
    int32_t& time = out_.times[search.row];
    const int64_t first = time;
    while (time < first + search.count and search.label < 0) {
      search.label = advance(search.row, search.first + time - first);
    }
  }

  // One frame of one row, the i-th that was looked at: the label that it gave, or -1 for blank.
  int32_t advance(int64_t row, int64_t i) {
    const bool tdt = not rules_.durations.empty();
    const auto token = static_cast<int32_t>(joint_.token(i));
    const int64_t duration = tdt ? rules_.durations[joint_.duration(i)] : 0;
    int32_t& time = out_.times[row];
    int32_t& symbols = out_.symbols[row];
    if (token == rules_.blank_id) {
      time += static_cast<int32_t>(tdt ? std::max<int64_t>(duration, 1) : 1);
      symbols = 0;
      return -1;
    }
    const int64_t place = row * out_.capacity + out_.counts[row]++;
    out_.tokens[place] = token;
    out_.frames[place] = time;
    out_.token_durations[place] = static_cast<int32_t>(duration);
    out_.log_probs[place] = joint_.log_probability(i, token);
    if (duration > 0) {
      time += static_cast<int32_t>(duration);
      symbols = 0;
    } else if (++symbols >= rules_.max_symbols) {
      time += 1;
      symbols = 0;
    }
    return token;
  }

  Crew& crew_;
  const JointSizes& sizes_;
  Joint& joint_;
  Predictor& predictor_;
  const Rules& rules_;
  const Outputs& out_;
  const int32_t* lengths_;
  const int64_t begin_, end_;
  std::vector<Search> searches_;
  std::vector<JointFrame> frames_;
  std::vector<PredictorLabel> labels_;
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

// How many frames a call can look at in a row.
int64_t frames_within_reach(const GreedySizes& sizes, int64_t rounds) {
  return rounds < 0 ? sizes.joint.frames : std::min(rounds, sizes.joint.frames);
}

// There is no resident kernel on a CPU.
int64_t greedy_resident_bytes(const Tensor& weight, const std::string& predictor_kind,
                              const std::vector<Tensor>& predictor_weights, int64_t /*batch*/,
                              int64_t /*num_durations*/, int64_t /*window*/) {
  predictor_sizes("greedy_resident_bytes", predictor_kind, predictor_weights, weight.size(1));
  return 0;
}

}  // namespace

void cpu::greedy_rounds(const Tensor& encoder, const Tensor& lengths, const Tensor& weight,
                        const std::optional<Tensor>& bias, const std::string& activation, int64_t blank_id,
                        const std::vector<int64_t>& durations, int64_t max_symbols, int64_t window,
                        int64_t rounds, const std::string& predictor_kind,
                        const std::vector<Tensor>& predictor_weights,
                        const std::vector<Tensor>& predictor_state, const Tensor& predictor_output,
                        const Tensor& times, const Tensor& symbols, const Tensor& tokens,
                        const Tensor& frames, const Tensor& token_durations, const Tensor& log_probs,
                        const Tensor& counts, const Tensor& active, const std::vector<Tensor>& /*workspace*/,
                        int64_t condition) {
  const GreedySizes sizes = check_greedy_rounds(
      encoder, lengths, weight, bias, activation, blank_id, durations, max_symbols, window, rounds,
      predictor_kind, predictor_weights, predictor_state, predictor_output, times, symbols, tokens, frames,
      token_durations, log_probs, counts, active);
  check(condition == 0, "greedy_rounds_: condition must be 0 on the CPU, got ", condition, ".");
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

  const Rules rules{.blank_id = static_cast<int32_t>(blank_id),
                    .durations = durations,
                    .max_symbols = max_symbols,
                    .window = window,
                    .rounds = rounds};
  std::atomic<int64_t> remaining = 0;
  const auto run_rows = [&](Crew& crew, int64_t begin, int64_t end) {
    Joint joint(sizes.joint, encoder, predictor_output, weight, bias);
    Predictor predictor(sizes.predictor, predictor_weights, predictor_state, predictor_output);
    remaining += RowGroup(crew, sizes.joint, joint, predictor, rules, outputs,
                          lengths.const_data_ptr<int32_t>(), begin, end)
                     .run();
  };
  const int64_t batch = sizes.joint.batch;
  const int64_t members = crew_size(batch * frames_within_reach(sizes, rounds) * work_of(sizes.joint));
  const int64_t weights = work_of(sizes.joint) + work_of(sizes.predictor);
  if (batch >= members and weights <= kPrivateWeights) {
    torch::stable::parallel_for(0, batch, (batch + members - 1) / members, [&](int64_t begin, int64_t end) {
      Crew::run(1, [&](Crew& alone) { run_rows(alone, begin, end); });
    });
  } else {
    Crew::run(members, [&](Crew& crew) { run_rows(crew, 0, batch); });
  }
  active.mutable_data_ptr<int32_t>()[0] = static_cast<int32_t>(remaining.load());
}

}  // namespace rnnt_fastdecode

STABLE_TORCH_LIBRARY_IMPL(rnnt_fastdecode, CPU, m) {
  m.impl("greedy_rounds_", TORCH_BOX(&rnnt_fastdecode::cpu::greedy_rounds));
  m.impl("greedy_resident_bytes", TORCH_BOX(&rnnt_fastdecode::greedy_resident_bytes));
}
