// The prediction network of the resident decoder in fp32. A block owns up to 5 units of every layer and up to
// 6 outputs; rows with a label are listed without gaps and stepped 8 or 16 at a time. Cells and recurrent
// sums stay in shared memory. Layer 0 needs no product once the label is known: see predictor.cuh.
#pragma once

#include "product_float.cuh"

namespace rnnt_fastdecode::cuda {

// Rows of one product: 1, 4 or 8.
template <int Rows>
struct FloatPredictor {
  static constexpr int kGates = 4;
  static constexpr int kGroups = Rows == 8 ? 2 : 1;  // of 8 rows, in a pass
  static constexpr int kPass = 8 * kGroups;
  static constexpr int kLaneOutputs = kFloatOutputs / 2;
  using GateWeights = float[kFloatUnits][kLaneDepth];
  using OutputWeights = float[kLaneOutputs][kLaneDepth];
  using Values = uint4[kGroups][kQuads];

  const Context& c;
  const ResidentProblem& p = c.p;
  const ResidentPlan& plan = c.plan;
  const FloatPlan& layout = c.plan.single;
  const int k = c.lane % kDepthLanes;
  const int q = c.lane / kDepthLanes;  // the gate of a lane
  const int first_unit = c.block * layout.units;
  const int first_output = c.block * layout.outputs;
  const int units = c.has_units ? min(layout.units, p.width - first_unit) : 0;
  const int outputs = c.has_outputs ? min(layout.outputs, p.greedy.joint.width - first_output) : 0;
  float4 gate_bias;   // of layer 1 and the unit of this thread
  float output_bias;  // of the output of this thread

  __device__ float* floats(int offset) const { return reinterpret_cast<float*>(c.shared + offset); }
  __device__ float* slices() const { return floats(layout.slices) + c.warp * 2 * kDepthLanes * kSlice; }
  __device__ float* cell(int layer, int row, int unit) const {
    return floats(layout.cells) + (layer * c.batch + row) * kFloatUnits + unit;
  }
  __device__ float4* recurrent_sum(int layer, int row, int unit) const {
    return reinterpret_cast<float4*>(c.shared + layout.recurrent_sums) +
           (layer * c.batch + row) * kFloatUnits + unit;
  }
  // One of two arrays [warp][slot][unit][gate]; the outputs' is [warp][slot][output].
  __device__ float* sums(int array) const {
    return floats(layout.sums) + array * kWarps * 2 * kDepthLanes * kFloatUnits * kGates;
  }
  __device__ unsigned char* list() const { return c.shared + layout.row_lists + c.warp * kResidentRows; }
  __device__ float* hidden_message(int stage, int round, int row) const {
    const int64_t index = (stage * kGenerations + round % kGenerations) * c.batch + row;
    return reinterpret_cast<float*>(p.scratch + plan.hidden_messages) + index * p.width;
  }
  __device__ int64_t state_index(int layer, int row, int unit) const {
    return (static_cast<int64_t>(layer) * p.state_rows + row) * p.width + unit;
  }

  __device__ Columns gate_columns(int layer, bool recurrent) const {
    const int64_t width = p.width;
    const float* first =
        static_cast<const float*>(p.weight) + ((layer * kGates + q) * width + first_unit) * 2 * width;
    return {first + (recurrent ? width : 0), 2 * width, units};
  }
  __device__ Columns output_columns() const {
    const int first = q / 2 * kLaneOutputs;
    return {static_cast<const float*>(p.projection) + static_cast<int64_t>(first_output + first) * p.width,
            p.width, outputs - first};
  }
  __device__ int output_entry() const { return (c.warp * 2 + q / 2) * kDepthLanes + k; }

  __device__ void fetch_gates(GateWeights& weights, int layer, bool recurrent) const {
    const int offset = recurrent ? layout.recurrent_weights[layer] : layout.input_weights;
    fetch_columns(c, weights, offset, kThreads, threadIdx.x, gate_columns(layer, recurrent), p.width);
  }

