// The prediction network of the resident decoder, as the main crew works it out. A thread owns one unit (8 in
// a block) of one row, whose cells stay in its registers. Layer 0 needs no product once the label is known:
// its input gates are a table, its recurrent half was computed after the step before (ahead.cuh). Later
// layers and the projection, which other blocks work out where there are enough, wait for the values of the
// stage before, in messages of 8 units.
#pragma once

#include "crew.cuh"
#include "operands.cuh"

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

// RowTiles tiles of 8 rows.
template <typename T, int RowTiles>
struct Predictor {
  using Values = Operand<kChunksPerWarp, RowTiles>;

  const Context& c;
  Held<T>& held;
  const ResidentProblem& p = c.p;
  const ResidentPlan& plan = c.plan;
  const int chunks = (p.width + kChunk - 1) / kChunk;
  // The row whose unit this thread owns.
  const int row = 8 * (c.warp / 2) + 2 * c.t + c.warp % 2;

  __device__ int64_t state_index(int layer) const {
    return (static_cast<int64_t>(layer) * p.state_rows + row) * p.width + c.unit;
  }
  // Of the two outputs that this thread owns of its row.
  __device__ int output_unit(int i) const { return 16 * c.output_tile + 8 * i + c.g; }
  __device__ bool has_output(int i) const { return c.has_outputs && output_unit(i) < p.greedy.joint.width; }

  __device__ void load() {
    for (int i = c.warp; c.has_units && i < p.layers * chunks * 2; i += kWarps) {
      const int layer = i / (chunks * 2), chunk = i / 2 % chunks, half = i % 2;
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
      const bool exists = c.has_units && layer < p.layers && row < c.batch;
      held.cell[layer] = exists ? p.cell[state_index(layer)] : 0.0f;
    }
  }

  // The block's four gates of 8 units: the depth is split over the warps, and each thread gets the sums of
  // the unit and row that it owns.
  __device__ __forceinline__ float4 input_gates(const Values& values) const {
    float products[2][RowTiles][4] = {};
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
    float4* all = c.sums();
    float4 total = held.gate_bias;
#pragma unroll
    for (int job = 0; job < 2 * RowTiles; ++job) {
      const float (&even)[4] = products[0][job / 2];
      const float (&odd)[4] = products[1][job / 2];
      const int parity = job % 2;
      const float4 part{even[parity], even[2 + parity], odd[parity], odd[2 + parity]};
      if (job == c.warp) {
        total = add(total, part);
      } else {
        all[other_part<kWarps>(job, c.warp) * kWarp + c.lane] = part;
      }
    }
    meet_main();
    if (c.warp < 2 * RowTiles) {
#pragma unroll
      for (int w = 0; w < kWarps - 1; ++w)
        total = add(total, all[(c.warp * (kWarps - 1) + w) * kWarp + c.lane]);
    }
    return total;
  }

