// The joint network of the resident decoder: activated sums of encoder and predictor, built in registers as
// they are multiplied, times the block's columns; the best column of each (row, frame) goes out first, the
// sum of the exponentials after it, when nobody waits.
#pragma once

#include <type_traits>

#include "../fragments.cuh"
#include "context.cuh"
#include "predictor.cuh"

namespace rnnt_fastdecode::cuda {

constexpr int kMaxGroups = kResidentRows / 8;
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

template <typename T, int Tiles>
struct JointStage {
  using Load = Predictor<T, 1, 1>;

  const Context& c;
  const ResidentProblem& p = c.p;
  const ResidentPlan& plan = c.plan;
  const JointProblem& joint = p.greedy.joint;
  // Of every group that this block judges, the projected predictor outputs: this lane's part of its row.
  uint4 (*predicted)[kChunksPerWarp];
  const int chunks = (joint.width + kChunk - 1) / kChunk;
  const int first_column = c.column_block * plan.column_tiles * kColumnsPerTile;
  int staged_end = 0;   // of this lane's row, the frames before it are in shared memory
  int first_place = 0;  // where its window begins there

  __device__ void load_weights() {
    for (int i = c.warp; i < plan.column_tiles * chunks; i += kWarps) {
      const int column = first_column + i / chunks * kColumnsPerTile + c.g;
      const auto load = [&](int own) {
        return Load::load_fragment(
            c, static_cast<const T*>(joint.weight) + static_cast<int64_t>(own) * joint.width, joint.width,
            own < joint.columns(), i % chunks);
      };
      Load::store_fragment(c, plan.joint_weights, i, interleave(load(column), load(column + 8)));
    }
    // Beyond the joint width frames stay zero: whatever else lay there could be no number.
    for (int i = threadIdx.x; i < plan.frame_tiles * chunks * kWarp; i += kThreads) {
      c.fragments(plan.encoder_frames)[i] = {0, 0, 0, 0};
    }
    for (int i = threadIdx.x; i < plan.column_tiles * kColumnsPerTile; i += kThreads) {
      const int column = first_column + i;
      const bool exists = column < joint.columns();
      c.column_biases()[i] = !exists                 ? -INFINITY
                             : joint.bias == nullptr ? 0.0f
                                                     : to_float(static_cast<const T*>(joint.bias)[column]);
    }
  }

  __device__ int element(int i) const { return (c.warp + i * kWarps) * kChunk + c.t * kLaneElements; }

  __device__ __forceinline__ void load_state() {
    if (c.slot >= plan.slots) return;
    for (int i = 0, group = c.slot; group * plan.group_rows < c.batch; ++i, group += plan.slots) {
      const int row = group * plan.group_rows + (c.g & (plan.group_rows - 1));
#pragma unroll
      for (int k = 0; k < kChunksPerWarp; ++k) {
        const T* source = static_cast<const T*>(p.output) + static_cast<int64_t>(row) * joint.width;
        predicted[i][k] = prefetch_constant(source + element(k), row < c.batch && element(k) < joint.width);
        // A caller's NaN must not look like a message that is still to come.
        if (predicted[i][k].x == kEmpty) predicted[i][k].x = 0x7fff7fffu;
      }
    }
  }

  // --- the encoder's frames, in shared memory, each thread's part its own ------------------------------

  __device__ int row_of(int group) const { return group * plan.group_rows + (c.g & (plan.group_rows - 1)); }
  __device__ bool is_live(int row) const { return row < c.batch && !c.rows.done[row]; }
  // Where a block judges one group of 8 rows, frames stay from round to round, in a ring.
  __device__ bool keeps_frames() const {
    return plan.group_rows == 8 && (c.slot + plan.slots) * plan.group_rows >= c.batch;
  }
  __device__ __forceinline__ uint4* staged(int place, int k) const {
    return c.fragments(plan.encoder_frames) + (place * chunks + c.warp + k * kWarps) * kWarp + c.lane;
  }
  __device__ __forceinline__ int place_of(int n) const {
    const int place = first_place + n;
    return place < plan.frame_tiles ? place : place - plan.frame_tiles;
  }