  __device__ void load_weights() {
    for (int layer = 0; c.has_units && layer < p.layers; ++layer) {
      if (layout.recurrent_weights[layer] < 0) continue;
      place_columns<kFloatUnits>(c, layout.recurrent_weights[layer], kThreads, threadIdx.x,
                                 gate_columns(layer, true), p.width);
    }
    if (c.has_units && p.layers > 1) {
      if (layout.input_weights >= 0) {
        place_columns<kFloatUnits>(c, layout.input_weights, kThreads, threadIdx.x, gate_columns(1, false),
                                   p.width);
      }
      const int unit = threadIdx.x % kFloatUnits;
      const float* bias = p.bias + 4 * p.width + first_unit + unit;
      if (unit < units) gate_bias = {bias[0], bias[p.width], bias[2 * p.width], bias[3 * p.width]};
    }
    if (c.has_outputs) {
      if (layout.projection_weights >= 0) {
        place_columns<kLaneOutputs>(c, layout.projection_weights, kThreads / 2, output_entry(),
                                    output_columns(), p.width);
      }
      const int output = threadIdx.x % kFloatOutputs;
      if (output < outputs) {
        output_bias = static_cast<const float*>(p.projection_bias)[first_output + output];
      }
    }
  }

  // Needs the weights.
  __device__ void load_state() {
    for (int layer = 0; c.has_units && layer < p.layers; ++layer) {
      for (int i = threadIdx.x; i < c.batch * kFloatUnits; i += kThreads) {
        const int row = i / kFloatUnits, unit = i % kFloatUnits;
        if (unit < units) *cell(layer, row, unit) = p.cell[state_index(layer, row, first_unit + unit)];
      }
      GateWeights weights;
      fetch_gates(weights, layer, true);
      for (int first = 0; first < c.batch; first += kPass) {
        Values x;
#pragma unroll
        for (int i = 0; i < kGroups; ++i) {
          const int row = first + 8 * i + c.g;
#pragma unroll
          for (int l = 0; l < kQuads; ++l) {
            const int depth = slice_depth(c.warp, 16 * l + 4 * c.t);
            x[i][l] = prefetch_constant(static_cast<const float*>(p.hidden) + state_index(layer, row, depth),
                                        row < c.batch && depth < p.width);
          }
        }
        stage(x);
        const int rows = min(kPass, c.batch - first);
        gate_parts(weights, sums(0), rows);
        __syncthreads();
        const int slot = threadIdx.x / kFloatUnits, unit = threadIdx.x % kFloatUnits;
        if (slot < rows && unit < units) *recurrent_sum(layer, first + slot, unit) = gate_sum(sums(0));
        __syncthreads();
      }
    }
  }

  // Of the words that this block writes, those of a row: empty but for the outputs of the state.
  __device__ void prepare_messages(int row) const {
    for (int i = 0; i < kGenerations; ++i) {
      empty_hidden(i, row);
      for (int output = 0; output < outputs; ++output) {
        float* message = output_values(c, i, row) + first_output + output;
        if (i == 0) {
          const int64_t index = static_cast<int64_t>(row) * p.greedy.joint.width + first_output + output;
          write_value(message, static_cast<const float*>(p.output)[index]);
        } else {
          empty_value(message);
        }
      }
    }
  }

  __device__ void empty_hidden(int round, int row) const {
    for (int stage = 0; stage < c.stages(); ++stage) {
      float* message = hidden_message(stage, round, row) + first_unit;
      for (int unit = 0; unit < units; ++unit) empty_value(message + unit);
    }
  }

  // What everybody has read: the hidden values of three rounds ago, and outputs that others replaced two
  // rounds ago.
  __device__ void empty_old(int round, int row) const {
    if (round >= 3 && c.labels(round - 3)[row] >= 0) empty_hidden(round - 3, row);
    if (round >= 2 && c.labels(round - 2)[row] >= 0) {
      const int replacement = c.rows.labelled[row] - (c.labels(round - 1)[row] >= 0 ? 1 : 0);
      float* message = output_values(c, replacement - 1, row) + first_output;
      for (int output = 0; output < outputs; ++output) empty_value(message + output);
    }
  }

  __device__ void stage(const Values& x) const {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
#pragma unroll
      for (int l = 0; l < kQuads; ++l) {
        float* slice = slices() + (8 * i + c.g) * kSlice;
        *reinterpret_cast<uint4*>(slice + 16 * l + 4 * c.t) = x[i][l];
      }
    }
    __syncwarp();
  }

