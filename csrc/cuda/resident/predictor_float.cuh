// The prediction network of the resident decoder in fp32, for few rows: those with a label are listed without
// gaps and stepped up to 8 at a time. Cells and recurrent sums stay in shared memory.
#pragma once

#include "product_float.cuh"

namespace rnnt_fastdecode::cuda {

// Rows of one product: 1, 4 or 8.
template <int Rows>
struct FloatPredictor : FloatShare {
  static constexpr int kGateColumns = kFloatUnits * kGates;
  static constexpr int kLaneOutputs = kFloatOutputs / 2;
  using GateWeights = float[kFloatUnits][kLaneDepth];
  using OutputWeights = float[kLaneOutputs][kLaneDepth];

  const FewPlan& few = c.plan.few;
  const Place at = Place::of_thread(c.thread);

  __device__ float* slices() const { return floats(few.slices) + at.warp * Rows * kSlice; }
  __device__ float* cell(int layer, int row, int unit) const {
    return floats(few.cells) + (layer * c.batch + row) * kFloatUnits + unit;
  }
  __device__ float4* recurrent_sum(int layer, int row, int unit) const {
    return reinterpret_cast<float4*>(c.at(few.recurrent_sums)) + (layer * c.batch + row) * kFloatUnits + unit;
  }
  // One of four arrays [warp][slot][unit][gate], two of them for recurrent sums; the outputs' are
  // [warp][slot][output].
  __device__ float* sums(int array) const {
    return floats(layout.sums) + array * kWarps * float_warp_sums(Rows);
  }
  __device__ unsigned char* list() const { return c.at(layout.row_lists) + at.warp * kFloatRows; }
  __device__ Columns gate_columns(int layer, bool recurrent) const {
    const int64_t width = p.width;
    const float* first =
        static_cast<const float*>(p.weight) + ((layer * kGates + at.q) * width + first_unit) * 2 * width;
    return {first + (recurrent ? width : 0), 2 * width, units};
  }
  __device__ Columns output_columns() const {
    const int first = at.q / 2 * kLaneOutputs;
    return {static_cast<const float*>(p.projection) + static_cast<int64_t>(first_output + first) * p.width,
            p.width, outputs - first};
  }
  __device__ int output_entry() const { return (at.warp * kDepthLanes + at.k) * 2 + at.q / 2; }

  __device__ void fetch_gates(GateWeights& weights, int layer, bool recurrent) const {
    const int offset = recurrent ? few.recurrent_weights[layer] : few.input_weights;
    fetch_columns(c, weights, offset, kThreads, at.thread, gate_columns(layer, recurrent), p.width, at);
  }

  __device__ void load_weights() const {
    for (int layer = 0; c.has_units && layer < p.layers; ++layer) {
      if (few.recurrent_weights[layer] < 0) continue;
      place_columns<kFloatUnits>(c, few.recurrent_weights[layer], kThreads, at.thread,
                                 gate_columns(layer, true), p.width, at);
    }
    if (c.has_units && p.layers > 1) {
      if (few.input_weights >= 0) {
        place_columns<kFloatUnits>(c, few.input_weights, kThreads, at.thread, gate_columns(1, false), p.width,
                                   at);
      }
    }
    if (c.has_outputs) {
      if (few.projection_weights >= 0) {
        place_columns<kLaneOutputs>(c, few.projection_weights, kThreads / 2, output_entry(), output_columns(),
                                    p.width, at);
      }
    }
  }

