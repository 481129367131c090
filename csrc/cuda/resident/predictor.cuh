// The prediction network of the resident decoder, as the main crew works it out. A thread owns one unit (8 in
// a block) of one row, whose cells stay in its registers. Layer 0 needs no product once the label is known:
// its input gates are a table, its recurrent half was computed after the step before (ahead.cuh). Later
// layers and the projection, which other blocks work out where there are enough, wait for the values of the
// stage before, in messages of 8 units.
#pragma once

#include "crew.cuh"
#include "operands.cuh"
#include "stateless.cuh"

namespace rnnt_fastdecode::cuda {

constexpr int kChunksPerWarp = kResidentWidth / kChunk / kWarps;

// What a thread keeps in its registers from round to round.
template <typename T>
struct Held {
  float cell[kResidentLayers];
  T hidden[kResidentLayers];
  T output[2];
  float4 gate_bias;  // of layer 1
  float2 output_bias;
  WeightFragment input_weights[kChunksPerWarp][2];  // of layer 1: of i and f, of g and o
};

// RowTiles tiles of 8 rows; kPasses: at a time, of any number. Then a stage takes pass after pass, so that
// the values of a pass are on their way while others are worked out, and the state lives in device memory.
template <typename T, int RowTiles, bool kPasses>
struct Predictor {
  using Values = Operand<kChunksPerWarp, RowTiles>;

  const Context& c;
  Held<T>& held;
  const ResidentProblem& p = c.p;
  const ResidentPlan& plan = c.plan;
  const int chunks = (p.width + kChunk - 1) / kChunk;
  // The row whose unit this thread owns, in a pass.
  __device__ int row_of(int pass) const {
    const int row = 8 * (c.warp / 2) + 2 * c.t + c.warp % 2;
    return kPasses ? pass * kPassRows + row : row;
  }
  __device__ int passes() const { return kPasses ? (c.batch + kPassRows - 1) / kPassRows : 1; }

  __device__ int64_t state_index(int layer, int row) const {
    return (static_cast<int64_t>(layer) * p.state_rows + row) * p.width + c.unit;
  }
  // Of the two outputs that this thread owns of its row.
  __device__ int output_unit(int i) const { return 16 * c.output_tile + 8 * i + c.g; }
  __device__ bool has_output(int i) const { return c.has_outputs && output_unit(i) < p.greedy.joint.width; }

  __device__ void load() {
    const int recurrent = recurrent_chunks(c);
    for (int i = c.warp; c.has_units && i < p.layers * recurrent * 2; i += kWarps) {
      const int layer = i / (recurrent * 2), chunk = i / 2 % recurrent, half = i % 2;
      keep_weights(c, plan.recurrent_weights, i, gate_weights<T>(c, layer, half, p.width, true, chunk));
    }
    const bool two_layers = c.has_units && p.layers > 1;
#pragma unroll
    for (int i = 0; i < kChunksPerWarp; ++i) {
      const int chunk = c.warp + i * kWarps;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        held.input_weights[i][half] = gate_weights<T>(c, 1, half, 0, two_layers, chunk);
      }
    }
    for (int chunk = c.warp; c.has_outputs && chunk < chunks; chunk += kWarps) {
      const auto weights = [&](int i) {
        const T* row = static_cast<const T*>(p.projection) + static_cast<int64_t>(output_unit(i)) * p.width;
        return load_operand(c, row, p.width, has_output(i), chunk);
      };
      keep_weights(c, plan.projection_weights, chunk, interleave(weights(0), weights(1)));
    }
    if (two_layers) {
      const float* bias = p.bias + 4 * p.width + c.unit;
      held.gate_bias = {bias[0], bias[p.width], bias[2 * p.width], bias[3 * p.width]};
    }
    const auto bias = [&](int i) {
      return has_output(i) ? to_float(static_cast<const T*>(p.projection_bias)[output_unit(i)]) : 0.0f;
    };
    held.output_bias = {bias(0), bias(1)};
#pragma unroll
    for (int layer = 0; layer < kResidentLayers; ++layer) {
      const bool exists = !kPasses && c.has_units && layer < p.layers && row_of(0) < c.batch;
      held.cell[layer] = exists ? p.cell[state_index(layer, row_of(0))] : 0.0f;
    }
  }

