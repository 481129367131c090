// The joint network of the resident decoder in fp32, for many rows, on tensor cores (split.cuh). A block owns
// tiles of 32 columns and judges its slot's live rows. A task is a group of 1, 2, 4 or 8 of them, as many as
// spread all live rows over the slots, with some tiles of eight (row, frame) pairs: lane (g, t) has pair g of
// every tile, all of one row. A task is the work of 2, 4 or 8 warps that share the depth.
#pragma once

#include "../split.cuh"
#include "share_float.cuh"

namespace rnnt_fastdecode::cuda {

// The best of a pair's columns so far, and the sum of exp(logit - value_of(sum_order)).
struct FloatBest {
  unsigned order = 0;
  int token = INT32_MAX;
  unsigned duration_order = 0;
  int duration = INT32_MAX;
  unsigned sum_order = 0;
  float sum = 0.0f;
};
static_assert(sizeof(FloatBest) == kFloatBestBytes);

// tanh and sigmoid, out of line: their code is long.
__device__ __noinline__ float4 activate_curved(float4 x, Activation activation) {
  return activated(x, activation);
}

template <int Tiles>
struct SplitJoint : JointShare {
  static constexpr int kPairs = 8;
  static constexpr int kColumnTiles = 2;
  static constexpr int kColumns = 16 * kColumnTiles;
  static constexpr int kTogether = 2;  // tiles of pairs that are added up at a time
  static constexpr int kSteps = kFloatWidth / kStepDepth / kWarps;
  // Steps that are read at once: all of an eighth of the depth, or where registers are short one by one.
  static constexpr int kAtOnce = Tiles == 2 ? kSteps : 1;

  const ManyPlan& many = c.plan.many;
  const int first_column = c.column_block * plan.column_tiles * kColumns;

  // How the live rows of a round are spread: over the slots, in groups; over the warps, in tasks.
  struct Tasks {
    int live;
    int group_shift;
    int frame_sets;  // of a group: tasks
    int count;       // of this slot
    int part_shift;  // logarithm of the number of warps that share a task

    __device__ int frames_per_tile() const { return kPairs >> group_shift; }
  };

  struct Task {
    int index;
    int first_row;  // of the list of live rows
    int first_frame;
  };

  // Of a tile of 16 columns and a step: this lane's numbers of columns g and g + 8.
  __device__ float4* weights(int tile, int step) const {
    return reinterpret_cast<float4*>(c.at(layout.joint_weights)) +
           (tile * kWarps * many.joint_steps + step) * 2 * kWarp + c.lane;
  }
  __device__ float4& part(int warp, int i, int tile) const {
    return reinterpret_cast<float4*>(
        c.at(layout.sums))[((warp * kTogether + i) * kColumnTiles + tile) * kWarp + c.lane];
  }
  __device__ FloatBest* best_of(int task, int n) const {
    unsigned char* own = c.p.scratch + many.best + static_cast<int64_t>(c.block) * many.best_bytes;
    return reinterpret_cast<FloatBest*>(own) + (task * Tiles + n) * kPairs + 2 * c.t;
  }

  __device__ void load_tiles(int column_tile, int place) const {
    for (int i = c.warp; i < kColumnTiles * kWarps * many.joint_steps; i += kWarps) {
      const int tile = i % kColumnTiles, step = i / kColumnTiles, depth = step * kStepDepth + 4 * c.t;
      const int column = first_column + column_tile * kColumns + tile * 16 + c.g;
      for (int half = 0; half < 2; ++half) {
        const int own = column + 8 * half;
        const float* quad =
            static_cast<const float*>(joint.weight) + static_cast<int64_t>(own) * joint.width + depth;
        weights(place * kColumnTiles + tile, step)[half * kWarp] =
            prefetch_quad(quad, own < joint.columns() && depth < joint.width);
      }
    }
  }

  __device__ void load_weights() const {
    for (int tile = 0; many.keeps_columns && tile < plan.column_tiles; ++tile) load_tiles(tile, tile);
    for (int i = threadIdx.x; i < plan.column_tiles * kColumns; i += kThreads) {
      const int column = first_column + i;
      const bool has_bias = joint.bias != nullptr && column < joint.columns();
      floats(layout.column_biases)[i] = has_bias ? static_cast<const float*>(joint.bias)[column] : 0.0f;
    }
  }

