// The prediction network of the resident decoder. A thread owns one unit (8 in a block) of one row of every
// 32: cell and recurrent sums of it stay in its registers. Layer 0 needs no product once the label is known:
// its input gates are a table, its recurrent half was computed after the step before. Later layers and the
// projection wait for the values of the stage before, in messages of 8 units.
#pragma once

#include "../fragments.cuh"
#include "context.cuh"

namespace rnnt_fastdecode::cuda {

constexpr int kGates = 4;
constexpr int kPassRows = 32;  // rows that the threads of a block own at a time
constexpr int kChunksPerWarp = kResidentWidth / kChunk / kWarps;

// Passes of 32 rows; RowTiles tiles of 8 rows in each.
template <typename T, int Passes, int RowTiles>
struct Predictor {
  using Fragments = uint4[kChunksPerWarp][RowTiles];

  const Context& c;
  const ResidentProblem& p = c.p;
  const ResidentPlan& plan = c.plan;
  const int chunks = (p.width + kChunk - 1) / kChunk;
  float cell[kResidentLayers][Passes];
  float4 recurrent[kResidentLayers][Passes];
  float4 gate_bias;  // of layer 1
  float output_bias;

  // The row of a pass whose unit this thread owns.
  __device__ int own_row(int pass) const {
    return kPassRows * pass + 8 * (c.warp / 2) + 2 * c.t + c.warp % 2;
  }

  __device__ int64_t state_index(int layer, int row, int first_unit) const {
    return (static_cast<int64_t>(layer) * p.state_rows + row) * p.width + first_unit;
  }

  // A block's rows of a row-major matrix [*, width], as fragments.
  __device__ static void load_fragment(const Context& c, uint4* fragment, const T* row, int width,
                                       bool exists, int chunk) {
    const int k = chunk * kChunk + c.t * kLaneElements;
    fragment[c.lane] = exists && k < width ? *reinterpret_cast<const uint4*>(row + k) : uint4{0, 0, 0, 0};
  }

  __device__ void load_weights() {
    const int64_t width = p.width;
    if (c.has_units) {
      for (int i = c.warp; i < p.layers * chunks * kGates; i += kWarps) {
        const int layer = i / (chunks * kGates), chunk = i / kGates % chunks, gate = i % kGates;
        const T* row = static_cast<const T*>(p.weight) + ((layer * 4 + gate) * width + c.unit) * 2 * width;
        load_fragment(c, c.fragments(plan.recurrent_weights) + i * kWarp, row + width, p.width, true, chunk);
        if (layer > 0) {
          load_fragment(c, c.fragments(plan.input_weights) + (i - chunks * kGates) * kWarp, row, p.width,
                        true, chunk);
        }
      }
      if (p.layers > 1) {
        const float* bias = p.bias + 4 * width + c.unit;
        gate_bias = {bias[0], bias[width], bias[2 * width], bias[3 * width]};
      }
    }
    if (c.has_outputs) {
      for (int chunk = c.warp; chunk < chunks; chunk += kWarps) {
        load_fragment(c, c.fragments(plan.projection_weights) + chunk * kWarp,
                      static_cast<const T*>(p.projection) + c.unit * width, p.width, true, chunk);
      }
      output_bias = to_float(static_cast<const T*>(p.projection_bias)[c.unit]);
    }
  }

  // The messages of a row that this block writes.
  __device__ void empty_messages(int round, int row) const {
    for (int stage = 0; c.has_units && stage < c.stages(); ++stage) {
      write_message(c.hidden_message(stage, round, row, c.block), empty_message());
    }
    if (c.has_outputs) write_message(c.output_message(round, row, c.block), empty_message());
  }
  __device__ void prepare_messages(int row) const {
    for (int i = 0; i < kGenerations; ++i) empty_messages(i, row);
  }
  // What everybody has read.
  __device__ void empty_old(int round, int row) const {
    if (round >= 3 && c.labels(round - 3)[row] >= 0) empty_messages(round - 3, row);
  }

  // Needs the weights.
  __device__ void load_state() {
    if (!c.has_units) return;
#pragma unroll
    for (int layer = 0; layer < kResidentLayers; ++layer) {
#pragma unroll
      for (int pass = 0; pass < Passes; ++pass) {
        if (layer >= p.layers || pass * kPassRows >= c.batch) continue;
        const int row = own_row(pass);
        cell[layer][pass] = row < c.batch ? p.cell[state_index(layer, row, c.unit)] : 0.0f;
        Fragments x;
#pragma unroll
        for (int i = 0; i < kChunksPerWarp; ++i) {
#pragma unroll
          for (int n = 0; n < RowTiles; ++n) {
            const int source = pass * kPassRows + n * 8 + c.g;
            const int k = (c.warp + i * kWarps) * kChunk + c.t * kLaneElements;
            x[i][n] = prefetch_constant(static_cast<const T*>(p.hidden) + state_index(layer, source, k),
                                        source < c.batch && k < p.width);
          }
        }
        recurrent[layer][pass] = gates(recurrent_weights(layer), x);
      }
    }
  }

