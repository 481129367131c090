// The prediction network of the resident decoder in fp32, for many rows, on tensor cores (split.cuh). Rows
// with a label are listed without gaps and stepped up to 8 or 32 at a time.
//
// Hidden values of a stage are multiplied with everything that needs them: with the input weights of the next
// layer or the projection, and with the recurrent weights of their own layer for its next step. The columns
// of a stage are slots of four: the gates of a unit, or four outputs. Those that others wait for come first.
// Four slots are a tile of 16 columns: a slot has the rows g = 2 slot and 2 slot + 1 of the tile and those 8
// below, so that two neighbouring g share the sums of a slot. All tiles of a stage but the last are kept in
// shared memory; the last, of recurrent weights, is read from device memory in every pass.
//
// The depth of a product is split over the warps; cells and recurrent sums live in device memory.
#pragma once

#include "../split.cuh"
#include "share_float.cuh"

namespace rnnt_fastdecode::cuda {

// Of a stage that the projection follows, or another layer.
template <bool kLast>
struct StageTiles {
  static constexpr int kFirstRecurrent = kLast ? 2 : kFloatUnits;  // slot
  static constexpr int kTiles = kLast ? 2 : 3;
  static constexpr int kKept = kTiles - 1;
  static_assert(kFirstRecurrent + kFloatUnits <= 4 * kTiles);
};

template <int RowTiles>
struct SplitPredictor : FloatShare {
  static constexpr int kSteps = kFloatWidth / kStepDepth / kWarps;
  // Steps that are read at once: all, or where registers are short one after the other.
  static constexpr int kAtOnce = RowTiles == 1 ? kSteps : 1;
  static constexpr int kRows = 8 * RowTiles;
  template <bool kLast>
  using Sums = SplitSums[StageTiles<kLast>::kTiles][RowTiles];

  const ManyPlan& many = c.plan.many;

  __device__ unsigned char* list() const { return c.at(layout.row_lists) + c.warp * kFloatRows; }
  __device__ int first_step() const { return c.warp * many.hidden_steps; }
  __device__ bool is_last(int stage) const { return stage + 1 == c.stages(); }
  __device__ float4& recurrent_sum(int layer, int row, int unit) const {
    const int64_t index = (static_cast<int64_t>(layer) * c.batch + row) * p.width + first_unit + unit;
    return reinterpret_cast<float4*>(p.scratch + many.recurrent_sums)[index];
  }
  // Of outputs, 8, then of the second layer's gates.
  __device__ float* biases() const { return floats(many.biases); }
  // Of a stage's kept tile, for a step: this lane's numbers of columns g and g + 8.
  __device__ float4* kept(int stage, int tile, int step) const {
    const int place = is_last(stage) && stage > 0 ? StageTiles<false>::kKept : tile;
    return reinterpret_cast<float4*>(c.at(many.weights)) +
           (place * kWarps * many.hidden_steps + step) * 2 * kWarp + c.lane;
  }
  __device__ float4* parts(int job) const {
    return reinterpret_cast<float4*>(c.at(layout.sums)) + job * kWarps * kWarp + c.lane;
  }

  // The weights of a column: `half` 1 is 8 below. Anything in place of one that there is not: nobody looks at
  // it.
  template <bool kLast>
  __device__ const float* column(int stage, int tile, int half) const {
    const int slot = 4 * tile + c.g / 2, gate = c.g % 2 + 2 * half;
    const bool recurrent = slot >= StageTiles<kLast>::kFirstRecurrent;
    if (kLast && !recurrent) {
      const int output = 4 * slot + gate;
      const int row = output < outputs ? first_output + output : 0;
      return static_cast<const float*>(p.projection) + static_cast<int64_t>(row) * p.width;
    }
    const int unit = recurrent ? slot - StageTiles<kLast>::kFirstRecurrent : slot;
    const int layer = recurrent ? stage : stage + 1;
    if (layer >= p.layers || unit >= units) return static_cast<const float*>(p.projection);
    const int64_t row = (static_cast<int64_t>(layer) * kGates + gate) * p.width + first_unit + unit;
    return static_cast<const float*>(p.weight) + row * 2 * p.width + (recurrent ? p.width : 0);
  }

  __device__ float4 quad_of(const float* column, int step) const {
    const int depth = step * kStepDepth + 4 * c.t;
    return prefetch_quad(column + depth, depth < p.width);
  }

  template <bool kLast>
  __device__ void load_stage(int stage) const {
    for (int tile = 0; tile < StageTiles<kLast>::kKept; ++tile) {
      const float *low = column<kLast>(stage, tile, 0), *high = column<kLast>(stage, tile, 1);
      for (int step = c.warp; step < kWarps * many.hidden_steps; step += kWarps) {
        kept(stage, tile, step)[0] = quad_of(low, step);
        kept(stage, tile, step)[kWarp] = quad_of(high, step);
      }
    }
  }

