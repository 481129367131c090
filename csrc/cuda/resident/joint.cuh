// The joint network of the resident decoder: activated sums of encoder and predictor, built in registers as
// they are multiplied, times the block's columns; the best column of each (row, frame) goes out first, the
// sum of the exponentials after it, when nobody waits.
#pragma once

#include <type_traits>

#include "crew.cuh"
#include "frames.cuh"
#include "operands.cuh"

namespace rnnt_fastdecode::cuda {

constexpr int kColumnsPerTile = 16;

template <typename T>
using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;

// tanh and sigmoid, out of line: their code would push everything else out of the instruction cache.
template <typename T>
__device__ __noinline__ unsigned activate_curved(unsigned sum, Activation activation) {
  Pair<T> pair = reinterpret_cast<Pair<T>&>(sum);
  pair.x = from_float<T>(activate(to_float(pair.x), activation));
  pair.y = from_float<T>(activate(to_float(pair.y), activation));
  return reinterpret_cast<unsigned&>(pair);
}

template <typename T>
__device__ inline unsigned add_pairs(unsigned a, unsigned b) {
  const Pair<T> sum = __hadd2(reinterpret_cast<const Pair<T>&>(a), reinterpret_cast<const Pair<T>&>(b));
  return reinterpret_cast<const unsigned&>(sum);
}

template <typename T>
__device__ inline unsigned relu_pair(unsigned a) {
  const unsigned zero = 0;
  const Pair<T> out =
      __hmax2_nan(reinterpret_cast<const Pair<T>&>(a), reinterpret_cast<const Pair<T>&>(zero));
  return reinterpret_cast<const unsigned&>(out);
}

// A lane's columns of one (row, frame).
struct Best {
  unsigned order = 0;
  int token = INT32_MAX;
  float sum = 0.0f;  // of exp(logit - value_of(order)), where more than one pair of tiles is judged
  unsigned duration_order = 0;
  int duration = INT32_MAX;
};

// Tiles of 8 (row, frame) pairs in all, and tiles of 16 columns at a time. Half of the warps have half of the
// pairs, where there are two tiles; the warps of a half share the depth.
template <typename T, int Tiles, int Columns>
struct JointStage {
  static constexpr int kParts = Tiles > 1 ? 2 : 1;
  static constexpr int kDepths = kWarps / kParts;
  static constexpr int kTiles = Tiles / kParts;
  static constexpr int kChunks = kResidentWidth / kChunk / kDepths;

  const Context& c;
  const FrameTiles frames{c};
  const ResidentProblem& p = c.p;
  const ResidentPlan& plan = c.plan;
  const JointProblem& joint = p.greedy.joint;
  const int chunks = frames.chunks;
  const int first_column = c.column_block * plan.column_tiles * kColumnsPerTile;
  const int depth = c.warp % kDepths;
  const int first_tile = c.warp / kDepths * kTiles;

  __device__ void load() const {
    for (int i = c.warp; i < plan.column_tiles * chunks; i += kWarps) {
      const int column = first_column + i / chunks * kColumnsPerTile + c.g;
      const auto weights = [&](int own) {
        const T* row = static_cast<const T*>(joint.weight) + static_cast<int64_t>(own) * joint.width;
        return load_operand(c, row, joint.width, own < joint.columns(), i % chunks);
      };
      keep_weights(c, plan.joint_weights, i, interleave(weights(column), weights(column + 8)));
    }
    for (int i = threadIdx.x; i < plan.column_tiles * kColumnsPerTile; i += kThreads) {
      const int column = first_column + i;
      const bool exists = column < joint.columns();
      c.column_biases()[i] = !exists                 ? -INFINITY
                             : joint.bias == nullptr ? 0.0f
                                                     : to_float(static_cast<const T*>(joint.bias)[column]);
    }
  }

  __device__ __forceinline__ void judge(int round) {
    if (c.slot >= plan.slots) await<Meeting::kFramesReady>();
    for (int group = c.slot; c.slot < plan.slots && group * plan.group_rows < c.batch; group += plan.slots) {
      const bool live = __any_sync(kFullMask, frames.is_live(frames.row_of(group)));
      if (live) {
        judge_group(round, group);
      } else {
        await<Meeting::kFramesReady>();
      }
      if ((group + plan.slots) * plan.group_rows < c.batch) tell<Meeting::kFramesFree>();
    }
  }