  __device__ Tasks spread(int live) const {
    Tasks out{live, 0, 0, 0, 3};  // never less than two warps: each judges half of the task's tiles
    while (out.group_shift < 3 && plan.slots << out.group_shift < live) ++out.group_shift;
    const int groups = (live + (1 << out.group_shift) - 1) >> out.group_shift;
    const int own_groups = c.slot < groups ? (groups - 1 - c.slot) / plan.slots + 1 : 0;
    const int frame_tiles = (joint.window + out.frames_per_tile() - 1) / out.frames_per_tile();
    out.frame_sets = (frame_tiles + Tiles - 1) / Tiles;
    out.count = own_groups * out.frame_sets;
    while (out.part_shift > 1 && out.count > kWarps >> out.part_shift) --out.part_shift;
    return out;
  }

  __device__ void judge(int round) const {
    if (c.slot >= plan.slots) return;
    const Tasks tasks = spread(list_rows(c, live(), [this](int row) { return !c.rows.done[row]; }));
    if (tasks.count == 0) return;
    const int sets = kWarps >> tasks.part_shift, set = c.warp >> tasks.part_shift;
#pragma unroll 1
    for (int column_tile = 0; column_tile < plan.column_tiles; ++column_tile) {
      if (!many.keeps_columns) {
        __syncthreads();
        load_tiles(column_tile, 0);
        __syncthreads();
      }
#pragma unroll 1
      for (int first = 0; first < tasks.count; first += sets) {
        const int index = first + set, group = index / tasks.frame_sets;
        const Task task{index, (c.slot + group * plan.slots) << tasks.group_shift,
                        index % tasks.frame_sets * Tiles * tasks.frames_per_tile()};
        judge_task(round, tasks, task, column_tile);
      }
    }
  }

  // Row (-1 if there is none) and first frame of a pair.
  __device__ int row_of(const Tasks& tasks, const Task& task, int pair) const {
    const int entry = task.first_row + (pair & ((1 << tasks.group_shift) - 1));
    return task.index < tasks.count && entry < tasks.live ? live()[entry] : -1;
  }
  __device__ int frame_of(const Tasks& tasks, const Task& task, int pair) const {
    return task.first_frame + (pair >> tasks.group_shift);
  }

  // By all warps together.
  __device__ void judge_task(int round, const Tasks& tasks, const Task& task, int column_tile) const {
    float4 totals[Tiles][kColumnTiles] = {};
    multiply_task(tasks, task, many.keeps_columns ? column_tile * kColumnTiles : 0, totals);
    const int parts = 1 << tasks.part_shift, part_index = c.warp & (parts - 1);
    // Two tiles of pairs at a time are added up; tile n is judged by part n, if there are so many.
#pragma unroll 1
    for (int first = 0; first < Tiles; first += kTogether) {
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
#pragma unroll
        for (int tile = 0; tile < kColumnTiles; ++tile) part(c.warp, i, tile) = totals[i][tile];
      }
#pragma unroll
      for (int n = kTogether; n < Tiles; ++n) {
#pragma unroll
        for (int tile = 0; tile < kColumnTiles; ++tile) totals[n - kTogether][tile] = totals[n][tile];
      }
      __syncthreads();
      const int own = c.warp % kTogether;
      const bool judges = ((first ^ part_index) & (parts - kTogether)) == 0;
      float4 sums[kColumnTiles] = {};
#pragma unroll 2
      for (int other = 0; judges && other < parts; ++other) {
#pragma unroll
        for (int tile = 0; tile < kColumnTiles; ++tile) {
          sums[tile] = add(sums[tile], part(c.warp - part_index + other, own, tile));
        }
      }
      __syncthreads();
      if (judges) judge_pairs(round, tasks, task, column_tile, first + own, sums);
    }
  }

