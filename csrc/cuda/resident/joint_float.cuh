// The joint network of the resident decoder in fp32, for few rows. A block owns 8 or 32 columns and judges,
// of its slot's live rows, eight (row, frame) pairs at a time. Such a tile of pairs is the work of one warp,
// or of 2, 4 or 8 that share its depth: no barrier of the block, every warp waits for its own rows only.
//
// A lane (k = lane / 4, q = lane % 4) multiplies all eight pairs with the columns q, q + 4, ..., at the
// depths 32 s + 4 k .. + 3 of every step s. Activated sums of encoder and predictor pass through the warp's
// own shared memory, some steps at a time; the next ones are on their way meanwhile. At the end the products
// are halved from lane to lane until lane (k, q) has pair k.
#pragma once

#include "../ptx.cuh"
#include "product_float.cuh"

namespace rnnt_fastdecode::cuda {

// kStaged: steps that pass through shared memory at a time.
template <int kLaneColumns, int kStaged>
struct FloatJoint : JointShare {
  static constexpr int kPairs = 8;
  static constexpr int kColumns = kColumnLanes * kLaneColumns;
  static constexpr int kStep = 4 * kDepthLanes;
  static constexpr int kSteps = kFloatWidth / kStep;
  static constexpr int kStagedWidth = kStaged * kStep;
  static constexpr int kLanePairs = kPairs / (kWarp / kDepthLanes);  // whose quads a lane stages
  using Products = float[kPairs][kLaneColumns];
  using Logits = float[kLaneColumns];

  // What a warp is to read for its next steps: a lane reads, of two pairs of one row, the quads at lane % 8.
  struct Operands {
    uint4 predicted[kStaged];
    uint4 frames[kLanePairs][kStaged];
  };

  // A tile of pairs: group_rows rows, for each as many frames.
  struct Tile {
    int first_row;  // of the list of live rows
    int rows;       // live ones
    int first_frame;
  };

  const FewPlan& few = c.plan.few;
  const int first_column = c.column_block * kColumns;

  __device__ int k() const { return c.lane / kColumnLanes; }
  __device__ int q() const { return c.lane % kColumnLanes; }
  __device__ float* staged() const { return floats(few.slices) + c.warp * kPairs * kStagedWidth; }
  __device__ float* parts(int warp) const {
    return floats(layout.sums) + warp * kLaneColumns * kWarp + c.lane;
  }
  __device__ float4* weights() const {
    return reinterpret_cast<float4*>(c.at(layout.joint_weights)) + c.lane;
  }

  // In the order in which lanes read them.
  __device__ void load_weights() const {
    const int column = first_column + q();
    for (int step = c.warp; step < kSteps; step += kWarps) {
      const int depth = step * kStep + 4 * k();
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) {
        const int own = column + j * kColumnLanes;
        const float* quad =
            static_cast<const float*>(joint.weight) + static_cast<int64_t>(own) * joint.width + depth;
        weights()[(step * kLaneColumns + j) * kWarp] =
            prefetch_quad(quad, own < joint.columns() && depth < joint.width);
      }
    }
    for (int i = threadIdx.x; i < kColumns; i += kThreads) {
      const int own = first_column + i;
      const bool has_bias = joint.bias != nullptr && own < joint.columns();
      floats(layout.column_biases)[i] = has_bias ? static_cast<const float*>(joint.bias)[own] : 0.0f;
    }
  }

  __device__ void judge(int round) const {
    if (c.slot >= plan.slots) return;
    const int count = list_rows(c, live(), [this](int row) { return !c.rows.done[row]; });
    const int sets = kWarps >> few.part_shift;
    const int frames_per_tile = kPairs >> plan.group_shift;
    int frame_tile = c.warp >> few.part_shift;
    int first_row = c.slot * plan.group_rows;
#pragma unroll 1
    for (;; frame_tile += sets) {
      for (; frame_tile >= plan.frame_tiles; frame_tile -= plan.frame_tiles) {
        first_row += plan.slots * plan.group_rows;
      }
      if (first_row >= count) return;
      judge_tile(round, {first_row, count, frame_tile * frames_per_tile});
    }
  }

  // Row (-1 if there is none) and frame of a pair.
  __device__ int row_of(const Tile& tile, int pair) const {
    const int entry = tile.first_row + (pair & (plan.group_rows - 1));
    return entry < tile.rows ? live()[entry] : -1;
  }
  __device__ int frame_of(const Tile& tile, int pair) const {
    return tile.first_frame + (pair >> plan.group_shift);
  }