  // The block's 16 outputs of the projection, likewise.
  __device__ __forceinline__ float2 outputs(const Values& values) const {
    float products[RowTiles][4] = {};
#pragma unroll
    for (int i = 0; i < kChunksPerWarp; ++i) {
      const int chunk = c.warp + i * kWarps;
      if (chunk >= chunks) continue;
      const WeightFragment weights = kept_weights(c, plan.projection_weights, chunk);
#pragma unroll
      for (int n = 0; n < RowTiles; ++n) multiply_chunk<T>(products[n], weights, values.x[i][n]);
    }
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

  // Where this thread's row has its message: worked out before the value is.
  __device__ __forceinline__ uint4* place(uint4* messages, int eighth) const {
    return opaque(messages + c.message_index(row, eighth));
  }

  __device__ __forceinline__ void send(uint4* place, bool own, T value) const {
    const uint4 packed = pack(value);
    if (own && c.g == 0) write_message(place, packed);
  }

  __device__ __forceinline__ static float next_hidden(float& cell, const float4& gate) {
    return quick_lstm(cell, gate.x, gate.y, gate.z, gate.w);
  }

  __device__ __forceinline__ float4 recurrent(int layer) const {
    return c.recurrent_sums(layer)[c.warp * kWarp + c.lane];
  }

  // Sum of the context's embeddings of this thread's unit, most recent label first.
  __device__ float embed(int label) const {
    float sum = 0.0f;
    for (int i = 0; i < p.context_size; ++i) {
      const int past = i == 0 ? label : c.rows.history[i - 1][row];
      const int tokens = p.greedy.joint.num_tokens;
      const bool known = past >= 0 && past < tokens;
      const int64_t index = (static_cast<int64_t>(i) * tokens + past) * p.width + c.unit;
      sum += known ? to_float(static_cast<const T*>(p.tables)[index]) : NAN;
    }
    const float rounded = to_float(from_float<T>(sum));
    return p.relu ? activate(rounded, Activation::kRelu) : rounded;
  }

  __device__ void shift_history(int round) {
    meet_main();
    for (int row = threadIdx.x; row < c.batch; row += kThreads) {
      const int label = c.labels(round)[row];
      if (label < 0) continue;
      for (int i = p.context_size - 2; i > 0; --i) c.rows.history[i][row] = c.rows.history[i - 1][row];
      c.rows.history[0][row] = label;
    }
  }

  __device__ __forceinline__ void first_stage(int round, bool own, uint4* message) {
    const int label = own ? c.labels(round)[row] : 0;
    if (p.layers > 0) {
      if (own) {
        const unsigned entry = label * p.width + c.unit;
        const float4 input = __ldg(reinterpret_cast<const float4*>(p.gate_table) + entry);
        held.hidden[0] = from_float<T>(next_hidden(held.cell[0], add(input, recurrent(0))));
      }
    } else if (own) {
      held.hidden[0] = from_float<T>(embed(label));
    }
    send(message, own, held.hidden[0]);
    if (p.context_size > 1) shift_history(round);
  }

  __device__ __forceinline__ void second_stage(int round, unsigned active, bool own) {
    Values values;
    values.request(c, c.hidden_messages(0, round), active, c.warp, kWarps, plan.unit_blocks);
    uint4* const message = place(c.hidden_messages(1, round), c.block);
    values.await();
    const float4 input = input_gates(values);
    if (own) held.hidden[1] = from_float<T>(next_hidden(held.cell[1], add(input, recurrent(1))));
    send(message, own, held.hidden[1]);
    // The projection puts its sums where those of the gates are.
    if (c.has_outputs) meet_main();
  }

  __device__ __forceinline__ void project(int round, unsigned active, bool own) {
    Values values;
    values.request(c, c.hidden_messages(c.stages() - 1, round), active, c.warp, kWarps, plan.unit_blocks);
    uint4* const message = place(c.output_messages(own ? c.rows.labelled[row] : 0), 2 * c.output_tile);
    values.await();
    const float2 value = outputs(values);
    if (own) {
      held.output[0] = from_float<T>(value.x);
      held.output[1] = from_float<T>(value.y);
    }
    // Even and odd eighths are neighbours.
#pragma unroll
    for (int i = 0; i < 2; ++i) send(message + i, own && has_output(i), held.output[i]);
  }

  __device__ __forceinline__ uint4* first_message(int round) const {
    return place(c.hidden_messages(0, round), c.block);
  }

  // A step for the rows with a label in `round`.
  __device__ __forceinline__ void step(int round, uint4* first_message) {
    const unsigned active = c.labelled_rows(round);
    const bool own = (active >> row & 1) != 0;
    await_sums(round);
    if (active == 0) return;
    if (c.has_units) {
      first_stage(round, own, first_message);
      if (p.layers > 1) second_stage(round, active, own);
    }
    if (c.has_outputs) project(round, active, own);
  }

  // The state of the rows that have got labels.
  __device__ void store() const {
    if (row >= c.batch || c.rows.labelled[row] == 0) return;
#pragma unroll
    for (int layer = 0; layer < kResidentLayers; ++layer) {
      if (!c.has_units || layer >= p.layers) continue;
      static_cast<T*>(p.hidden)[state_index(layer)] = held.hidden[layer];
      p.cell[state_index(layer)] = held.cell[layer];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t index = static_cast<int64_t>(row) * p.greedy.joint.width + output_unit(i);
      if (has_output(i)) static_cast<T*>(p.output)[index] = held.output[i];
    }
  }
};

}  // namespace rnnt_fastdecode::cuda