  __device__ void load_state() const {
    for (int layer = 0; c.has_units && layer < p.layers; ++layer) {
      for (int i = at.thread; i < c.batch * kFloatUnits; i += kThreads) {
        const int row = i / kFloatUnits, unit = i % kFloatUnits;
        if (unit < units) *cell(layer, row, unit) = p.cell[state_index(layer, row, first_unit + unit)];
      }
      GateWeights weights;
      fetch_gates(weights, layer, true);
      for (int first = 0; first < c.batch; first += Rows) {
        uint4 x[kQuads];
        const int row = first + at.g;
#pragma unroll
        for (int l = 0; l < kQuads; ++l) {
          const int depth = slice_depth(at.warp, 16 * l + 4 * at.t);
          const bool wanted = at.g < Rows && row < c.batch && depth < p.width;
          x[l] =
              prefetch_constant(static_cast<const float*>(p.hidden) + state_index(layer, row, depth), wanted);
        }
        stage(x);
        gate_parts(weights, sums(0));
        __syncthreads();
        keep_recurrent(layer, min(Rows, c.batch - first), sums(0),
                       [first](int slot) { return first + slot; });
        __syncthreads();
      }
    }
  }

  // The rows of a pass.
  __device__ void stage(const uint4 (&x)[kQuads]) const {
    __syncwarp();
#pragma unroll
    for (int l = 0; l < kQuads; ++l) {
      if (at.g < Rows) *reinterpret_cast<uint4*>(slices() + at.g * kSlice + 16 * l + 4 * at.t) = x[l];
    }
    __syncwarp();
  }

  // This warp's parts of the gates of staged rows.
  __device__ void gate_parts(const GateWeights& weights, float* all) const {
    float parts[kFloatUnits];
    multiply<Rows>(weights, slices(), at.k, parts);
    float* own = all + (at.warp * Rows + at.k) * kGateColumns + at.q;
#pragma unroll
    for (int unit = 0; unit < kFloatUnits; ++unit) {
      if (at.k < Rows) own[unit * kGates] = parts[unit];
    }
  }
  __device__ float4 gate_sum(const float* all, int slot, int unit) const {
    const auto* first = reinterpret_cast<const float4*>(all) + slot * kFloatUnits + unit;
    float4 total{0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) total = add(total, first[warp * Rows * kFloatUnits]);
    return total;
  }
  // The recurrent half of a unit's gates for the next step, with the bias that layer 0 has in its table; by
  // other threads than those that have cells to work out.
  template <typename RowOf>
  __device__ void keep_recurrent(int layer, int rows, const float* all, RowOf row_of) const {
    const int thread = kThreads - 1 - at.thread, slot = thread / kFloatUnits, unit = thread % kFloatUnits;
    if (slot >= rows || unit >= units) return;
    float4 total = gate_sum(all, slot, unit);
    if (layer > 0) {
      const float* bias = p.bias + kGates * p.width + first_unit + unit;
      total = add(total, {bias[0], bias[p.width], bias[2 * p.width], bias[3 * p.width]});
    }
    *recurrent_sum(layer, row_of(slot), unit) = total;
  }

  // Likewise the outputs; neighbouring q take different rows.
  __device__ void output_parts(const OutputWeights& weights, float* all) const {
    constexpr int kTogether = Rows > 1 ? Rows / 2 : 1;
    const int first = at.q % 2 * kTogether;
    float parts[kLaneOutputs];
    multiply<kTogether>(weights, slices() + first * kSlice, at.k, parts);
    float* own = all + (at.warp * Rows + first + at.k) * kFloatOutputs + at.q / 2 * kLaneOutputs;
#pragma unroll
    for (int output = 0; output < kLaneOutputs; ++output) {
      if (at.k < kTogether && first < Rows) own[output] = parts[output];
    }
  }
  __device__ float output_sum(const float* all, int slot, int output, float bias) const {
    const float* first = all + slot * kFloatOutputs + output;
    float total = bias;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) total += first[warp * Rows * kFloatOutputs];
    return total;
  }

  __device__ void step_cell(int layer, int round, int row, int unit, const float4& input) const {
    float* own = cell(layer, row, unit);
    *own = send_cell(layer, round, row, unit, add(input, *recurrent_sum(layer, row, unit)), *own);
  }

