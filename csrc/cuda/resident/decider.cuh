// The blocks that walk rows: merge what every column block found in a row's window, follow the blanks to the
// first label, tell everybody, then store the label.
#pragma once

#include "context.cuh"

namespace rnnt_fastdecode::cuda {

struct FrameResult {
  int token;
  int duration;
};

// The warps that decide.
struct WholeBlock {
  static constexpr int kWarps = cuda::kWarps;
  __device__ static int thread() { return threadIdx.x; }
  __device__ static void meet() { __syncthreads(); }
};

template <typename Crew>
struct Decider {
  static constexpr int kThreads = Crew::kWarps * kWarp;

  const Context& c;
  const ResidentProblem& p = c.p;
  const ResidentPlan& plan = c.plan;
  FrameResult* results;  // [kResidentWindow] in shared memory
  const int warp = Crew::thread() / kWarp;

  __device__ void decide(int round) const {
    const int first = plan.blocks - 1 - c.block;
    if (first >= plan.deciders) return;
    for (int row = first; row < c.batch; row += plan.deciders) {
      if (!c.rows.done[row]) decide_row(round, row);
    }
  }

  // The best of the partial results of two frames, by one warp; many are on their way at once.
  __device__ void merge(int row, const int (&frames)[2], unsigned tag, FrameResult (&out)[2]) const {
    constexpr int kAtOnce = 3;
    const bool durations = plan.duration_blocks > 0;
    unsigned best[2] = {0, 0};
    int index[2] = {INT32_MAX, INT32_MAX};
    uint4 part[2][kAtOnce], duration[2];
    for (int first = c.lane; first < plan.column_blocks + c.lane; first += kAtOnce * kWarp) {
      bool missing;
      int polls = 0;
      do {
        if (polls++ == kPatience) __trap();
        missing = false;
#pragma unroll
        for (int f = 0; f < 2; ++f) {
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) {
            const int column = min(first + i * kWarp, plan.column_blocks - 1);
            part[f][i] = read_message(c.partial(row, frames[f], column));
          }
          if (durations) {
            duration[f] =
                read_message(c.duration_partial(row, frames[f], min(c.lane, plan.duration_blocks - 1)));
          }
        }
#pragma unroll
        for (int f = 0; f < 2; ++f) {
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) missing |= part[f][i].w != tag;
          missing |= durations && duration[f].w != tag;
        }
      } while (missing);
#pragma unroll
      for (int f = 0; f < 2; ++f) {
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          take(best[f], index[f], part[f][i].x, static_cast<int>(part[f][i].y));
        }
      }
    }
    __syncwarp();