  // The predictor output of the lane's row; waits for it.
  __device__ __forceinline__ void read_output(int row, uint4 (&pred)[kChunks]) const {
    const bool live = frames.is_live(row);
    const uint4* messages = live ? c.output_messages(c.rows.labelled[row]) + c.message_index(row, c.t) +
                                       depth * c.row_tiles() * kWarp
                                 : nullptr;
    const int stride = kDepths * c.row_tiles() * kWarp;
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      const bool wanted = live && ((depth + k * kDepths) * 4 + c.t) * kLaneElements < joint.width;
      pred[k] = wanted ? empty_message() : uint4{0, 0, 0, 0};
    }
    int polls = 0;
    // The first alone until it is there, as in operands.cuh.
    do {
      if (polls++ == kPatience) __trap();
      read_if_empty(pred[0], messages);
    } while (__any_sync(kFullMask, pred[0].x == kEmpty));
    unsigned missing;
    do {
      if (polls++ == kPatience) __trap();
#pragma unroll
      for (int k = 1; k < kChunks; ++k) read_if_empty(pred[k], messages + k * stride);
      missing = 0;
#pragma unroll
      for (int k = 1; k < kChunks; ++k) missing |= pred[k].x == kEmpty;
    } while (__any_sync(kFullMask, missing != 0));
  }

  template <bool kRelu>
  __device__ __forceinline__ uint4 activated(const uint4& frame, const uint4& pred) const {
    const uint4 sum{add_pairs<T>(frame.x, pred.x), add_pairs<T>(frame.y, pred.y),
                    add_pairs<T>(frame.z, pred.z), add_pairs<T>(frame.w, pred.w)};
    if constexpr (kRelu) {
      return {relu_pair<T>(sum.x), relu_pair<T>(sum.y), relu_pair<T>(sum.z), relu_pair<T>(sum.w)};
    }
    return {activate_curved<T>(sum.x, joint.activation), activate_curved<T>(sum.y, joint.activation),
            activate_curved<T>(sum.z, joint.activation), activate_curved<T>(sum.w, joint.activation)};
  }