  // The block's four gates of 8 units, of this warp's part of the depth.
  using GateSums = float[2][RowTiles][4];
  __device__ __forceinline__ void multiply_gates(const Values& values, GateSums& products) const {
#pragma unroll
    for (int i = 0; i < kChunksPerWarp; ++i) {
      if (c.warp + i * kWarps >= chunks) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int n = 0; n < RowTiles; ++n) {
          multiply_chunk<T>(products[half][n], held.input_weights[i][half], values.x[i][n]);
        }
      }
    }
  }

  // Each thread gets the sums of the unit and row that it owns.
  __device__ __forceinline__ float4 add_gates(const GateSums& products) const {
    float4* all = c.sums();
#pragma unroll
    for (int job = 0; job < 2 * RowTiles; ++job) {
      const float (&even)[4] = products[0][job / 2];
      const float (&odd)[4] = products[1][job / 2];
      const int parity = job % 2;
      all[(job * kWarps + c.warp) * kWarp + c.lane] = {even[parity], even[2 + parity], odd[parity],
                                                       odd[2 + parity]};
    }
    meet_main();
    float4 total = held.gate_bias;
    if (c.warp < 2 * RowTiles) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total = add(total, all[(c.warp * kWarps + w) * kWarp + c.lane]);
    }
    return total;
  }

  // The block's 16 outputs of the projection, likewise.
  using OutputSums = float[RowTiles][4];
  __device__ __forceinline__ void multiply_outputs(const Values& values, OutputSums& products) const {
#pragma unroll
    for (int i = 0; i < kChunksPerWarp; ++i) {
      const int chunk = c.warp + i * kWarps;
      if (chunk >= chunks) continue;
      const WeightFragment weights = kept_weights(c, plan.projection_weights, chunk);
#pragma unroll
      for (int n = 0; n < RowTiles; ++n) multiply_chunk<T>(products[n], weights, values.x[i][n]);
    }
  }

  __device__ __forceinline__ float2 add_outputs(const OutputSums& products) const {
    float2* all = reinterpret_cast<float2*>(c.sums());
#pragma unroll
    for (int job = 0; job < 2 * RowTiles; ++job) {
      const float (&own)[4] = products[job / 2];
      all[(job * kWarps + c.warp) * kWarp + c.lane] = {own[job % 2], own[2 + job % 2]};
    }
    meet_main();
    float2 total = held.output_bias;
    if (c.warp < 2 * RowTiles) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float2 part = all[(c.warp * kWarps + w) * kWarp + c.lane];
        total = {total.x + part.x, total.y + part.y};
      }
    }
    return total;
  }

  // Eight values of a row, gathered from the lanes that share t.
  __device__ __forceinline__ static uint4 pack(T value) {
    const unsigned own = reinterpret_cast<const unsigned short&>(value);
    const unsigned other = __shfl_xor_sync(kFullMask, own, 4);
    uint4 out;
    out.x = own | other << 16;
    out.y = __shfl_xor_sync(kFullMask, out.x, 8);
    out.z = __shfl_xor_sync(kFullMask, out.x, 16);
    out.w = __shfl_xor_sync(kFullMask, out.y, 16);
    return out;
  }

  // Where a row has its message: worked out before the value is.
  __device__ __forceinline__ uint4* place(uint4* messages, int pass, int eighth) const {
    return opaque(messages + c.message_index(row_of(pass), eighth));
  }

  // state: where the values belong; null where the state is stored at the end.
  __device__ __forceinline__ void send(uint4* place, bool own, T value, T* state) const {
    const uint4 packed = pack(value);
    if (!own || c.g != 0) return;
    write_message(place, packed);
    if (kPasses && state != nullptr) *reinterpret_cast<uint4*>(state) = packed;
  }

  __device__ __forceinline__ static float next_hidden(float& cell, const float4& gate) {
    return quick_lstm(cell, gate.x, gate.y, gate.z, gate.w);
  }

  // What is known of a cell before the values of the stage before are.
  struct Cell {
    float value;
    float4 recurrent;
  };

  __device__ __forceinline__ Cell fetch_cell(int layer, int pass, bool own) const {
    Cell cell{};
    if (!own || p.layers == 0) return cell;
    cell.recurrent = c.recurrent_sums<kPasses>(layer, pass * RowTiles)[c.warp * kWarp + c.lane];
    cell.value = kPasses ? p.cell[state_index(layer, row_of(pass))] : held.cell[layer];
    return cell;
  }

  __device__ __forceinline__ void step_cell(int layer, int pass, Cell& cell, const float4& input) const {
    held.hidden[layer] = from_float<T>(next_hidden(cell.value, add(input, cell.recurrent)));
    if constexpr (kPasses) {
      p.cell[state_index(layer, row_of(pass))] = cell.value;
    } else {
      held.cell[layer] = cell.value;
    }
  }

  __device__ __forceinline__ void send_hidden(int layer, int pass, uint4* message, bool own) const {
    T* const state = p.layers > 0 ? static_cast<T*>(p.hidden) + state_index(layer, row_of(pass)) : nullptr;
    send(message, own, held.hidden[layer], state);
  }

  // The label of this thread's row; -1 = none.
  __device__ __forceinline__ int label_of(int round, int pass) const {
    const int row = row_of(pass);
    return row < c.batch ? c.labels(round)[row] : -1;
  }

  // Layer 0's input gates for a label.
  __device__ __forceinline__ uint4 fetch_gates(int label) const {
    const unsigned entry = label * p.width + c.unit;
    return prefetch_constant(p.gate_table + 4 * entry, label >= 0 && c.has_units && p.layers > 0);
  }

  __device__ __forceinline__ void first_of_pass(int pass, int label, const uint4& gates, Cell& cell,
                                                uint4* message) {
    const bool own = label >= 0;
    if (p.layers > 0) {
      if (own) {
        step_cell(0, pass, cell, as_floats(gates));
      }
    } else if (own) {
      held.hidden[0] = from_float<T>(embed<T>(c, row_of(pass), label, c.unit));
    }
    send_hidden(0, pass, message, own);
  }

  __device__ __forceinline__ void first_stage(int round, int label, uint4 gates, uint4* message) {
    Cell cell = fetch_cell(0, 0, label >= 0);
#pragma unroll 1
    for (int pass = 0; pass + 1 < passes(); ++pass) {
      const int next_label = label_of(round, pass + 1);
      const uint4 next_gates = fetch_gates(next_label);
      const Cell next_cell = fetch_cell(0, pass + 1, next_label >= 0);
      first_of_pass(pass, label, gates, cell, message);
      label = next_label, gates = next_gates, cell = next_cell;
      message = place(c.hidden_messages(0, round), pass + 1, c.block);
    }
    first_of_pass(passes() - 1, label, gates, cell, message);
    if (p.context_size > 1) {
      meet_main();
      shift_history(c, round);
    }
  }

  __device__ __forceinline__ void request(Values& values, int round, int stage, int pass) const {
    const uint4* messages = c.hidden_messages(stage, round) + pass * RowTiles * kWarp;
    values.request(c, messages, c.labelled_rows(round, pass), c.warp, kWarps, chunks);
  }

  __device__ __forceinline__ void second_stage(int round) {
    Values values;
    request(values, round, 0, 0);
#pragma unroll 1
    for (int pass = 0; pass < passes(); ++pass) {
      const bool own = label_of(round, pass) >= 0;
      uint4* const message = place(c.hidden_messages(1, round), pass, c.block);
      Cell cell = fetch_cell(1, pass, own);
      values.await();
      GateSums products = {};
      multiply_gates(values, products);
      if (pass + 1 < passes()) request(values, round, 0, pass + 1);
      if (pass > 0) meet_main();
      const float4 input = add_gates(products);
      if (own) step_cell(1, pass, cell, input);
      send_hidden(1, pass, message, own);
    }
    // The projection puts its sums where those of the gates are.
    if (c.has_outputs) meet_main();
  }

  __device__ __forceinline__ void project(int round) {
    Values values;
    request(values, round, c.stages() - 1, 0);
#pragma unroll 1
    for (int pass = 0; pass < passes(); ++pass) {
      const int row = row_of(pass);
      const bool own = label_of(round, pass) >= 0;
      uint4* const message =
          place(c.output_messages(own ? c.rows.labelled[row] : 0), pass, 2 * c.output_tile);
      values.await();
      OutputSums products = {};
      multiply_outputs(values, products);
      if (pass + 1 < passes()) request(values, round, c.stages() - 1, pass + 1);
      if (pass > 0) meet_main();
      const float2 value = add_outputs(products);
      if (own) {
        held.output[0] = from_float<T>(value.x);
        held.output[1] = from_float<T>(value.y);
      }
      // Even and odd eighths are neighbours.
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t index = static_cast<int64_t>(row) * p.greedy.joint.width + output_unit(i);
        send(message + i, own && has_output(i), held.output[i], static_cast<T*>(p.output) + index);
      }
    }
  }

  __device__ __forceinline__ uint4* first_message(int round) const {
    return place(c.hidden_messages(0, round), 0, c.block);
  }

  // Whether any row has a label in `round`.
  __device__ __forceinline__ bool is_any_labelled(int round) const {
    unsigned active = 0;
#pragma unroll 1
    for (int pass = 0; pass < passes(); ++pass) active |= c.labelled_rows(round, pass);
    return active != 0;
  }

  // A step for the rows with a label in `round`.
  __device__ __forceinline__ void step(int round, uint4* first_message) {
    const int label = label_of(round, 0);
    const uint4 gates = fetch_gates(label);
    const bool any = is_any_labelled(round);
    await_sums(round);
    if (!any) return;
    if (c.has_units) {
      first_stage(round, label, gates, first_message);
      if (p.layers > 1) second_stage(round);
    }
    if (c.has_outputs) project(round);
  }

  // The state of the rows that have got labels, where it is not stored yet.
  __device__ void store() const {
    const int row = row_of(0);
    if (kPasses || row >= c.batch || c.rows.labelled[row] == 0) return;
#pragma unroll
    for (int layer = 0; layer < kResidentLayers; ++layer) {
      if (!c.has_units || layer >= p.layers) continue;
      static_cast<T*>(p.hidden)[state_index(layer, row)] = held.hidden[layer];
      p.cell[state_index(layer, row)] = held.cell[layer];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t index = static_cast<int64_t>(row) * p.greedy.joint.width + output_unit(i);
      if (has_output(i)) static_cast<T*>(p.output)[index] = held.output[i];
    }
  }
};

}  // namespace rnnt_fastdecode::cuda