  __device__ void load_weights() const {
    for (int stage = 0; stage + 1 < c.stages(); ++stage) load_stage<false>(stage);
    load_stage<true>(c.stages() - 1);
    const int i = c.thread;
    if (i < outputs) biases()[i] = static_cast<const float*>(p.projection_bias)[first_output + i];
    const int unit = (i - 8) / kGates, gate = i % kGates;
    if (i >= 8 && p.layers > 1 && unit < units) {
      biases()[i] = p.bias[(kGates + gate) * p.width + first_unit + unit];
    }
  }

  // What follows from the hidden values of a stage, of `count` listed rows; before the first round, from
  // those of the state, only recurrent sums do.
  template <bool kLast>
  __device__ void each_pass(int stage, int round, int count) const {
    constexpr int kKept = StageTiles<kLast>::kKept;
    const float *low = column<kLast>(stage, kKept, 0), *high = column<kLast>(stage, kKept, 1);
    Operands x;
    x.find(*this, stage, round, 0, count);
    x.request(*this, 0);
    x.request_weights(*this, low, high, 0);
#pragma unroll 1
    for (int first = 0; first < count; first += kRows) {
      const Awaited awaited = prepare<kLast>(stage, round, first, count);
      Sums<kLast> sums = {};
#pragma unroll(kAtOnce)
      for (int step = 0; step < kSteps; ++step) {
        if (step >= many.hidden_steps) continue;
        const int place = kAtOnce > 1 ? step : 0;
        if (round >= 0 && place == 0) x.await(*this, kAtOnce > 1 ? 0 : step);
        SplitRow rows[RowTiles];
        SplitWeights weights[kKept + 1];
#pragma unroll
        for (int n = 0; n < RowTiles; ++n) rows[n] = split_row(as_floats(x.rows[place][n]));
        weights[kKept] = split_weights(x.weights[place][0], x.weights[place][1]);
        if (kAtOnce == 1) {
          const bool ends = step + 1 == many.hidden_steps;
          if (ends) x.find(*this, stage, round, first + kRows, count);
          x.request(*this, ends ? 0 : step + 1);
          x.request_weights(*this, low, high, ends ? 0 : step + 1);
        }
#pragma unroll
        for (int tile = 0; tile < kKept; ++tile) {
          const float4* own = kept(stage, tile, first_step() + step);
          weights[tile] = split_weights(own[0], own[kWarp]);
        }
        multiply_split(sums, weights, rows);
      }
      add_up<kLast>(stage, round, first, count, sums, awaited);
    }
  }

  // What a lane reads for the next steps: of row g of every tile, and of the streamed tile of columns.
  struct Operands {
    const float* row[RowTiles];
    uint4 rows[kAtOnce][RowTiles];
    float4 weights[kAtOnce][2];

    // The rows from entry `first` of the list on; the last one again in place of those beyond it.
    __device__ void find(const SplitPredictor& at, int stage, int round, int first, int count) {
#pragma unroll
      for (int n = 0; n < RowTiles; ++n) {
        const int entry = min(first + 8 * n + at.c.g, count - 1);
        const int own = at.list()[entry];
        row[n] = round >= 0 ? at.hidden_message(stage, round, own)
                            : static_cast<const float*>(at.p.hidden) + at.state_index(stage, own, 0);
      }
    }

    // Where weights are zero, beyond the width, other numbers of the row stand in.
    __device__ static int depth(const SplitPredictor& at, int step) {
      const int own = (at.first_step() + step) * kStepDepth + 4 * at.c.t;
      return own < at.p.width ? own : 0;
    }

    // The first attempt to read what is needed from `step` on.
    __device__ void request(const SplitPredictor& at, int step) {
#pragma unroll
      for (int s = 0; s < kAtOnce; ++s) {
        const int own = depth(at, step + s);
#pragma unroll
        for (int n = 0; n < RowTiles; ++n) {
          rows[s][n] = read_values(row[n] + own);
        }
      }
    }

    __device__ void request_weights(const SplitPredictor& at, const float* low, const float* high, int step) {
#pragma unroll
      for (int s = 0; s < kAtOnce; ++s) {
        weights[s][0] = at.quad_of(low, at.first_step() + step + s);
        weights[s][1] = at.quad_of(high, at.first_step() + step + s);
      }
    }

    __device__ bool is_missing() const {
      unsigned most = 0;
#pragma unroll
      for (int s = 0; s < kAtOnce; ++s) {
#pragma unroll
        for (int n = 0; n < RowTiles; ++n) most = max(most, greatest(rows[s][n]));
      }
      return most == kEmpty;
    }

    __device__ void await(const SplitPredictor& at, int step) {
      int polls = 0;
      while (__any_sync(kFullMask, is_missing())) {
        if (polls++ == kPatience) __trap();
        request(at, step);
      }
    }
  };

  // --- adding up ------------------------------------------------------------------------------------------

  // Warp 2 n + m adds up tile m of columns for tile n of rows, warp 2 n + 4 or 2 n - 4 a third one; lane (g,
  // t) gets slot g / 2 of row 2 t + g % 2.
  __device__ int slot(int tile) const { return 4 * tile + c.g / 2; }
  __device__ int entry(int first, int n) const { return first + 8 * n + 2 * c.t + c.g % 2; }
  // What a cell of the next layer needs beside its product, fetched while the product is made.
  struct Awaited {
    float4 recurrent;
    float cell;
  };

