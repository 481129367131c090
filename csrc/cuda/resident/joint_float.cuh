// The joint network of the resident decoder in fp32. A block judges groups of live rows for its columns,
// eight (row, frame) pairs at a time: activated sums of encoder and predictor go to shared memory slice by
// slice, the products' parts of the 8 warps too, and warp i merges the columns of every eighth pair. The
// best column of each pair goes out first, the sum of the exponentials after it, when nobody waits.
#pragma once

#include "product_float.cuh"

namespace rnnt_fastdecode::cuda {

constexpr int kTilePairs = 8;

// What a block knows of a pair after some of its tiles of columns.
struct FloatBest {
  unsigned order;
  int token;
  unsigned duration_order;
  int duration;
  unsigned sum_order;
  float sum;  // of exp(logit - value_of(sum_order))
};
static_assert(sizeof(FloatBest) == kFloatBestBytes);

// A lane multiplies LaneColumns columns: a tile has 4 times as many, at most one for each lane of a warp.
template <int LaneColumns>
struct FloatJoint {
  static constexpr int kColumns = 4 * LaneColumns;
  static constexpr int kStride = kColumns + 1;
  using Weights = float[LaneColumns][kLaneDepth];

  const Context& c;
  const ResidentPlan& plan = c.plan;
  const FloatPlan& layout = c.plan.single;
  const JointProblem& joint = c.p.greedy.joint;
  Place at = Place::of_thread();
  const int first_column = c.column_block * plan.column_tiles * kColumns;
  const int frames_per_tile = kTilePairs >> plan.group_shift;

  __device__ float* floats(int offset) const { return reinterpret_cast<float*>(c.shared + offset); }
  __device__ float* slices() const { return floats(layout.slices) + at.warp * layout.slice_rows * kSlice; }
  // The lane's predictor output, behind the slices of eight pairs.
  __device__ float* predicted() const {
    return slices() + (kTilePairs + (at.g & (plan.group_rows - 1))) * kSlice + 4 * at.t;
  }
  __device__ float* sums(int tile, int warp, int pair) const {
    return floats(layout.sums) + ((tile * kWarps + warp) * kTilePairs + pair) * kStride;
  }
  __device__ unsigned char* live() const {
    return c.shared + layout.row_lists + (kWarps + at.warp) * kFloatRows;
  }
  __device__ int weights_offset(int column_tile) const {
    constexpr int kTileBytes = kThreads * LaneColumns * kLaneDepth * static_cast<int>(sizeof(float));
    return layout.joint_weights < 0 ? -1 : layout.joint_weights + column_tile * kTileBytes;
  }
  __device__ Columns columns(int column_tile) const {
    const int first = first_column + column_tile * kColumns + at.q * LaneColumns;
    return {static_cast<const float*>(joint.weight) + static_cast<int64_t>(first) * joint.width, joint.width,
            joint.columns() - first};
  }

  __device__ void load_weights() const {
    for (int tile = 0; tile < plan.column_tiles && layout.joint_weights >= 0; ++tile) {
      place_columns<LaneColumns>(c, weights_offset(tile), kThreads, at.thread, columns(tile), joint.width,
                                 at);
    }
    for (int i = at.thread; i < plan.column_tiles * kColumns; i += kThreads) {
      const int column = first_column + i;
      const bool has_bias = joint.bias != nullptr && column < joint.columns();
      floats(layout.column_biases)[i] = has_bias ? static_cast<const float*>(joint.bias)[column] : 0.0f;
    }
  }

  // Nothing is kept or fetched early: the outputs of the state come as messages, frames tile by tile.
  __device__ void load_state() const {}
  __device__ void stage_first() const {}

  __device__ void judge(int round) {
    at = Place::of_thread();
    if (c.slot >= plan.slots) return;
    const int count = list_rows(c, live(), [this](int row) { return !c.rows.done[row]; });
    Weights weights;
    for (int group = c.slot; group * plan.group_rows < count; group += plan.slots) {
      for (int tile = 0; tile < plan.column_tiles; ++tile) {
        judge_group(round, group, count, tile, weights);
      }
    }
  }