  __device__ __forceinline__ void judge_group(int round, int group) {
    const int row = frames.row_of(group);
    const int first_place = frames.first_place(frames.is_live(row) ? c.rows.times[row] : 0);
    const Pairs pairs = pairs_of(group * plan.group_rows, c.warp << (3 - plan.group_shift));
    uint4 pred[kChunks];
    read_output(row, pred);
    await<Meeting::kFramesReady>();
    Best best[2];
    float logits[2][2 * Columns];
    for (int tile = 0; tile < plan.column_tiles; tile += Columns) {
      float products[Columns][kTiles][4] = {};
      if (joint.activation == Activation::kRelu) {
        multiply<true>(tile, first_place, pred, products);
      } else {
        multiply<false>(tile, first_place, pred, products);
      }
      if (tile > 0) meet_main();
#pragma unroll
      for (int m = 0; m < Columns; ++m) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          part(depth, m, first_tile + n) = {products[m][n][0], products[m][n][1], products[m][n][2],
                                            products[m][n][3]};
        }
      }
      meet_main();
      if (c.warp < plan.frame_tiles) {
#pragma unroll
        for (int m = 0; m < Columns; ++m) collect(tile + m, m, logits);
        include(tile, best, logits);
        if (tile + Columns >= plan.column_tiles) send(round, pairs, best, logits);
      }
    }
    if ((group + plan.slots) * plan.group_rows < c.batch) meet_main();
  }

  // Tiles of columns (the last may lie beyond the block's) times this warp's frames.
  template <bool kRelu>
  __device__ __forceinline__ void multiply(int tile, int first_place, const uint4 (&pred)[kChunks],
                                           float (&products)[Columns][kTiles][4]) const {
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      const int chunk = depth + k * kDepths;
      if (chunk >= chunks) continue;
      WeightFragment weights[Columns];
#pragma unroll
      for (int m = 0; m < Columns; ++m) {
        weights[m] =
            kept_weights(c, plan.joint_weights, min(tile + m, plan.column_tiles - 1) * chunks + chunk);
      }
      uint4 x[kTiles];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        x[n] = read_shared(frames.place(first_place, min(first_tile + n, plan.frame_tiles - 1), chunk));
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n) x[n] = activated<kRelu>(x[n], pred[k]);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int m = 0; m < Columns; ++m) multiply_chunk<T>(products[m][n], weights[m], x[n]);
      }
    }
  }

  // A warp's part of the sums of a tile of columns and a tile of pairs.
  __device__ __forceinline__ float4& part(int depth, int m, int tile) const {
    return c.sums()[((depth * Columns + m) * Tiles + tile) * kWarp + c.lane];
  }

  // Warp n has tile n of frames: of (row, frame) 2 t and 2 t + 1 the columns g and g + 8 of each column tile.
  __device__ __forceinline__ void collect(int tile, int m, float (&logits)[2][2 * Columns]) const {
    float4 total{0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int d = 0; d < kDepths; ++d) {
      const float4 sum = part(d, m, c.warp);
      total = {total.x + sum.x, total.y + sum.y, total.z + sum.z, total.w + sum.w};
    }
    const bool exists = tile < plan.column_tiles;
    const float* bias = c.column_biases() + tile * kColumnsPerTile + c.g;
    const float low = exists ? bias[0] : -INFINITY, high = exists ? bias[8] : -INFINITY;
    logits[0][2 * m] = total.x + low;
    logits[1][2 * m] = total.y + low;
    logits[0][2 * m + 1] = total.z + high;
    logits[1][2 * m + 1] = total.w + high;
  }

  __device__ __forceinline__ void include(int tile, Best (&best)[2], float (&logits)[2][2 * Columns]) const {
    const int column = first_column + tile * kColumnsPerTile + c.g;
    if (c.duration_block >= 0) include_durations(column, best, logits);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned before = best[i].order;
#pragma unroll
      for (int j = 0; j < 2 * Columns; ++j) {
        take(best[i].order, best[i].token, order_of(logits[i][j]), column + 8 * j);
      }
      if (plan.column_tiles > Columns) {
        best[i].sum =
            best[i].sum == 0.0f ? 0.0f : best[i].sum * expf(value_of(before) - value_of(best[i].order));
        best[i].sum += sum_of(logits[i], value_of(best[i].order));
      }
    }
  }

  __device__ __forceinline__ static float sum_of(const float (&logits)[2 * Columns], float max) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < 2 * Columns; ++j) sum += exp_below(logits[j], max);
    return sum;
  }

  // Durations leave the competition of the tokens.
  __device__ __forceinline__ void include_durations(int column, Best (&best)[2],
                                                    float (&logits)[2][2 * Columns]) const {
#pragma unroll
    for (int j = 0; j < 2 * Columns; ++j) {
      const int duration = column + 8 * j - joint.num_tokens;
      if (duration < 0 || duration >= joint.num_durations) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        take(best[i].duration_order, best[i].duration, order_of(logits[i][j]), duration);
        logits[i][j] = -INFINITY;
      }
    }
  }

  // Where the results of a lane's two pairs of a tile go, if they are wanted.
  struct Pairs {
    int row[2];
    int frame[2];
    bool wanted[2];
  };

  __device__ __forceinline__ Pairs pairs_of(int first_row, int first_frame) const {
    Pairs out;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int index = 2 * c.t + i;
      const int row = first_row + (index & (plan.group_rows - 1));
      const int frame = first_frame + (index >> plan.group_shift);
      out.row[i] = row;
      out.frame[i] = frame;
      out.wanted[i] = c.g == 0 && frame < joint.window && frames.is_live(row) &&
                      c.rows.times[row] + frame < c.rows.lengths[row];
    }
    return out;
  }

  __device__ __forceinline__ void send(int round, const Pairs& pairs, Best (&best)[2],
                                       float (&logits)[2][2 * Columns]) {
    const unsigned tag = static_cast<unsigned>(round + 1);
    unsigned own_order[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      own_order[i] = best[i].order;
      take_over_lanes(best[i].order, best[i].token);
      if (pairs.wanted[i]) {
        write_message(c.partial(pairs.row[i], pairs.frame[i], c.column_block),
                      {best[i].order, static_cast<unsigned>(best[i].token), 0, tag});
      }
    }
#pragma unroll
    for (int i = 0; c.duration_block >= 0 && i < 2; ++i) {
      take_over_lanes(best[i].duration_order, best[i].duration);
      if (pairs.wanted[i]) {
        write_message(c.duration_partial(pairs.row[i], pairs.frame[i], c.duration_block),
                      {best[i].duration_order, static_cast<unsigned>(best[i].duration), 0, tag});
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float max = value_of(best[i].order);
      float sum = plan.column_tiles > Columns
                      ? (best[i].sum == 0.0f ? 0.0f : best[i].sum * expf(value_of(own_order[i]) - max))
                      : sum_of(logits[i], max);
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2) sum += __shfl_xor_sync(kFullMask, sum, offset);
      if (pairs.wanted[i]) {
        write_message(c.partial_sum(round, pairs.row[i], pairs.frame[i], c.column_block),
                      {best[i].order, __float_as_uint(sum), 0, tag});
      }
    }
  }
};

}  // namespace rnnt_fastdecode::cuda
