// The joint network of the resident decoder: activated sums of encoder and predictor, built in registers as
// they are multiplied, times the block's columns; the best column of each (row, frame) goes out first, the
// sum of the exponentials after it, when nobody waits.
#pragma once

#include <type_traits>

#include "crew.cuh"
#include "frames.cuh"
#include "operands.cuh"

namespace rnnt_fastdecode::cuda {

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

// What a warp has found in the columns of a pair so far.
struct Best {
  unsigned order = 0;
  int token = INT32_MAX;
  float sum = 0.0f;  // of exp(logit - value_of(order))
  unsigned duration_order = 0;
  int duration = INT32_MAX;
};

// Tiles of 8 (row, frame) pairs in all, and tiles of 16 columns at a time. The warps share the depth; where
// there are many tiles, half of the warps have half of the pairs. Then every warp adds up and judges one pair
// of each tile.
template <typename T, int Tiles, int Columns>
struct JointStage {
  static constexpr int kDepths = joint_depths(Tiles);
  static constexpr int kTiles = Tiles * kDepths / kWarps;
  static constexpr int kChunks = kResidentWidth / kChunk / kDepths;
  // Small products take what is there before the predictor's outputs arrive, and have two chains of sums.
  static constexpr bool kEarlyWeights = Tiles <= 2;
  static constexpr bool kEarlyFrames = Tiles == 1;
  static constexpr int kChains = kTiles * Columns <= 2 ? 2 : 1;

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
    int buffer = 0;
    for (int group = c.slot; frames.exists(group); group += plan.slots) {
      if (group > c.slot) begin_another();
      if (__any_sync(kFullMask, frames.is_live(frames.row_of(group)))) {
        judge_group(round, group, buffer);
      } else {
        if (group == c.slot) await<Meeting::kFramesReady>();
        stage_after(group, buffer);
      }
      buffer = frames.buffer_after(buffer);
    }
  }

  // Fetches the frames of the next group that has no room yet. With few tiles all have.
  __device__ __forceinline__ void stage_after(int group, int buffer) const {
    if (Tiles > kFewTiles && frames.exists(group + plan.frame_buffers * plan.slots)) {
      const Context fresh = c.anew();
      int begin = 0;
      FrameLoader<T, MainCrew>{fresh}.stage(group + plan.frame_buffers * plan.slots, buffer, begin);
    }
  }

  // The frames of another group are there, and the sums of the one before are read.
  __device__ __forceinline__ void begin_another() const {
    await_copies();
    meet_main();
  }

  // The predictor output of the lane's row; waits for it. Of a row that is done, anything.
  __device__ __forceinline__ void read_output(int row, uint4 (&pred)[kChunks]) const {
    const bool live = frames.is_live(row);
    const int known = live ? row : 0;
    const bool exists = depth < chunks;  // a chunk for this warp
    const uint4* const messages = c.output_messages(c.rows.labelled[known]) + c.message_index(known, c.t) +
                                  (exists ? depth : 0) * c.row_tiles() * kWarp;
    const int stride = kDepths * c.row_tiles() * kWarp;
    const auto place = [&](int k) { return messages + (depth + k * kDepths < chunks ? k * stride : 0); };
    const auto is_missing = [&] {
      bool missing = false;
#pragma unroll
      for (int k = 0; k < kChunks; ++k) missing |= pred[k].x == kEmpty;
      return __any_sync(kFullMask, live && exists && missing);
    };
#pragma unroll
    for (int k = 0; k < kChunks; ++k) pred[k] = read_message(place(k));
    for (int polls = 0; is_missing(); ++polls) {
      if (polls == kPatience) __trap();
#pragma unroll
      for (int k = 0; k < kChunks; ++k) {
        if constexpr (Tiles > kFewTiles) {
          pred[k] = read_message(place(k));
        } else {
          read_if_empty(pred[k], place(k));
        }
      }
    }
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

  __device__ __forceinline__ void judge_group(int round, int group, int buffer) {
    const int row = frames.row_of(group);
    const int first_place = frames.first_place(frames.is_live(row) ? c.rows.times[row] : 0);
    const Pair own = own_pair(round, group);
    if (group == c.slot) await<Meeting::kFramesReady>();
    WeightFragment early_weights[kChunks][Columns];
    uint4 early_frames[kChunks][kTiles];
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      if (depth + k * kDepths >= chunks) continue;
      if constexpr (kEarlyWeights) load_weights(0, k, early_weights[k]);
      if constexpr (kEarlyFrames) load_frames(buffer, first_place, k, early_frames[k]);
    }
    uint4 pred[kChunks];
    read_output(row, pred);
    Best best;  // of the pair that is this lane's
#pragma unroll 1
    for (int tile = 0; tile < plan.column_tiles; tile += Columns) {
      float products[kChains][Columns][kTiles][4] = {};
      if (joint.activation == Activation::kRelu) {
        multiply<true>(tile, buffer, first_place, early_weights, early_frames, pred, products);
      } else {
        multiply<false>(tile, buffer, first_place, early_weights, early_frames, pred, products);
      }
      if (tile > 0) meet_main();
      leave(products);
      meet_main();
      if (tile + Columns >= plan.column_tiles) stage_after(group, buffer);
      include(round, own, tile, best);
    }
  }