  // The row of a pair of the group, -1 if there is none.
  __device__ int row_of(int first_row, int count, int pair) const {
    const int entry = first_row + (pair & (plan.group_rows - 1));
    return entry < count ? live()[entry] : -1;
  }
  __device__ int frames_left(int row) const {
    return row < 0 ? 0 : min(c.rows.lengths[row] - c.rows.times[row], joint.window);
  }

  __device__ void judge_group(int round, int group, int count, int column_tile, Weights& weights) const {
    const int first_row = group * plan.group_rows;
    const int row = row_of(first_row, count, at.g);
    const int left = frames_left(row);
    const int first_frame = at.g >> plan.group_shift;
    const float* encoder = static_cast<const float*>(joint.encoder);
    if (row >= 0) {
      encoder += row * joint.encoder_batch_stride +
                 static_cast<int64_t>(c.rows.times[row] + first_frame) * joint.width;
    }
    uint4 x[kQuads], frames[kQuads];
    const float* output = row < 0 ? nullptr : output_values(c, c.rows.labelled[row], row);
    read_frames(frames, encoder, first_frame < left);
    request_rows(at, x, output, joint.width);
    if (group == c.slot || plan.column_tiles > 1) {
      fetch_columns(c, weights, weights_offset(column_tile), kThreads, at.thread, columns(column_tile),
                    joint.width, at);
    }
    const int frames_deep = static_cast<int>(__reduce_max_sync(kFullMask, static_cast<unsigned>(left)));
    const int tiles = (frames_deep + frames_per_tile - 1) * plan.group_rows / kTilePairs;
    await_rows(at, x, output);
    __syncwarp();
#pragma unroll
    for (int l = 0; l < kQuads; ++l) *reinterpret_cast<uint4*>(predicted() + 16 * l) = x[l];
#pragma unroll 1
    for (int first_tile = 0; first_tile < tiles; first_tile += layout.summed_tiles) {
      const int here = min(layout.summed_tiles, tiles - first_tile);
      // Somebody may still be reading what was summed up before.
      __syncthreads();
#pragma unroll 1
      for (int i = 0; i < here; ++i) {
        const int frame = (first_tile + i) * frames_per_tile + first_frame;
        __syncwarp();
        activate_sums(slices() + at.g * kSlice + 4 * at.t, frames);
        __syncwarp();
        encoder += frames_per_tile * joint.width;
        read_frames(frames, encoder, frame + frames_per_tile < left);
        float parts[LaneColumns];
        multiply<kTilePairs>(weights, slices(), at.k, parts);
        float* own = sums(i, at.warp, at.k) + at.q * LaneColumns;
#pragma unroll
        for (int j = 0; j < LaneColumns; ++j) own[j] = parts[j];
      }
      __syncthreads();
      merge(round, first_row, count, first_tile, here, column_tile);
    }
  }

  __device__ void read_frames(uint4 (&frames)[kQuads], const float* encoder, bool wanted) const {
#pragma unroll
    for (int l = 0; l < kQuads; ++l) {
      const int depth = slice_depth(at.warp, 16 * l + 4 * at.t);
      frames[l] = prefetch_constant(encoder + depth, wanted && depth < joint.width);
    }
  }

  // The lane's part of a pair's slice.
  __device__ void activate_sums(float* slice, const uint4 (&frames)[kQuads]) const {
    const bool relu = joint.activation == Activation::kRelu;
#pragma unroll
    for (int l = 0; l < kQuads; ++l) {
      const float4 other = *reinterpret_cast<const float4*>(predicted() + 16 * l);
      float4 sum{__uint_as_float(frames[l].x) + other.x, __uint_as_float(frames[l].y) + other.y,
                 __uint_as_float(frames[l].z) + other.z, __uint_as_float(frames[l].w) + other.w};
      if (relu) sum = activated(sum, Activation::kRelu);
      *reinterpret_cast<float4*>(slice + 16 * l) = sum;
    }
    // The code of tanh and sigmoid is long: one copy of it.
#pragma unroll 1
    for (int l = 0; !relu && l < kQuads; ++l) {
      auto* own = reinterpret_cast<float4*>(slice + 16 * l);
      *own = activated(*own, joint.activation);
    }
  }

  __device__ static float4 activated(const float4& x, Activation activation) {
    return {activate(x.x, activation), activate(x.y, activation), activate(x.z, activation),
            activate(x.w, activation)};
  }

