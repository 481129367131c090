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

  __device__ void decide(int round) {
    const int first = plan.blocks - 1 - c.block;
    if (first >= plan.deciders) return;
    for (int row = first; row < c.batch; row += plan.deciders) {
      if (!c.rows.done[row]) decide_row(round, row);
    }
  }

  // The best of a frame's partial results, by one warp; several are on their way at once.
  __device__ int merge(const uint4* partials, int count, unsigned tag) const {
    constexpr int kAtOnce = 3;
    unsigned best = 0;
    int index = INT32_MAX;
    for (int first = c.lane; first < count; first += kAtOnce * kWarp) {
      uint4 part[kAtOnce];
      bool missing;
      int polls = 0;
      do {
        if (polls++ == kPatience) __trap();
        missing = false;
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i)
          part[i] = read_message(partials + min(first + i * kWarp, count - 1));
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) missing |= part[i].w != tag;
      } while (missing);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) take(best, index, part[i].x, static_cast<int>(part[i].y));
    }
    __syncwarp();
    const unsigned top = __reduce_max_sync(kFullMask, best);
    return __reduce_min_sync(kFullMask, best == top ? index : INT32_MAX);
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

  __device__ void decide_row(int round, int row) {
    const unsigned tag = static_cast<unsigned>(round + 1);
    const int start = c.rows.times[row], length = c.rows.lengths[row], count = c.rows.counts[row];
    const int frames = min(p.greedy.joint.window, length - start);
    for (int frame = warp; frame < frames; frame += Crew::kWarps) {
      FrameResult result{merge(c.partial(row, frame, 0), plan.column_blocks, tag), 0};
      if (plan.duration_blocks > 0) {
        result.duration =
            p.greedy.durations[merge(c.duration_partial(row, frame, 0), plan.duration_blocks, tag)];
      }
      if (c.lane == 0) results[frame] = result;
    }
    if (warp == Crew::kWarps - 1) await_all_progress(round - 1);
    Crew::meet();
    // Every thread walks, and tells some of the blocks.
    int label = -1, frame = 0, duration = 0;
    RowState state{start, c.rows.symbols[row]};
    while (label < 0 && state.time < start + frames) {
      frame = state.time;
      const FrameResult result = results[frame - start];
      duration = result.duration;
      if (result.token == p.greedy.blank_id) {
        state = {frame + max(duration, 1), 0};
      } else {
        label = result.token;
        state = after_label(state, duration, p.greedy.max_symbols);
      }
    }
    const int new_count = count + (label >= 0 ? 1 : 0);
    const bool done = !(state.time < length && new_count < p.greedy.capacity);
    const uint4 decision{static_cast<unsigned>(label), static_cast<unsigned>(state.time),
                         static_cast<unsigned>(done), tag};
    for (int block = Crew::thread(); block < plan.blocks; block += kThreads) {
      write_message(c.decision(round, block, row), decision);
    }
    Crew::meet();
    if (warp == 0) {
      const float probability = label >= 0 ? log_prob(round, row, frame - start) : 0.0f;
      if (c.lane == 0) store(row, count, label, frame, duration, probability, state, done);
    }
  }

  __device__ void store(int row, int count, int label, int frame, int duration, float log_prob,
                        const RowState& state, bool done) {
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