  // What a lane reads for a step: 4 numbers of its row's predictor output and of its frames.
  struct Operands {
    const float* output;
    const float* frame[Tiles];
    uint4 predicted[kAtOnce];
    uint4 frames[kAtOnce][Tiles];

    // Others stand in for rows and frames that there are not: nobody looks at what becomes of them.
    __device__ void find(const SplitJoint& at, const Tasks& tasks, const Task& task) {
      const int entry = task.first_row + (at.c.g & ((1 << tasks.group_shift) - 1));
      const int row = at.live()[min(entry, tasks.live - 1)];
      const int last = at.frames_left(row) - 1;
      const auto* encoder =
          static_cast<const float*>(at.joint.encoder) + 4 * at.c.t + row * at.joint.encoder_batch_stride;
      output = output_values(at.c, at.c.rows.labelled[row], row) + 4 * at.c.t;
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
        const int own = at.frame_of(tasks, task, at.c.g) + n * tasks.frames_per_tile();
        const int time = at.c.rows.times[row] + min(own, last);
        frame[n] = encoder + static_cast<int64_t>(time) * at.joint.width;
      }
    }

    __device__ static bool exists(const SplitJoint& at, int step) {
      return step * kStepDepth + 4 * at.c.t < at.joint.width;
    }

    // The first attempt to read what is needed from `step` on.
    __device__ void request(const SplitJoint& at, int step) {
#pragma unroll
      for (int s = 0; s < kAtOnce; ++s) {
        const int depth = (step + s) * kStepDepth;
        const bool wanted = exists(at, step + s);
        predicted[s] = read_values(output + depth, wanted);
#pragma unroll
        for (int n = 0; n < Tiles; ++n) frames[s][n] = prefetch_constant(frame[n] + depth, wanted);
      }
    }

    __device__ bool is_missing() const {
      unsigned most = 0;
#pragma unroll
      for (int s = 0; s < kAtOnce; ++s) most = max(most, greatest(predicted[s]));
      return most == kEmpty;
    }

    __device__ void await(int step) {
      int polls = 0;
      while (__any_sync(kFullMask, is_missing())) {
        if (polls++ == kPatience) __trap();
#pragma unroll
        for (int s = 0; s < kAtOnce; ++s) read_if_missing(predicted[s], output + (step + s) * kStepDepth);
      }
    }
  };

  // This warp's part of the depth.
  __device__ void multiply_task(const Tasks& tasks, const Task& task, int column_tile,
                                float4 (&totals)[Tiles][kColumnTiles]) const {
    const int slices = kWarps >> tasks.part_shift;
    int step = (c.warp & ((1 << tasks.part_shift) - 1)) * slices * many.joint_steps;
    const int end = step + slices * many.joint_steps;
    Operands x;
    x.find(*this, tasks, task);
    x.request(*this, step);
#pragma unroll 1
    for (; step < end; step += many.joint_steps) {
      SplitSums sums[kColumnTiles][Tiles] = {};
#pragma unroll(kAtOnce)
      for (int i = 0; i < kSteps; ++i) {
        if (i >= many.joint_steps) continue;
        const int place = kAtOnce > 1 ? i : 0;
        if (place == 0) x.await(step + i);
        SplitRow rows[Tiles];
        SplitWeights split[kColumnTiles];
        activate_rows(x.frames[place], x.predicted[place], rows);
        if (kAtOnce == 1 && step + i + 1 < end) x.request(*this, step + i + 1);
#pragma unroll
        for (int tile = 0; tile < kColumnTiles; ++tile) {
          const float4* own = weights(column_tile + tile, step + i);
          split[tile] = split_weights(own[0], own[kWarp]);
        }
        multiply_split(sums, split, rows);
      }
      if (kAtOnce > 1 && step + many.joint_steps < end) x.request(*this, step + many.joint_steps);
#pragma unroll
      for (int tile = 0; tile < kColumnTiles; ++tile) {
#pragma unroll
        for (int n = 0; n < Tiles; ++n) totals[n][tile] = add(totals[n][tile], whole_sums(sums[tile][n]));
      }
    }
  }

  __device__ void activate_rows(const uint4 (&frames)[Tiles], const uint4& predicted,
                                SplitRow (&rows)[Tiles]) const {
    float4 x[Tiles];
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      x[n] = add(as_floats(frames[n]), as_floats(predicted));
    }
    if (joint.activation == Activation::kRelu) {
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
        x[n] = rectified(x[n]);
      }
    } else {
#pragma unroll
      for (int n = 0; n < Tiles; ++n) x[n] = activate_curved(x[n], joint.activation);
    }