  // Starts to fetch the window of a group's rows.
  __device__ __forceinline__ void stage(int group) {
    const int row = row_of(group);
    const bool live = is_live(row);
    const int time = live ? c.rows.times[row] : 0;
    const int end = live ? min(c.rows.lengths[row], time + joint.window) : 0;
    const bool keep = keeps_frames();
    const int begin = keep ? max(time, staged_end) : time;
    first_place = keep ? time % plan.frame_tiles : 0;
    staged_end = max(staged_end, end);
    const int first_frame = time + (c.g >> plan.group_shift);
    const T* encoder = static_cast<const T*>(joint.encoder) + row * joint.encoder_batch_stride +
                       static_cast<int64_t>(first_frame) * joint.width + element(0);
    const int tile_step = joint.width << (3 - plan.group_shift);
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      const int frame = first_frame + (n << (3 - plan.group_shift));
      const bool wanted = frame >= begin && frame < end;
      uint4* place = staged(place_of(n), 0);
#pragma unroll
      for (int k = 0; k < kChunksPerWarp; ++k) {
        copy_to_shared(place + k * kWarps * kWarp, encoder + n * tile_step + k * kWarps * kChunk,
                       wanted && element(k) < joint.width);
      }
    }
  }

  // As soon as the rows' times are known.
  __device__ void stage_first() {
    if (c.slot < plan.slots) stage(c.slot);
  }

  // --- judging --------------------------------------------------------------------------------------------

  __device__ __forceinline__ void judge(int round) {
    if (c.slot >= plan.slots) return;
    for (int i = 0, group = c.slot; group * plan.group_rows < c.batch; ++i, group += plan.slots) {
      const int next = group + plan.slots;
      if (__any_sync(kFullMask, is_live(row_of(group)))) {
        judge_group(round, group, next, predicted[i]);
      } else if (next * plan.group_rows < c.batch) {
        stage(next);
      }
    }
  }

  // The predictor output of the lane's row, if it is a new one; waits for it.
  __device__ __forceinline__ void read_output(int round, int row, bool live,
                                              uint4 (&pred)[kChunksPerWarp]) const {
    const bool renewed = round > 0 && live && c.labels(round - 1)[row] >= 0;
    const uint4* message = c.output_message(round - 1 + kGenerations, row, c.warp * 4 + c.t);
#pragma unroll
    for (int k = 0; k < kChunksPerWarp; ++k) {
      if (renewed && element(k) < joint.width) pred[k] = empty_message();
    }
    unsigned missing;
    int polls = 0;
    do {
      if (polls++ == kPatience) __trap();
#pragma unroll
      for (int k = 0; k < kChunksPerWarp; ++k) read_if_empty(pred[k], message + k * 4 * kWarps);
      missing = 0;
#pragma unroll
      for (int k = 0; k < kChunksPerWarp; ++k) missing |= pred[k].x == kEmpty;
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

  __device__ __forceinline__ void judge_group(int round, int group, int next, uint4 (&pred)[kChunksPerWarp]) {
    const int row = row_of(group);
    read_output(round, row, is_live(row), pred);
    await_copies();
    Best best[2];
    float logits[2][4];
    for (int pair = 0; pair < plan.column_tiles; pair += 2) {
      float products[2][Tiles][4] = {};
      if (joint.activation == Activation::kRelu) {
        multiply<true>(pair, pred, products);
      } else {
        multiply<false>(pair, pred, products);
      }
      const bool last = pair + 2 >= plan.column_tiles;
      if (last && next * plan.group_rows < c.batch) stage(next);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        add_up(products[m]);
        if (c.warp < plan.frame_tiles) collect(pair + m, m, logits);
        __syncthreads();
      }
      if (c.warp < plan.frame_tiles) include(pair, best, logits);
    }
    if (c.warp < plan.frame_tiles) {
      send(round, group * plan.group_rows, c.warp << (3 - plan.group_shift), best, logits);
    }
  }

  // Two tiles of columns (the second may lie beyond the block's) times all frames of the row.
  template <bool kRelu>
  __device__ __forceinline__ void multiply(int pair, const uint4 (&pred)[kChunksPerWarp],
                                           float (&products)[2][Tiles][4]) const {
    const int second = pair + 1 < plan.column_tiles ? chunks : 0;
#pragma unroll
    for (int k = 0; k < kChunksPerWarp; ++k) {
      const int chunk = c.warp + k * kWarps;
      if (chunk >= chunks) continue;
      const WeightFragment weights[2] = {
          Load::fragment(c, plan.joint_weights, pair * chunks + chunk),
          Load::fragment(c, plan.joint_weights, pair * chunks + second + chunk)};
      uint4 x[Tiles];
#pragma unroll
      for (int n = 0; n < Tiles; ++n) x[n] = read_shared(staged(place_of(n), k));
#pragma unroll
      for (int n = 0; n < Tiles; ++n) x[n] = activated<kRelu>(x[n], pred[k]);
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
        multiply_chunk<T>(products[0][n], weights[0], x[n]);
        multiply_chunk<T>(products[1][n], weights[1], x[n]);
      }
    }
  }