  __device__ const uint4* recurrent_weights(int layer) const {
    return c.fragments(plan.recurrent_weights) + layer * chunks * kGates * kWarp;
  }

  // The block's four gates of 8 units: the depth is split over the warps, and each thread gets the sums of
  // the unit and row that it owns.
  __device__ float4 gates(const uint4* weights, const Fragments& x) const {
    float products[2][RowTiles][4] = {};
#pragma unroll
    for (int i = 0; i < kChunksPerWarp; ++i) {
      const int chunk = c.warp + i * kWarps;
      if (chunk >= chunks) continue;
      const uint4* w = weights + chunk * kGates * kWarp + c.lane;
      const uint4 input = w[0], forget = w[kWarp], candidate = w[2 * kWarp], output = w[3 * kWarp];
#pragma unroll
      for (int n = 0; n < RowTiles; ++n) {
        multiply_chunk<T>(products[0][n], input, forget, x[i][n]);
        multiply_chunk<T>(products[1][n], candidate, output, x[i][n]);
      }
    }
    float4* all = c.sums();
#pragma unroll
    for (int n = 0; n < RowTiles; ++n) {
#pragma unroll
      for (int parity = 0; parity < 2; ++parity) {
        all[(c.warp * 2 * RowTiles + 2 * n + parity) * kWarp + c.lane] = {
            products[0][n][parity], products[0][n][2 + parity], products[1][n][parity],
            products[1][n][2 + parity]};
      }
    }
    __syncthreads();
    float4 total{0.0f, 0.0f, 0.0f, 0.0f};
    if (c.warp < 2 * RowTiles) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float4 part = all[(w * 2 * RowTiles + c.warp) * kWarp + c.lane];
        total = {total.x + part.x, total.y + part.y, total.z + part.z, total.w + part.w};
      }
    }
    __syncthreads();
    return total;
  }

  // The block's 8 outputs of the projection, likewise.
  __device__ float outputs(const Fragments& x) const {
    const uint4 none{0, 0, 0, 0};
    float products[RowTiles][4] = {};
#pragma unroll
    for (int i = 0; i < kChunksPerWarp; ++i) {
      const int chunk = c.warp + i * kWarps;
      if (chunk >= chunks) continue;
      const uint4 w = c.fragments(plan.projection_weights)[chunk * kWarp + c.lane];
#pragma unroll
      for (int n = 0; n < RowTiles; ++n) multiply_chunk<T>(products[n], w, none, x[i][n]);
    }
    float* all = reinterpret_cast<float*>(c.sums());
#pragma unroll
    for (int n = 0; n < RowTiles; ++n) {
      all[(c.warp * 2 * RowTiles + 2 * n) * kWarp + c.lane] = products[n][0];
      all[(c.warp * 2 * RowTiles + 2 * n + 1) * kWarp + c.lane] = products[n][1];
    }
    __syncthreads();
    float total = output_bias;
    if (c.warp < 2 * RowTiles) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += all[(w * 2 * RowTiles + c.warp) * kWarp + c.lane];
    }
    __syncthreads();
    return total;
  }

  // The hidden values of a stage for the active rows of a pass; waits for them.
  __device__ void read_hidden(int stage, int round, int pass, unsigned active, Fragments& x) const {
    const uint4* first = c.hidden_message(stage, round, pass * kPassRows + c.g, c.warp * 4 + c.t);
    const int limit = plan.unit_blocks - (c.warp * 4 + c.t);
#pragma unroll
    for (int i = 0; i < kChunksPerWarp; ++i) {
#pragma unroll
      for (int n = 0; n < RowTiles; ++n) {
        const bool wanted = (active >> (8 * n + c.g) & 1) != 0 && i * 4 * kWarps < limit;
        x[i][n] = wanted ? empty_message() : uint4{0, 0, 0, 0};
      }
    }
    unsigned missing;
    int polls = 0;
    do {
      if (polls++ == kPatience) __trap();
#pragma unroll
      for (int i = 0; i < kChunksPerWarp; ++i) {
#pragma unroll
        for (int n = 0; n < RowTiles; ++n) {
          read_if_empty(x[i][n], first + n * 8 * plan.unit_blocks + i * 4 * kWarps);
        }
      }
      missing = 0;
#pragma unroll
      for (int i = 0; i < kChunksPerWarp; ++i) {
#pragma unroll
        for (int n = 0; n < RowTiles; ++n) missing |= x[i][n].x == kEmpty;
      }
    } while (__any_sync(kFullMask, missing != 0));
  }

  // The value of every unit of a row, gathered from 8 lanes; right in the lanes with g = 0.
  __device__ static uint4 pack(float value) {
    const T rounded = from_float<T>(value);
    const unsigned own = reinterpret_cast<const unsigned short&>(rounded);
    const unsigned other = __shfl_xor_sync(kFullMask, own, 4);
    uint4 out;
    out.x = own | other << 16;
    out.y = __shfl_xor_sync(kFullMask, out.x, 8);
    out.z = __shfl_xor_sync(kFullMask, out.x, 16);
    out.w = __shfl_xor_sync(kFullMask, out.y, 16);
    return out;
  }

  __device__ static float next_hidden(float& cell, const float4& gate) {
    cell = quick_sigmoid(gate.y) * cell + quick_sigmoid(gate.x) * quick_tanh(gate.z);
    return quick_sigmoid(gate.w) * quick_tanh(cell);
  }

  __device__ static float4 add(const float4& a, const float4& b) {
    return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
  }

  // Sends the block's 8 values of a row, then keeps them for the caller.
  __device__ void send_hidden(int stage, int round, int row, bool active, float value) const {
    const uint4 packed = pack(value);
    if (active && c.g == 0) {
      write_message(c.hidden_message(stage, round, row, c.block), packed);
      if (p.layers > 0) {
        *reinterpret_cast<uint4*>(static_cast<T*>(p.hidden) + state_index(stage, row, c.block * 8)) = packed;
      }
    }
  }

  __device__ unsigned active_rows(int round, int pass) const {
    const int row = pass * kPassRows + c.lane;
    return __ballot_sync(kFullMask, row < c.batch && c.labels(round)[row] >= 0);
  }

  // Sum of the context's embeddings of this thread's unit, most recent label first.
  __device__ float embed(int row, int label) const {
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
    __syncthreads();
    for (int row = threadIdx.x; row < c.batch; row += kThreads) {
      const int label = c.labels(round)[row];
      if (label < 0) continue;
      for (int i = p.context_size - 2; i > 0; --i) c.rows.history[i][row] = c.rows.history[i - 1][row];
      c.rows.history[0][row] = label;
    }
  }

  __device__ void first_stage(int round) {
#pragma unroll
    for (int pass = 0; pass < Passes; ++pass) {
      if (pass * kPassRows >= c.batch) continue;
      const int row = own_row(pass);
      const int label = row < c.batch ? c.labels(round)[row] : -1;
      float value = 0.0f;
      if (label >= 0) {
        if (p.layers > 0) {
          const int64_t entry = static_cast<int64_t>(label) * p.width + c.unit;
          const float4 input = __ldg(reinterpret_cast<const float4*>(p.gate_table) + entry);
          value = next_hidden(cell[0][pass], add(input, recurrent[0][pass]));
        } else {
          value = embed(row, label);
        }
      }
      send_hidden(0, round, row, label >= 0, value);
      if (label >= 0 && p.layers > 0) p.cell[state_index(0, row, c.unit)] = cell[0][pass];
    }
    if (p.context_size > 1) shift_history(round);
  }

  __device__ void second_stage(int round) {
#pragma unroll
    for (int pass = 0; pass < Passes; ++pass) {
      const unsigned active = pass * kPassRows < c.batch ? active_rows(round, pass) : 0;
      if (active == 0) continue;
      const int row = own_row(pass);
      const bool own = row < c.batch && c.labels(round)[row] >= 0;
      Fragments x;
      read_hidden(0, round, pass, active, x);
      const float4 input = gates(c.fragments(plan.input_weights), x);
      float value = 0.0f;
      if (own) value = next_hidden(cell[1][pass], add(add(input, recurrent[1][pass]), gate_bias));
      send_hidden(1, round, row, own, value);
      if (own) p.cell[state_index(1, row, c.unit)] = cell[1][pass];
      const float4 next = gates(recurrent_weights(0), x);
      if (own) recurrent[0][pass] = next;
    }
  }

  __device__ void project(int round) {
    const int stage = c.stages() - 1;
#pragma unroll
    for (int pass = 0; pass < Passes; ++pass) {
      const unsigned active = pass * kPassRows < c.batch ? active_rows(round, pass) : 0;
      if (active == 0) continue;
      const int row = own_row(pass);
      const bool own = row < c.batch && c.labels(round)[row] >= 0;
      Fragments x;
      read_hidden(stage, round, pass, active, x);
      if (c.has_outputs) {
        const uint4 packed = pack(outputs(x));
        if (own && c.g == 0) {
          write_message(c.output_message(round, row, c.block), packed);
          const int64_t index = static_cast<int64_t>(row) * p.greedy.joint.width + c.block * 8;
          *reinterpret_cast<uint4*>(static_cast<T*>(p.output) + index) = packed;
        }
      }
      if (c.has_units && p.layers > 0) {
        const float4 next = gates(recurrent_weights(stage), x);
        if (own && stage == 0) recurrent[0][pass] = next;
        if (own && stage == 1) recurrent[1][pass] = next;
      }
    }
  }

  // A step for the rows with a label in `round`.
  __device__ void step(int round) {
    if (c.has_units) {
      first_stage(round);
      if (p.layers > 1) second_stage(round);
    }
    if (c.has_outputs || (c.has_units && p.layers > 0)) project(round);
  }
};

}  // namespace rnnt_fastdecode::cuda