  // The last tile of columns may lie beyond the block's.
  __device__ __forceinline__ void load_weights(int tile, int k, WeightFragment (&weights)[Columns]) const {
#pragma unroll
    for (int m = 0; m < Columns; ++m) {
      const int first = min(tile + m, plan.column_tiles - 1) * chunks;
      weights[m] = kept_weights(c, plan.joint_weights, first + depth + k * kDepths);
    }
  }

  __device__ __forceinline__ void load_frames(int buffer, int first_place, int k, uint4 (&x)[kTiles]) const {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      x[n] = read_shared(
          frames.place(buffer, first_place, min(first_tile + n, plan.frame_tiles - 1), depth + k * kDepths));
    }
  }

  // Tiles of columns times this warp's pairs.
  template <bool kRelu>
  __device__ __forceinline__ void multiply(int tile, int buffer, int first_place,
                                           const WeightFragment (&early_weights)[kChunks][Columns],
                                           const uint4 (&early_frames)[kChunks][kTiles],
                                           const uint4 (&pred)[kChunks],
                                           float (&products)[kChains][Columns][kTiles][4]) const {
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      if (depth + k * kDepths >= chunks) continue;
      WeightFragment weights[Columns];
      uint4 x[kTiles];
      if constexpr (!kEarlyWeights) load_weights(tile, k, weights);
      if constexpr (!kEarlyFrames) load_frames(buffer, first_place, k, x);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        x[n] = activated<kRelu>(kEarlyFrames ? early_frames[k][n] : x[n], pred[k]);
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int m = 0; m < Columns; ++m) {
          multiply_chunk<T>(products[0][m][n], products[kChains - 1][m][n],
                            kEarlyWeights ? early_weights[k][m] : weights[m], x[n]);
        }
      }
    }
  }

  // --- sums -----------------------------------------------------------------------------------------------

  static constexpr int kPairFloats = joint_pair_floats(Columns);
  static constexpr int kDepthFloats = joint_depth_floats(Tiles, Columns);

  __device__ __forceinline__ float* parts() const { return reinterpret_cast<float*>(c.sums()); }

  // The parts of the sums that this warp has: of pairs 2 t and 2 t + 1 of a tile the columns g and g + 8.
  __device__ __forceinline__ void leave(const float (&products)[kChains][Columns][kTiles][4]) const {
    float* own = parts() + depth * kDepthFloats + (first_tile * 8 + 2 * c.t) * kPairFloats + c.g;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int m = 0; m < Columns; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float sum = products[0][m][n][i];
          if constexpr (kChains > 1) sum += products[1][m][n][i];
          own[(n * 8 + i % 2) * kPairFloats + m * kColumnsPerTile + i / 2 * 8] = sum;
        }
      }
    }
  }

  // Of this warp's pair of tile n, and of the lane's column: with one tile of columns two lanes have the
  // same.
  __device__ __forceinline__ float total(int n) const {
    constexpr int kShare = Columns > 1 ? kDepths : kDepths / 2;
    const float* own = parts() + (n * 8 + c.warp) * kPairFloats + c.lane % (Columns * kColumnsPerTile);
    if constexpr (Columns == 1) own += c.lane / kColumnsPerTile * kShare * kDepthFloats;
    float sum = own[0];
#pragma unroll
    for (int d = 1; d < kShare; ++d) sum += own[d * kDepthFloats];
    if constexpr (Columns == 1) sum += __shfl_xor_sync(kFullMask, sum, kColumnsPerTile);
    return sum;
  }

  // --- results --------------------------------------------------------------------------------------------

  // The (row, frame) of a lane, in the order of messages: lane n has the pair of tile n that its warp judges.
  struct Pair {
    int index;
    uint4* partial;  // worked out before it is judged
    bool wanted;
  };

  __device__ __forceinline__ Pair own_pair(int round, int group) const {
    const int row = group * plan.group_rows + (c.warp & (plan.group_rows - 1));
    const int frame = (8 * c.lane + c.warp) >> plan.group_shift;
    const bool wanted = c.lane < plan.frame_tiles && frame < joint.window && frames.is_live(row) &&
                        c.rows.times[row] + frame < c.rows.lengths[row];
    const int index = opaque(c.frame_index(round, row, frame));
    return {index, opaque(c.partial(index, c.column_block)), wanted};
  }

  // Judges the columns from `tile` on; after the last ones the results go out, the best columns first.
  __device__ __forceinline__ void include(int round, const Pair& own, int tile, Best& best) const {
    const bool last = tile + Columns >= plan.column_tiles;
    const unsigned tag = static_cast<unsigned>(round + 1);
    unsigned orders[Tiles], top = 0;
    int token = 0;
    judge_columns(tile, orders);
    if (c.duration_block >= 0) take_durations(tile, orders, best);
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      unsigned highest = orders[n];
      int first = column_of(tile);
      take_over_warp(highest, first);
      top = c.lane == n ? highest : top;
      token = c.lane == n ? first : token;
    }
    const unsigned before = best.order;
    take(best.order, best.token, top, token);
    if (last && own.wanted) {
      write_message(own.partial, {best.order, static_cast<unsigned>(best.token), 0, tag});
      if (c.duration_block >= 0) {
        write_message(c.duration_partial(opaque(own.index), c.duration_block),
                      {best.duration_order, static_cast<unsigned>(best.duration), 0, tag});
      }
    }
    float parts[kParts] = {};
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      parts[n] = exp_below(value_of(orders[n]), value_of(__shfl_sync(kFullMask, top, n)));
    }
    const float sum = total_of_lane(parts);
    best.sum = scaled(best.sum, before, best.order) + scaled(sum, top, best.order);
    if (last && own.wanted) {
      write_message(c.partial_sum(opaque(own.index), c.column_block),
                    {best.order, __float_as_uint(best.sum), 0, tag});
    }
  }

  // Lane n gets the sum of parts[n] over the lanes: half of the sums stay, half go to the other lanes.
  static constexpr int kParts = Tiles > 4 ? 8 : Tiles;
  __device__ __forceinline__ float total_of_lane(float (&parts)[kParts]) const {
    int offset = Columns * kColumnsPerTile / 2;
#pragma unroll
    for (int left = kParts / 2; left > 0; left /= 2, offset /= 2) {
      const bool upper = (c.lane & offset) != 0;
#pragma unroll
      for (int i = 0; i < left; ++i) {
        const float stays = upper ? parts[i + left] : parts[i], goes = upper ? parts[i] : parts[i + left];
        parts[i] = stays + __shfl_xor_sync(kFullMask, goes, offset);
      }
    }
#pragma unroll
    for (; offset > 0; offset /= 2) parts[0] += __shfl_xor_sync(kFullMask, parts[0], offset);
    return __shfl_sync(kFullMask, parts[0], c.lane * (Columns * kColumnsPerTile / kParts));
  }

  __device__ __forceinline__ int column_of(int tile) const {
    return first_column + tile * kColumnsPerTile + c.lane % (Columns * kColumnsPerTile);
  }

  // The orders of this lane's column for the warp's pair of every tile; where there is no pair, anything.
  __device__ __forceinline__ void judge_columns(int tile, unsigned (&orders)[Tiles]) const {
    const int column = column_of(tile), own = column - first_column;
    const bool exists = own < plan.column_tiles * kColumnsPerTile && column < joint.columns();
    const float bias = exists ? c.column_biases()[own] : 0.0f;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      const float logit = total(n) + bias;
      orders[n] = order_of(exists ? logit : -INFINITY);
    }
  }

  // Durations leave the competition of the tokens for one of their own.
  __device__ __forceinline__ void take_durations(int tile, unsigned (&orders)[Tiles], Best& best) const {
    const int duration = column_of(tile) - joint.num_tokens;
    const bool exists = duration >= 0 && duration < joint.num_durations;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      unsigned highest = exists ? orders[n] : 0;
      int first = exists ? duration : INT32_MAX;
      take_over_warp(highest, first);
      if (c.lane == n) take(best.duration_order, best.duration, highest, first);
      if (exists) orders[n] = order_of(-INFINITY);
    }
  }
};

}  // namespace rnnt_fastdecode::cuda