  // Where a lane finds the hidden values of its row of those from list entry `first` on.
  __device__ const float* find_row(int stage, int round, int first, int count) const {
    const int entry = first + at.g;
    return at.g < Rows && entry < count ? hidden_message(stage, round, list()[entry]) : nullptr;
  }

  // What follows from the hidden values of a stage, a pass of rows at a time: `parts` multiplies them with
  // the weights that `fetch` has got, and when all warps have done so `finish` sends what the sums yield.
  // Then comes the recurrent half of the layer's next step, if it is one of an LSTM: its sums are added up
  // behind the next pass's barrier.
  template <typename Fetch, typename Parts, typename Finish>
  __device__ void each_pass(int layer, int round, int count, Fetch fetch, Parts parts, Finish finish) const {
    const bool is_recurrent = c.has_units && p.layers > 0;
    GateWeights recurrent;
    uint4 x[kQuads];
    const float* row = find_row(layer, round, 0, count);
    request_rows(at, x, row, p.width);
    if (is_recurrent) fetch_gates(recurrent, layer, true);
    fetch();
    const auto keep = [&](int first) {
      keep_recurrent(layer, min(Rows, count - first), sums(2 + first / Rows % 2),
                     [&](int slot) { return list()[first + slot]; });
    };
#pragma unroll 1
    for (int first = 0; first < count; first += Rows) {
      await_rows(at, x, row);
      stage(x);
      row = find_row(layer, round, first + Rows, count);
      request_rows(at, x, row, p.width);
      const int turn = first / Rows % 2;
      parts(sums(turn));
      __syncthreads();
      finish(first, min(Rows, count - first), sums(turn));
      if (is_recurrent) {
        if (first > 0) keep(first - Rows);
        gate_parts(recurrent, sums(2 + turn));
      }
    }
    __syncthreads();
    if (is_recurrent) keep((count - 1) / Rows * Rows);
  }

  __device__ void second_stage(int round, int count) const {
    GateWeights input;
    const int slot = at.thread / kFloatUnits, unit = at.thread % kFloatUnits;
    each_pass(
        0, round, count, [&] { fetch_gates(input, 1, false); }, [&](float* all) { gate_parts(input, all); },
        [&](int first, int rows, const float* all) {
          if (slot >= rows || unit >= units) return;
          const int row = list()[first + slot];
          step_cell(1, round, row, unit, gate_sum(all, slot, unit));
        });
  }

  __device__ void project(int round, int count) const {
    OutputWeights projection;
    const int slot = at.thread / kFloatOutputs, output = at.thread % kFloatOutputs;
    const auto* biases = static_cast<const float*>(p.projection_bias) + first_output;
    const float bias = output < outputs ? biases[output] : 0.0f;
    each_pass(
        c.stages() - 1, round, count,
        [&] {
          fetch_columns(c, projection, few.projection_weights, kThreads / 2, output_entry(), output_columns(),
                        p.width, at);
        },
        [&](float* all) {
          if (c.has_outputs) output_parts(projection, all);
        },
        [&](int first, int rows, const float* all) {
          if (slot >= rows || output >= outputs) return;
          send_output(list()[first + slot], output, output_sum(all, slot, output, bias));
        });
  }

  // A step for the rows with a label in `round`; before the first round, what follows from the state.
  __device__ void step(int round) const {
    if (round < 0) {
      load_state();
      return;
    }
    const int* labels = c.labels(round);
    const int count = list_rows(c, list(), [labels](int row) { return labels[row] >= 0; });
    if (c.has_units && count > 0) {
      first_stage(round, list(), count,
                  [&](int row, int unit, const float4& input) { step_cell(0, round, row, unit, input); });
    }
    if (count == 0) return;
    if (c.has_units && p.layers > 1) second_stage(round, count);
    if (c.has_outputs || (c.has_units && p.layers > 0)) project(round, count);
  }
};

}  // namespace rnnt_fastdecode::cuda