#pragma unroll
    for (int f = 0; f < 2; ++f) {
      out[f] = {best_of(best[f], index[f]), 0};
      if (durations) {
        out[f].duration = p.greedy.durations[best_of(duration[f].x, static_cast<int>(duration[f].y))];
      }
    }
  }

  __device__ static int best_of(unsigned order, int index) {
    const unsigned top = __reduce_max_sync(kFullMask, order);
    return __reduce_min_sync(kFullMask, order == top ? index : INT32_MAX);
  }

  // Nobody may meet the remains of an earlier round: see rounds.cuh.
  __device__ void await_all_progress(int least) const {
    constexpr int kAtOnce = 5;
    for (int first = c.lane; first < plan.blocks; first += kAtOnce * kWarp) {
      bool behind;
      int polls = 0;
      do {
        if (polls++ == kPatience) __trap();
        int value[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          value[i] = read_progress(c.progress(min(first + i * kWarp, plan.blocks - 1)));
        }
        behind = false;
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) behind |= value[i] < least;
      } while (behind);
    }
  }

  __device__ float log_prob(int round, int row, int frame) const {
    unsigned best = 0;
    float sum = 0.0f;
    for (int i = c.lane; i < plan.column_blocks; i += kWarp) {
      const uint4 part = await_tag(c.partial_sum(round, row, frame, i), static_cast<unsigned>(round + 1));
      sum = scaled(sum, best, max(best, part.x)) + scaled(__uint_as_float(part.y), part.x, max(best, part.x));
      best = max(best, part.x);
    }
    const unsigned top = __reduce_max_sync(kFullMask, best);
    sum = scaled(sum, best, top);
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) sum += __shfl_xor_sync(kFullMask, sum, offset);
    return -logf(sum);
  }

  __device__ static float scaled(float sum, unsigned from, unsigned to) {
    return sum == 0.0f || from == to ? sum : sum * expf(value_of(from) - value_of(to));
  }

  struct Step {
    int label = -1;
    int frame = 0;
    int duration = 0;
  };

  // Follows the blanks to the first label.
  __device__ Step walk(RowState& state, int start, int frames) const {
    Step step;
    while (step.label < 0 && state.time < start + frames) {
      step.frame = state.time;
      const FrameResult result = results[step.frame - start];
      step.duration = result.duration;
      if (result.token == p.greedy.blank_id) {
        state = {step.frame + max(step.duration, 1), 0};
      } else {
        step.label = result.token;
        state = after_label(state, step.duration, p.greedy.max_symbols);
      }
    }
    return step;
  }

  // The same without durations: every blank is one frame.
  __device__ Step find(RowState& state, int start, int frames) const {
    for (int first = 0; first < frames; first += kWarp) {
      const int own = first + c.lane;
      const int token = own < frames ? results[own].token : p.greedy.blank_id;
      const unsigned labels = __ballot_sync(kFullMask, token != p.greedy.blank_id);
      if (labels == 0) continue;
      const int lane = __ffs(labels) - 1, frame = start + first + lane;
      state = after_label({frame, frame == start ? state.symbols : 0}, 0, p.greedy.max_symbols);
      return {__shfl_sync(kFullMask, token, lane), frame, 0};
    }
    state = {start + frames, 0};
    return {};
  }

  __device__ void decide_row(int round, int row) const {
    const unsigned tag = static_cast<unsigned>(round + 1);
    uint4* place = c.decision(round, Crew::thread(), row);
    const int start = c.rows.times[row], length = c.rows.lengths[row], count = c.rows.counts[row];
    const int frames = min(p.greedy.joint.window, length - start);
    // While partial results are on their way.
    if (warp == Crew::kWarps - 1) await_all_progress(round - 1);
    for (int first = warp; first < frames; first += 2 * Crew::kWarps) {
      const int second = first + Crew::kWarps;
      const int pair[2] = {first, min(second, frames - 1)};
      FrameResult found[2];
      merge(row, pair, tag, found);
      if (c.lane == 0) results[first] = found[0];
      if (c.lane == 0 && second < frames) results[second] = found[1];
    }
    Crew::meet();
    // Every thread walks, and tells some of the blocks.
    RowState state{start, c.rows.symbols[row]};
    const Step step = plan.duration_blocks > 0 ? walk(state, start, frames) : find(state, start, frames);
    const int label = step.label, frame = step.frame, duration = step.duration;
    const int new_count = count + (label >= 0 ? 1 : 0);
    const bool done = !(state.time < length && new_count < p.greedy.capacity);
    const uint4 decision{static_cast<unsigned>(label), static_cast<unsigned>(state.time),
                         static_cast<unsigned>(done), tag};
    for (int block = Crew::thread(); block < plan.blocks; block += kThreads) {
      write_message(place, decision);
      place += 2 * kThreads * c.batch;
    }
    Crew::meet();
    if (warp == 0) {
      const float probability = label >= 0 ? log_prob(round, row, frame - start) : 0.0f;
      if (c.lane == 0) store(row, count, label, frame, duration, probability, state, done);
    }
  }

  __device__ void store(int row, int count, int label, int frame, int duration, float log_prob,
                        const RowState& state, bool done) const {
    const int new_count = count + (label >= 0 ? 1 : 0);
    c.rows.symbols[row] = state.symbols;
    c.rows.counts[row] = new_count;
    if (label >= 0) {
      const int64_t index = static_cast<int64_t>(row) * p.greedy.capacity + count;
      p.greedy.tokens[index] = label;
      p.greedy.frames[index] = frame;
      p.greedy.token_durations[index] = duration;
      p.greedy.log_probs[index] = log_prob;
    }
    if (done) {
      p.greedy.times[row] = state.time;
      p.greedy.symbols[row] = state.symbols;
      p.greedy.counts[row] = new_count;
    }
  }
};

}  // namespace rnnt_fastdecode::cuda
