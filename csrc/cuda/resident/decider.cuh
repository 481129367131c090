// The blocks that walk rows: merge what every column block found in a row's window, follow the blanks to the
// first label, tell everybody, then store the label.
#pragma once

#include "context.cuh"

namespace rnnt_fastdecode::cuda {

struct FrameResult {
  int token;
  int duration;
};

// What follows from a row's window.
struct Decision {
  int label = -1;
  int frame = 0;
  int duration = 0;
  int start;   // of the window
  int frames;  // of the window
  int length;  // of the row
  int count;   // of labels before this one
  RowState state;
  int done;
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

  // The best of the partial results of frames first_frame and first_frame + Crew::kWarps of a window of
  // `frames`, by one warp; many are on their way at once.
  __device__ void merge(int round, int row, int first_frame, int frames, FrameResult (&out)[2]) const {
    constexpr int kAtOnce = 3;
    const unsigned tag = static_cast<unsigned>(round + 1);
    const bool durations = plan.duration_blocks > 0;
    // In place of what there is not, something else that counts: nothing changes by it.
    const int second_frame = first_frame + Crew::kWarps < frames ? first_frame + Crew::kWarps : first_frame;
    const int places[2] = {c.frame_index(round, row, first_frame), c.frame_index(round, row, second_frame)};
    unsigned best[2] = {0, 0};
    int index[2] = {INT32_MAX, INT32_MAX};
    uint4 duration[2];
    for (int first = c.lane; first < plan.column_blocks + c.lane; first += kAtOnce * kWarp) {
      uint4 part[2][kAtOnce];
      bool missing;
      int polls = 0;
      do {
        if (polls++ == kPatience) __trap();
#pragma unroll
        for (int f = 0; f < 2; ++f) {
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) {
            part[f][i] = read_message(c.partial(places[f], min(first + i * kWarp, plan.column_blocks - 1)));
          }
        }
        missing = false;
        if (durations) {
#pragma unroll
          for (int f = 0; f < 2; ++f) {
            duration[f] = read_message(c.duration_partial(places[f], min(c.lane, plan.duration_blocks - 1)));
          }
#pragma unroll
          for (int f = 0; f < 2; ++f) missing |= duration[f].w != tag;
        }
#pragma unroll
        for (int f = 0; f < 2; ++f) {
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) missing |= part[f][i].w != tag;
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
      take_over_warp(best[f], index[f]);
      out[f] = {index[f], 0};
      if (durations) {
        int own = static_cast<int>(duration[f].y);
        take_over_warp(duration[f].x, own);
        out[f].duration = p.greedy.durations[own];
      }
    }
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
      const uint4 part =
          await_tag(c.partial_sum(c.frame_index(round, row, frame), i), static_cast<unsigned>(round + 1));
      sum = scaled(sum, best, max(best, part.x)) + scaled(__uint_as_float(part.y), part.x, max(best, part.x));
      best = max(best, part.x);
    }
    const unsigned top = __reduce_max_sync(kFullMask, best);
    sum = scaled(sum, best, top);
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) sum += __shfl_xor_sync(kFullMask, sum, offset);
    return -logf(sum);
  }

  // What is known of a row before its window is judged.
  __device__ Decision open(int row) const {
    const int start = c.rows.times[row], length = c.rows.lengths[row];
    return {.start = start,
            .frames = min(p.greedy.joint.window, length - start),
            .length = length,
            .count = c.rows.counts[row],
            .state = {start, c.rows.symbols[row]}};
  }

  // Follows the blanks of a window to the first label.
  __device__ void walk(Decision& out, const FrameResult* window) const {
    if (plan.duration_blocks > 0) {
      walk_durations(out, window);
    } else {
      walk_frames(out, window);
    }
    const int count = out.count + (out.label >= 0 ? 1 : 0);
    out.done = !(out.state.time < out.length && count < p.greedy.capacity);
  }

  __device__ void walk_durations(Decision& out, const FrameResult* window) const {
    while (out.label < 0 && out.state.time < out.start + out.frames) {
      out.frame = out.state.time;
      const FrameResult result = window[out.frame - out.start];
      out.duration = result.duration;
      if (result.token == p.greedy.blank_id) {
        out.state = {out.frame + max(out.duration, 1), 0};
      } else {
        out.label = result.token;
        out.state = after_label(out.state, out.duration, p.greedy.max_symbols);
      }
    }
  }

  // Every blank is one frame.
  __device__ void walk_frames(Decision& out, const FrameResult* window) const {
    for (int first = 0; first < out.frames; first += kWarp) {
      const int own = first + c.lane;
      const int token = own < out.frames ? window[own].token : p.greedy.blank_id;
      const unsigned labels = __ballot_sync(kFullMask, token != p.greedy.blank_id);
      if (labels == 0) continue;
      const int lane = __ffs(labels) - 1;
      out.frame = out.start + first + lane;
      out.label = __shfl_sync(kFullMask, token, lane);
      out.state =
          after_label({out.frame, out.frame == out.start ? out.state.symbols : 0}, 0, p.greedy.max_symbols);
      return;
    }
    out.state = {out.start + out.frames, 0};
  }

  __device__ void decide_row(int round, int row) const {
    uint4* place = opaque(c.decision(round, Crew::thread(), row));
    Decision own = open(row);
    // While partial results are on their way.
    if (warp == Crew::kWarps - 1) await_all_progress(round - 1);
    for (int first = warp; first < own.frames; first += 2 * Crew::kWarps) {
      const int second = first + Crew::kWarps;
      FrameResult found[2];
      merge(round, row, first, own.frames, found);
      if (c.lane == 0) results[first] = found[0];
      if (c.lane == 0 && second < own.frames) results[second] = found[1];
    }
    Crew::meet();
    // Every thread walks, and tells some of the blocks.
    walk(own, results);
    const uint4 decision{static_cast<unsigned>(own.label), static_cast<unsigned>(own.state.time),
                         static_cast<unsigned>(own.done), static_cast<unsigned>(round + 1)};
    for (int block = Crew::thread(); block < plan.blocks; block += kThreads) {
      write_message(place, decision);
      place += 2 * kThreads * c.batch;
    }
    Crew::meet();
    if (warp == 0) store(round, row, own);
  }

  __device__ void store(int round, int row, const Decision& own) const {
    const float probability = own.label >= 0 ? log_prob(round, row, own.frame - own.start) : 0.0f;
    if (c.lane != 0) return;
    const int count = own.count + (own.label >= 0 ? 1 : 0);
    c.rows.symbols[row] = own.state.symbols;
    c.rows.counts[row] = count;
    if (own.label >= 0) {
      const int64_t index = static_cast<int64_t>(row) * p.greedy.capacity + own.count;
      p.greedy.tokens[index] = own.label;
      p.greedy.frames[index] = own.frame;
      p.greedy.token_durations[index] = own.duration;
      p.greedy.log_probs[index] = probability;
    }
    if (own.done) {
      p.greedy.times[row] = own.state.time;
      p.greedy.symbols[row] = own.state.symbols;
      p.greedy.counts[row] = count;
    }
  }
};

}  // namespace rnnt_fastdecode::cuda