  __device__ void judge_tile(int round, const Tile& tile) const {
    const int row = row_of(tile, k());
    const bool exists = frame_of(tile, k()) < frames_left(row);
    if (!__any_sync(kFullMask, exists)) return;
    const int part = c.warp & ((1 << few.part_shift) - 1);
    Logits logits;
    multiply_tile(tile, part * kSteps >> few.part_shift, (part + 1) * kSteps >> few.part_shift, logits);
    if (few.part_shift > 0) add_parts(part, logits);
    if (part > 0) return;
    const float* biases = floats(layout.column_biases) + q();
#pragma unroll
    for (int j = 0; j < kLaneColumns; ++j) logits[j] += biases[j * kColumnLanes];
    merge(round, row, frame_of(tile, k()), exists && q() == 0, logits);
  }

  // Of the steps from `step` to `end`. Lane (k, q) gets pair k.
  __device__ void multiply_tile(const Tile& tile, int step, int end, Logits& logits) const {
    const int pair = c.lane / kDepthLanes, depth = 4 * (c.lane % kDepthLanes);
    const int row = row_of(tile, pair), left = frames_left(row);
    const float* output = row < 0 ? nullptr : output_values(c, c.rows.labelled[row], row) + depth;
    const float* encoder = static_cast<const float*>(joint.encoder) + depth;
    int wanted = 0;
    if (row >= 0) {
      encoder += row * joint.encoder_batch_stride +
                 static_cast<int64_t>(c.rows.times[row] + frame_of(tile, pair)) * joint.width;
#pragma unroll
      for (int i = 0; i < kLanePairs; ++i) {
        wanted |= (frame_of(tile, pair + i * (kWarp / kDepthLanes)) < left) << i;
      }
    }
    const int64_t next_pair = static_cast<int64_t>((kWarp / kDepthLanes) >> plan.group_shift) * joint.width;
    Operands x;
    Products products = {};
    // Where the lane's numbers end, if the warp's do not before.
    const int width = min(joint.width - depth, end * kStep);
    request(x, output, encoder, next_pair, wanted, step, width);
#pragma unroll 1
    for (; step < end; step += kStaged) {
      await(x, output, step);
      put(x);
      if (step + kStaged < end) request(x, output, encoder, next_pair, wanted, step + kStaged, width);
      multiply_steps(products, weights() + step * kLaneColumns * kWarp, min(kStaged, end - step));
    }
    halve(products, logits);
  }

  // The first attempt to read what is needed from `step` on; `width` counts from the lane's first number.
  __device__ void request(Operands& x, const float* output, const float* encoder, int64_t next_pair,
                          int wanted, int step, int width) const {
#pragma unroll
    for (int s = 0; s < kStaged; ++s) {
      const int depth = (step + s) * kStep;
      x.predicted[s] = output != nullptr && depth < width ? empty_message() : uint4{0, 0, 0, 0};
      read_if_missing(x.predicted[s], output + depth);
#pragma unroll
      for (int i = 0; i < kLanePairs; ++i) {
        x.frames[i][s] =
            prefetch_constant(encoder + i * next_pair + depth, (wanted >> i & 1) && depth < width);
      }
    }
  }

  __device__ void await(Operands& x, const float* output, int step) const {
    bool missing;
    int polls = 0;
    do {
      if (polls++ == kPatience) __trap();
      missing = false;
#pragma unroll
      for (int s = 0; s < kStaged; ++s) {
        read_if_missing(x.predicted[s], output + (step + s) * kStep);
      }
#pragma unroll
      for (int s = 0; s < kStaged; ++s) missing |= is_missing(x.predicted[s]);
    } while (__any_sync(kFullMask, missing));
  }