  // The warps' parts of one tile of columns, in shared memory.
  __device__ __forceinline__ void add_up(const float (&products)[Tiles][4]) const {
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      c.sums()[(c.warp * Tiles + n) * kWarp + c.lane] = {products[n][0], products[n][1], products[n][2],
                                                         products[n][3]};
    }
    __syncthreads();
  }

  // Warp n has tile n of frames: of (row, frame) 2 t and 2 t + 1 the columns g and g + 8 of each column tile.
  __device__ __forceinline__ void collect(int tile, int m, float (&logits)[2][4]) const {
    float4 total{0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float4 part = c.sums()[(w * Tiles + c.warp) * kWarp + c.lane];
      total = {total.x + part.x, total.y + part.y, total.z + part.z, total.w + part.w};
    }
    const bool exists = tile < plan.column_tiles;
    const float* bias = c.column_biases() + tile * kColumnsPerTile + c.g;
    const float low = exists ? bias[0] : -INFINITY, high = exists ? bias[8] : -INFINITY;
    logits[0][2 * m] = total.x + low;
    logits[1][2 * m] = total.y + low;
    logits[0][2 * m + 1] = total.z + high;
    logits[1][2 * m + 1] = total.w + high;
  }

  __device__ __forceinline__ void include(int pair, Best (&best)[2], float (&logits)[2][4]) const {
    const int column = first_column + pair * kColumnsPerTile + c.g;
    if (c.duration_block >= 0) include_durations(column, best, logits);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned before = best[i].order;
#pragma unroll
      for (int j = 0; j < 4; ++j) take(best[i].order, best[i].token, order_of(logits[i][j]), column + 8 * j);
      if (plan.column_tiles > 2) {
        best[i].sum =
            best[i].sum == 0.0f ? 0.0f : best[i].sum * expf(value_of(before) - value_of(best[i].order));
        best[i].sum += sum_of(logits[i], value_of(best[i].order));
      }
    }
  }

  __device__ __forceinline__ static float sum_of(const float (&logits)[4], float max) {
    return exp_below(logits[0], max) + exp_below(logits[1], max) + exp_below(logits[2], max) +
           exp_below(logits[3], max);
  }

  // Durations leave the competition of the tokens.
  __device__ __forceinline__ void include_durations(int column, Best (&best)[2],
                                                    float (&logits)[2][4]) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int duration = column + 8 * j - joint.num_tokens;
      if (duration < 0 || duration >= joint.num_durations) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        take(best[i].duration_order, best[i].duration, order_of(logits[i][j]), duration);
        logits[i][j] = -INFINITY;
      }
    }
  }

  __device__ __forceinline__ void send(int round, int first_row, int first_frame, Best (&best)[2],
                                       float (&logits)[2][4]) {
    const unsigned tag = static_cast<unsigned>(round + 1);
    unsigned own_order[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      own_order[i] = best[i].order;
      take_over_lanes(best[i].order, best[i].token);
      if (c.duration_block >= 0) take_over_lanes(best[i].duration_order, best[i].duration);
    }
    int row[2], frame[2];
    bool wanted[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int index = 2 * c.t + i;
      row[i] = first_row + (index & (plan.group_rows - 1));
      frame[i] = first_frame + (index >> plan.group_shift);
      wanted[i] = c.g == 0 && row[i] < c.batch && frame[i] < joint.window && !c.rows.done[row[i]] &&
                  c.rows.times[row[i]] + frame[i] < c.rows.lengths[row[i]];
      if (wanted[i]) {
        write_message(c.partial(row[i], frame[i], c.column_block),
                      {best[i].order, static_cast<unsigned>(best[i].token), 0, tag});
      }
      if (wanted[i] && c.duration_block >= 0) {
        write_message(c.duration_partial(row[i], frame[i], c.duration_block),
                      {best[i].duration_order, static_cast<unsigned>(best[i].duration), 0, tag});
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float max = value_of(best[i].order);
      float sum = plan.column_tiles > 2
                      ? (best[i].sum == 0.0f ? 0.0f : best[i].sum * expf(value_of(own_order[i]) - max))
                      : sum_of(logits[i], max);
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2) sum += __shfl_xor_sync(kFullMask, sum, offset);
      if (wanted[i]) {
        write_message(c.partial_sum(round, row[i], frame[i], c.column_block),
                      {best[i].order, __float_as_uint(sum), 0, tag});
      }
    }
  }
};

}  // namespace rnnt_fastdecode::cuda