  template <bool kLast>
  __device__ Awaited prepare(int stage, int round, int first, int count) const {
    Awaited out{};
    const int n = c.warp / 2, unit = slot(c.warp % 2);
    if (kLast || round < 0 || n >= RowTiles || entry(first, n) >= count || unit >= units) return out;
    const int row = list()[entry(first, n)];
    out.recurrent = recurrent_sum(stage + 1, row, unit);
    out.cell = p.cell[state_index(stage + 1, row, first_unit + unit)];
    return out;
  }

  template <bool kLast>
  __device__ void add_up(int stage, int round, int first, int count, const Sums<kLast>& sums,
                         const Awaited& awaited) const {
    constexpr int kTiles = StageTiles<kLast>::kTiles;
    constexpr int kTogether = kLast && RowTiles > 1 ? 2 : 1;  // tiles of rows that find room
    float4 own[kTiles][RowTiles], total{}, third{};
#pragma unroll
    for (int n = 0; n < RowTiles; ++n) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) own[tile][n] = whole_sums(sums[tile][n]);
    }
#pragma unroll 1
    for (int n = 0; n < RowTiles && first + 8 * n < count; n += kTogether) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < kTogether; ++i) parts(i * kTiles + tile)[c.warp * kWarp] = own[tile][i];
#pragma unroll
        for (int i = kTogether; i < RowTiles; ++i) own[tile][i - kTogether] = own[tile][i];
      }
      __syncthreads();
      const int place = c.warp - 2 * n;
      const bool is_first = place >= 0 && place < 2 * kTogether;
      if (is_first) {
        total = collect(place / 2 * kTiles + place % 2);
      } else if (kTiles > 2 && c.warp == (2 * n + 4) % kWarps) {
        third = collect(2);
      }
      __syncthreads();
    }
    const int n = c.warp / 2;
    if (n < RowTiles) finish<kLast>(stage, round, c.warp % 2, entry(first, n), count, total, awaited);
    const int third_n = (c.warp / 2 + 2) % 4;
    if (kTiles > 2 && c.warp % 2 == 0 && third_n < RowTiles) {
      finish<kLast>(stage, round, 2, entry(first, third_n), count, third, awaited);
    }
  }

  // The four sums of a slot, in their order, of the row that is this lane's.
  __device__ float4 collect(int job) const {
    float4 sum = parts(job)[0];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) sum = add(sum, parts(job)[warp * kWarp]);
    const bool odd = c.g % 2 != 0;
    const float upper = __shfl_xor_sync(kFullMask, odd ? sum.x : sum.y, 4);
    const float lower = __shfl_xor_sync(kFullMask, odd ? sum.z : sum.w, 4);
    return odd ? float4{upper, sum.y, lower, sum.w} : float4{sum.x, upper, sum.z, lower};
  }

  template <bool kLast>
  __device__ void finish(int stage, int round, int tile, int entry, int count, const float4& sums,
                         const Awaited& awaited) const {
    constexpr int kFirstRecurrent = StageTiles<kLast>::kFirstRecurrent;
    if (entry >= count) return;
    const int row = list()[entry], own = slot(tile);
    if (own >= kFirstRecurrent) {
      if (p.layers > 0 && own - kFirstRecurrent < units) {
        recurrent_sum(stage, row, own - kFirstRecurrent) = sums;
      }
    } else if (kLast && round >= 0) {
      const float value[4] = {sums.x, sums.y, sums.z, sums.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int output = 4 * own + i;
        if (output < outputs) send_output(row, output, value[i] + biases()[output]);
      }
    } else if (!kLast && round >= 0 && own < units) {
      const float4 bias = *reinterpret_cast<const float4*>(biases() + 8 + own * kGates);
      send_cell(stage + 1, round, row, own, add(add(sums, awaited.recurrent), bias), awaited.cell);
    }
  }

  // A step for the rows with a label in `round`; before the first round, what follows from the state.
  __device__ void step(int round) const {
    const int* labels = c.labels(max(round, 0));
    const int count = list_rows(c, list(), [&](int row) { return round < 0 || labels[row] >= 0; });
    if (count == 0) return;
    if (c.has_units && round >= 0) {
      first_stage(round, list(), count, [&](int row, int unit, const float4& input) {
        const float cell = p.cell[state_index(0, row, first_unit + unit)];
        send_cell(0, round, row, unit, add(input, recurrent_sum(0, row, unit)), cell);
      });
    }
    const bool recurs = c.has_units && p.layers > 0;
    const Context second = c.anew();
    if (recurs && p.layers > 1) SplitPredictor{second}.template each_pass<false>(0, round, count);
    const Context third = c.anew();
    if (recurs || (c.has_outputs && round >= 0)) {
      SplitPredictor{third}.template each_pass<true>(c.stages() - 1, round, count);
    }
  }
};

}  // namespace rnnt_fastdecode::cuda