  // Activated sums, to where the whole warp reads them.
  __device__ void put(const Operands& x) const {
    const bool relu = joint.activation == Activation::kRelu;
    float* own = staged() + c.lane / kDepthLanes * kStagedWidth + 4 * (c.lane % kDepthLanes);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kLanePairs; ++i) {
#pragma unroll
      for (int s = 0; s < kStaged; ++s) {
        const uint4 &a = x.frames[i][s], &b = x.predicted[s];
        float4 sum = add(as_floats(a), as_floats(b));
        if (relu) sum = rectified(sum);
        *quad_of(own, i, s) = sum;
      }
    }
    // The code of tanh and sigmoid is long: one copy of it.
#pragma unroll 1
    for (int l = 0; !relu && l < kLanePairs * kStaged; ++l) {
      float4* quad = quad_of(own, l / kStaged, l % kStaged);
      *quad = activated(*quad, joint.activation);
    }
    __syncwarp();
  }

  __device__ static float4* quad_of(float* own, int i, int s) {
    return reinterpret_cast<float4*>(own + i * (kWarp / kDepthLanes) * kStagedWidth + s * kStep);
  }

  __device__ void multiply_steps(Products& products, const float4* weights, int steps) const {
    const float* x = staged() + 4 * k();
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      float4 pairs[kPairs];
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        pairs[i] = *reinterpret_cast<const float4*>(x + i * kStagedWidth + step * kStep);
      }
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) {
        const float4 w = weights[(step * kLaneColumns + j) * kWarp];
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          products[i][j] = fmaf(w.x, pairs[i].x, products[i][j]);
          products[i][j] = fmaf(w.y, pairs[i].y, products[i][j]);
          products[i][j] = fmaf(w.z, pairs[i].z, products[i][j]);
          products[i][j] = fmaf(w.w, pairs[i].w, products[i][j]);
        }
      }
    }
  }

  // Adds up over the lanes k: each keeps the half of the pairs that its own one is in, thrice.
  __device__ void halve(Products& products, Logits& logits) const {
#pragma unroll
    for (int half = kPairs / 2; half > 0; half /= 2) {
      const bool upper = (k() & half) != 0;
#pragma unroll
      for (int i = 0; i < half; ++i) {
#pragma unroll
        for (int j = 0; j < kLaneColumns; ++j) {
          const float kept = upper ? products[i + half][j] : products[i][j];
          const float given = upper ? products[i][j] : products[i + half][j];
          products[i][j] = kept + __shfl_xor_sync(kFullMask, given, half * kColumnLanes);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kLaneColumns; ++j) logits[j] = products[0][j];
  }

  // The first of the warps that share a tile gets the sum.
  __device__ void add_parts(int part, Logits& logits) const {
    const int parts_of_tile = 1 << few.part_shift;
    const int first_warp = c.warp - part, id = 1 + (c.warp >> few.part_shift);
    const auto sync = [&] {
      asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(parts_of_tile * kWarp) : "memory");
    };
    // Until what was there before has been read.
    sync();
#pragma unroll
    for (int j = 0; j < kLaneColumns; ++j) {
      if (part > 0) parts(c.warp)[j * kWarp] = logits[j];
    }
    sync();
#pragma unroll 1
    for (int other = 1; part == 0 && other < parts_of_tile; ++other) {
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) logits[j] += parts(first_warp + other)[j * kWarp];
    }
  }

  // The columns of a pair, by the four lanes q: first the best ones, then the sums, when nobody waits.
  __device__ void merge(int round, int row, int frame, bool sends, const Logits& logits) const {
    const int column = first_column + q();
    const unsigned tag = static_cast<unsigned>(round + 1);
    unsigned order = 0, duration_order = 0;
    int token = INT32_MAX, duration = INT32_MAX;
#pragma unroll
    for (int j = 0; j < kLaneColumns; ++j) {
      const int own = column + j * kColumnLanes;
      if (own < joint.num_tokens) take(order, token, order_of(logits[j]), own);
    }
    take_over_lanes<1, kColumnLanes>(order, token);
    if (sends) {
      write_message(c.partial(c.frame_index(round, row, frame), c.column_block),
                    {order, static_cast<unsigned>(token), 0, tag});
    }
    if (c.duration_block >= 0) {
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) {
        const int own = column + j * kColumnLanes;
        if (own >= joint.num_tokens && own < joint.columns()) {
          take(duration_order, duration, order_of(logits[j]), own - joint.num_tokens);
        }
      }
      take_over_lanes<1, kColumnLanes>(duration_order, duration);
      if (sends) {
        write_message(c.duration_partial(c.frame_index(round, row, frame), c.duration_block),
                      {duration_order, static_cast<unsigned>(duration), 0, tag});
      }
    }
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kLaneColumns; ++j) {
      const bool is_token = column + j * kColumnLanes < joint.num_tokens;
      sum += is_token ? exp_below(logits[j], value_of(order)) : 0.0f;
    }
#pragma unroll
    for (int offset = 1; offset < kColumnLanes; offset *= 2) sum += __shfl_xor_sync(kFullMask, sum, offset);
    if (sends) {
      write_message(c.partial_sum(c.frame_index(round, row, frame), c.column_block),
                    {order, __float_as_uint(sum), 0, tag});
    }
  }
};

}  // namespace rnnt_fastdecode::cuda