#pragma unroll
    for (int n = 0; n < Tiles; ++n) rows[n] = split_row(x[n]);
  }

  // Of a tile of pairs this lane's columns of two: first the best ones go out, then the sums, when nobody
  // waits.
  __device__ void judge_pairs(int round, const Tasks& tasks, const Task& task, int column_tile, int n,
                              const float4 (&sums)[kColumnTiles]) const {
    const bool last = column_tile + 1 == plan.column_tiles;
    const int column = first_column + column_tile * kColumns + c.g;
    const float* biases = floats(layout.column_biases) + column_tile * kColumns + c.g;
    const unsigned tag = static_cast<unsigned>(round + 1);
    float logits[2][2 * kColumnTiles];
#pragma unroll
    for (int tile = 0; tile < kColumnTiles; ++tile) {
      const float low = biases[16 * tile], high = biases[16 * tile + 8];
      logits[0][2 * tile] = sums[tile].x + low;
      logits[1][2 * tile] = sums[tile].y + low;
      logits[0][2 * tile + 1] = sums[tile].z + high;
      logits[1][2 * tile + 1] = sums[tile].w + high;
    }
    FloatBest* kept = best_of(task.index, n);
    FloatBest best[2];
    int row[2], frame[2];
    bool exists[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row[i] = row_of(tasks, task, 2 * c.t + i);
      frame[i] = frame_of(tasks, task, 2 * c.t + i) + n * tasks.frames_per_tile();
      exists[i] = frame[i] < frames_left(row[i]);
      if (column_tile > 0) best[i] = kept[i];
#pragma unroll
      for (int j = 0; j < 2 * kColumnTiles; ++j) {
        const int own = column + 8 * j;
        if (own < joint.num_tokens) take(best[i].order, best[i].token, order_of(logits[i][j]), own);
      }
      take_over_lanes<4, kWarp>(best[i].order, best[i].token);
      if (exists[i] && last && c.g == 0) {
        write_message(c.partial(c.frame_index(round, row[i], frame[i]), c.column_block),
                      {best[i].order, static_cast<unsigned>(best[i].token), 0, tag});
      }
    }
#pragma unroll
    for (int i = 0; c.duration_block >= 0 && i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2 * kColumnTiles; ++j) {
        const int own = column + 8 * j - joint.num_tokens;
        if (own >= 0 && own < joint.num_durations) {
          take(best[i].duration_order, best[i].duration, order_of(logits[i][j]), own);
        }
      }
      take_over_lanes<4, kWarp>(best[i].duration_order, best[i].duration);
      if (exists[i] && last && c.g == 0) {
        write_message(c.duration_partial(c.frame_index(round, row[i], frame[i]), c.duration_block),
                      {best[i].duration_order, static_cast<unsigned>(best[i].duration), 0, tag});
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < 2 * kColumnTiles; ++j) {
        if (column + 8 * j < joint.num_tokens) sum += exp_below(logits[i][j], value_of(best[i].order));
      }
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2) sum += __shfl_xor_sync(kFullMask, sum, offset);
      if (best[i].sum != 0.0f) {
        sum += best[i].sum * expf(value_of(best[i].sum_order) - value_of(best[i].order));
      }
      best[i].sum = sum;
      best[i].sum_order = best[i].order;
      if (exists[i] && last && c.g == 0) {
        write_message(c.partial_sum(c.frame_index(round, row[i], frame[i]), c.column_block),
                      {best[i].order, __float_as_uint(sum), 0, tag});
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; !last && i < 2; ++i) {
      if (c.g == 0) kept[i] = best[i];
    }
  }
};

}  // namespace rnnt_fastdecode::cuda