  // This warp's parts of the gates of the staged rows; thread `slot * kFloatUnits + unit` adds them up.
  __device__ void gate_parts(const GateWeights& weights, float* all, int rows) const {
#pragma unroll 1
    for (int first = 0; first < rows; first += Rows) {
      float parts[kFloatUnits];
      multiply<Rows>(weights, slices() + first * kSlice, k, parts);
      float* own = all + ((c.warp * kPass + first + k) * kFloatUnits) * kGates + q;
#pragma unroll
      for (int unit = 0; unit < kFloatUnits; ++unit) {
        if (k < Rows) own[unit * kGates] = parts[unit];
      }
    }
  }
  __device__ static float4 gate_sum(const float* all) {
    float4 total{0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      total = add(total, reinterpret_cast<const float4*>(all)[warp * kPass * kFloatUnits + threadIdx.x]);
    }
    return total;
  }

  // Likewise the outputs, by thread `slot * kFloatOutputs + output`; neighbouring q take different rows.
  __device__ void output_parts(const OutputWeights& weights, float* all, int rows) const {
#pragma unroll 1
    for (int first = 0; first < rows; first += 2 * Rows) {
      const int slot = first + q % 2 * Rows;
      float parts[kLaneOutputs];
      multiply<Rows>(weights, slices() + slot * kSlice, k, parts);
      float* own = all + (c.warp * kPass + slot + k) * kFloatOutputs + q / 2 * kLaneOutputs;
#pragma unroll
      for (int output = 0; output < kLaneOutputs; ++output) {
        if (k < Rows) own[output] = parts[output];
      }
    }
  }
  __device__ float output_sum(const float* all) const {
    float total = output_bias;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) total += all[warp * kPass * kFloatOutputs + threadIdx.x];
    return total;
  }

  __device__ static float4 add(const float4& a, const float4& b) {
    return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
  }

  // The next hidden value of a unit, to everybody and to the state.
  __device__ void send_cell(int layer, int round, int row, int unit, const float4& gate) const {
    const float next = sigmoid(gate.y) * *cell(layer, row, unit) + sigmoid(gate.x) * tanhf(gate.z);
    const float value = sigmoid(gate.w) * tanhf(next);
    write_value(hidden_message(layer, round, row) + first_unit + unit, value);
    *cell(layer, row, unit) = next;
    const int64_t index = state_index(layer, row, first_unit + unit);
    static_cast<float*>(p.hidden)[index] = value;
    p.cell[index] = next;
  }

  // Sum of the context's embeddings of a unit, most recent label first.
  __device__ float embed(int row, int label, int unit) const {
    float sum = 0.0f;
    for (int i = 0; i < p.context_size; ++i) {
      const int past = i == 0 ? label : c.rows.history[i - 1][row];
      const int tokens = p.greedy.joint.num_tokens;
      const bool known = past >= 0 && past < tokens;
      const int64_t index = (static_cast<int64_t>(i) * tokens + past) * p.width + first_unit + unit;
      sum += known ? static_cast<const float*>(p.tables)[index] : NAN;
    }
    return p.relu ? activate(sum, Activation::kRelu) : sum;
  }

  __device__ void shift_history(int round) const {
    __syncthreads();
    for (int row = threadIdx.x; row < c.batch; row += kThreads) {
      const int label = c.labels(round)[row];
      if (label < 0) continue;
      for (int i = p.context_size - 2; i > 0; --i) c.rows.history[i][row] = c.rows.history[i - 1][row];
      c.rows.history[0][row] = label;
    }
  }

  __device__ void first_stage(int round, int count) const {
    for (int i = threadIdx.x; i < count * kFloatUnits; i += kThreads) {
      const int row = list()[i / kFloatUnits], unit = i % kFloatUnits;
      if (unit >= units) continue;
      const int label = c.labels(round)[row];
      if (p.layers > 0) {
        const int64_t entry = static_cast<int64_t>(label) * p.width + first_unit + unit;
        const float4 input = __ldg(reinterpret_cast<const float4*>(p.gate_table) + entry);
        send_cell(0, round, row, unit, add(input, *recurrent_sum(0, row, unit)));
      } else {
        write_value(hidden_message(0, round, row) + first_unit + unit, embed(row, label, unit));
      }
    }
    if (p.context_size > 1) shift_history(round);
  }

  // Where the lanes find the hidden values of the pass that starts at list entry `first`.
  __device__ void find_rows(const float* (&rows)[kGroups], int stage, int round, int first, int count) const {
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const int entry = first + 8 * i + c.g;
      rows[i] = entry < count ? hidden_message(stage, round, list()[entry]) : nullptr;
    }
  }

  __device__ void second_stage(int round, int count) const {
    GateWeights input, recurrent;
    Values x;
    const float* rows[kGroups];
    find_rows(rows, 0, round, 0, count);
    fetch_gates(input, 1, false);
    fetch_gates(recurrent, 0, true);
    request_rows(c, x, rows, p.width);
#pragma unroll 1
    for (int first = 0; first < count; first += kPass) {
      await_rows(c, x, rows);
      stage(x);
      find_rows(rows, 0, round, first + kPass, count);
      request_rows(c, x, rows, p.width);
      const int here = min(kPass, count - first);
      const int slot = threadIdx.x / kFloatUnits, unit = threadIdx.x % kFloatUnits;
      const bool own = slot < here && unit < units;
      const int row = own ? list()[first + slot] : 0;
      gate_parts(input, sums(0), here);
      __syncthreads();
      if (own) {
        const float4 gate = add(gate_sum(sums(0)), *recurrent_sum(1, row, unit));
        send_cell(1, round, row, unit, add(gate, gate_bias));
      }
      gate_parts(recurrent, sums(1), here);
      __syncthreads();
      if (own) *recurrent_sum(0, row, unit) = gate_sum(sums(1));
    }
  }

  __device__ void project(int round, int count) const {
    const int stage_index = c.stages() - 1;
    OutputWeights projection;
    GateWeights recurrent;
    Values x;
    const float* rows[kGroups];
    const bool has_recurrent = c.has_units && p.layers > 0;
    find_rows(rows, stage_index, round, 0, count);
    fetch_columns(c, projection, layout.projection_weights, kThreads / 2, output_entry(), output_columns(),
                  p.width);
    if (has_recurrent) fetch_gates(recurrent, stage_index, true);
    request_rows(c, x, rows, p.width);
#pragma unroll 1
    for (int first = 0; first < count; first += kPass) {
      await_rows(c, x, rows);
      stage(x);
      find_rows(rows, stage_index, round, first + kPass, count);
      request_rows(c, x, rows, p.width);
      const int here = min(kPass, count - first);
      if (c.has_outputs) output_parts(projection, sums(0), here);
      __syncthreads();
      const int output = threadIdx.x % kFloatOutputs;
      if (threadIdx.x / kFloatOutputs < here && output < outputs) {
        const int row = list()[first + threadIdx.x / kFloatOutputs];
        const float value = output_sum(sums(0));
        write_value(output_values(c, c.rows.labelled[row], row) + first_output + output, value);
        const int64_t index = static_cast<int64_t>(row) * p.greedy.joint.width + first_output + output;
        static_cast<float*>(p.output)[index] = value;
      }
      if (has_recurrent) gate_parts(recurrent, sums(1), here);
      __syncthreads();
      const int slot = threadIdx.x / kFloatUnits, unit = threadIdx.x % kFloatUnits;
      if (has_recurrent && slot < here && unit < units) {
        *recurrent_sum(stage_index, list()[first + slot], unit) = gate_sum(sums(1));
      }
    }
  }

  // A step for the rows with a label in `round`.
  __device__ void step(int round) const {
    const int* labels = c.labels(round);
    const int count = list_rows(c, list(), [labels](int row) { return labels[row] >= 0; });
    if (c.has_units) {
      first_stage(round, count);
      if (p.layers > 1) second_stage(round, count);
    }
    if (c.has_outputs || (c.has_units && p.layers > 0)) project(round, count);
  }
};

}  // namespace rnnt_fastdecode::cuda