  // The columns of pair `warp` of each tile: first the best ones, then the sums. Tiles that are not there are
  // worked out like the last one and not sent: without branches they overlap.
  __device__ void merge(int round, int first_row, int count, int first_tile, int tiles,
                        int column_tile) const {
    const int row = row_of(first_row, count, at.warp);
    const int left = frames_left(row);
    const int lane_column = column_tile * kColumns + min(c.lane, kColumns - 1);
    const int column = first_column + lane_column;
    const bool token = c.lane < kColumns && column < joint.num_tokens;
    const bool duration = c.lane < kColumns && column >= joint.num_tokens && column < joint.columns();
    const bool last = column_tile + 1 == plan.column_tiles;
    FloatBest best[kFloatSummedTiles];
    float logits[kFloatSummedTiles], sums_of[kFloatSummedTiles];
#pragma unroll
    for (int i = 0; i < kFloatSummedTiles; ++i) {
      const int tile = min(i, tiles - 1);
      logits[i] = floats(layout.column_biases)[lane_column];
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) {
        logits[i] += sums(tile, warp, at.warp)[min(c.lane, kColumns - 1)];
      }
      best[i] = {0, INT32_MAX, 0, INT32_MAX, 0, 0.0f};
      if (column_tile > 0) best[i] = *best_of(first_tile + tile);
    }
#pragma unroll
    for (int i = 0; i < kFloatSummedTiles; ++i) {
      take_columns(best[i].order, best[i].token, order_of(logits[i]), column, token);
      if (c.duration_block >= 0) {
        take_columns(best[i].duration_order, best[i].duration, order_of(logits[i]), column - joint.num_tokens,
                     duration);
      }
      const int frame = frame_of(first_tile + i);
      if (last && i < tiles && frame < left) send(round, row, frame, best[i]);
    }
#pragma unroll
    for (int i = 0; i < kFloatSummedTiles; ++i) {
      sums_of[i] = token ? exp_below(logits[i], value_of(best[i].order)) : 0.0f;
    }
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
#pragma unroll
      for (int i = 0; i < kFloatSummedTiles; ++i) {
        sums_of[i] += __shfl_xor_sync(kFullMask, sums_of[i], offset);
      }
    }
#pragma unroll
    for (int i = 0; i < kFloatSummedTiles; ++i) {
      const int frame = frame_of(first_tile + i);
      if (c.lane != 0 || i >= tiles || frame >= left) continue;
      if (best[i].sum != 0.0f) {
        sums_of[i] += best[i].sum * expf(value_of(best[i].sum_order) - value_of(best[i].order));
      }
      if (last) {
        write_message(c.partial_sum(round, row, frame, c.column_block),
                      {best[i].order, __float_as_uint(sums_of[i]), 0, static_cast<unsigned>(round + 1)});
      } else {
        best[i].sum = sums_of[i];
        best[i].sum_order = best[i].order;
        *best_of(first_tile + i) = best[i];
      }
    }
  }

  // Of pair `warp`.
  __device__ int frame_of(int tile) const { return tile * frames_per_tile + (at.warp >> plan.group_shift); }

  __device__ FloatBest* best_of(int tile) const {
    return reinterpret_cast<FloatBest*>(c.shared + layout.best) + tile * kTilePairs + at.warp;
  }

  // Merges the warp's columns that take part.
  __device__ static void take_columns(unsigned& order, int& index, unsigned own, int own_index,
                                      bool takes_part) {
    const unsigned top = __reduce_max_sync(kFullMask, takes_part ? own : 0);
    take(order, index, top, __reduce_min_sync(kFullMask, takes_part && own == top ? own_index : INT32_MAX));
  }

  __device__ void send(int round, int row, int frame, const FloatBest& best) const {
    const unsigned tag = static_cast<unsigned>(round + 1);
    if (c.lane == 0) {
      write_message(c.partial(row, frame, c.column_block),
                    {best.order, static_cast<unsigned>(best.token), 0, tag});
    }
    if (c.lane == 0 && c.duration_block >= 0) {
      write_message(c.duration_partial(row, frame, c.duration_block),
                    {best.duration_order, static_cast<unsigned>(best.duration), 0, tag});
    }
  }
};

}  // namespace rnnt_fastdecode::cuda
