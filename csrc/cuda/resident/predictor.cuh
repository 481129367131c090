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
  // What the critical path multiplies with stays in registers: layer 1's input gates and the projection.
  WeightFragment input_weights[kChunksPerWarp][2];  // gates i and f, gates g and o
  uint4 projection_weights[kChunksPerWarp];

  // The row of a pass whose unit this thread owns.
  __device__ int own_row(int pass) const {
    return kPassRows * pass + 8 * (c.warp / 2) + 2 * c.t + c.warp % 2;
  }

  __device__ int64_t state_index(int layer, int row, int first_unit) const {
    return (static_cast<int64_t>(layer) * p.state_rows + row) * p.width + first_unit;
  }

  // This lane's part of a row of a row-major matrix [*, width], for a product over a chunk of it.
  __device__ static uint4 load_fragment(const Context& c, const T* row, int width, bool exists, int chunk) {
    const int k = chunk * kChunk + c.t * kLaneElements;
    return exists && k < width ? *reinterpret_cast<const uint4*>(row + k) : uint4{0, 0, 0, 0};
  }

  // Two gates (half 0: i and f, half 1: g and o) of the block's units, from a column of [W_ih | W_hh].
  __device__ WeightFragment gate_fragment(int layer, int half, int column, bool exists, int chunk) const {
    const auto row = [&](int gate) {
      const int64_t index = static_cast<int64_t>(layer * kGates + gate) * p.width + c.unit;
      return static_cast<const T*>(p.weight) + index * 2 * p.width + column;
    };
    return interleave(load_fragment(c, row(2 * half), p.width, exists, chunk),
                      load_fragment(c, row(2 * half + 1), p.width, exists, chunk));
  }

  // Fragment i of an array in shared memory.
  __device__ static void store_fragment(const Context& c, int offset, int i, const WeightFragment& weights) {
    uint4* place = c.fragments(offset) + 2 * i * kWarp + c.lane;
    place[0] = weights.first;
    place[kWarp] = weights.second;
  }
  __device__ static WeightFragment fragment(const Context& c, int offset, int i) {
    const uint4* place = c.fragments(offset) + 2 * i * kWarp + c.lane;
    return {read_shared(place), read_shared(place + kWarp)};
  }

  __device__ void load_weights() {
    for (int i = c.warp; c.has_units && i < p.layers * chunks * 2; i += kWarps) {
      const int layer = i / (chunks * 2), chunk = i / 2 % chunks, half = i % 2;
      store_fragment(c, plan.recurrent_weights, i, gate_fragment(layer, half, p.width, true, chunk));
    }
    const bool two_layers = c.has_units && p.layers > 1;
#pragma unroll
    for (int i = 0; i < kChunksPerWarp; ++i) {
      const int chunk = c.warp + i * kWarps;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        input_weights[i][half] = gate_fragment(1, half, 0, two_layers, chunk);
      projection_weights[i] =
          load_fragment(c, static_cast<const T*>(p.projection) + static_cast<int64_t>(c.unit) * p.width,
                        p.width, c.has_outputs, chunk);
    }
    if (two_layers) {
      const float* bias = p.bias + kGates * p.width + c.unit;
      gate_bias = {bias[0], bias[p.width], bias[2 * p.width], bias[3 * p.width]};
    }
    if (c.has_outputs) output_bias = to_float(static_cast<const T*>(p.projection_bias)[c.unit]);
  }

  // Needs the weights.
  __device__ __forceinline__ void load_state() {
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
        recurrent[layer][pass] = recurrent_gates(layer, x);
      }
    }
  }

  // The block's four gates of 8 units: the depth is split over the warps, and each thread gets the sums of
  // the unit and row that it owns. load(i, half) is the weights' fragment of the warp's chunk i.
  template <typename Load>
  __device__ __forceinline__ float4 gates(Load load, const Fragments& x) const {
    float products[2][RowTiles][4] = {};
#pragma unroll
    for (int i = 0; i < kChunksPerWarp; ++i) {
      if (c.warp + i * kWarps >= chunks) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const WeightFragment weights = load(i, half);
#pragma unroll
        for (int n = 0; n < RowTiles; ++n) multiply_chunk<T>(products[half][n], weights, x[i][n]);
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
      for (int w = 0; w < kWarps; ++w) total = add(total, all[(w * 2 * RowTiles + c.warp) * kWarp + c.lane]);
    }
    __syncthreads();
    return total;
  }

  __device__ __forceinline__ float4 input_gates(const Fragments& x) const {
    return gates([this](int i, int half) { return input_weights[i][half]; }, x);
  }

  __device__ __forceinline__ float4 recurrent_gates(int layer, const Fragments& x) const {
    const int first = layer * chunks + c.warp;
    return gates(
        [=, this](int i, int half) {
          return fragment(c, plan.recurrent_weights, (first + i * kWarps) * 2 + half);
        },
        x);
  }

  // The block's 8 outputs of the projection, likewise.
  __device__ __forceinline__ float outputs(const Fragments& x) const {
    float products[RowTiles][4] = {};
#pragma unroll
    for (int i = 0; i < kChunksPerWarp; ++i) {
      if (c.warp + i * kWarps >= chunks) continue;
#pragma unroll
      for (int n = 0; n < RowTiles; ++n) {
        const uint4& w = projection_weights[i];
        multiply_16<T>(products[n], w.x, 0, w.y, 0, x[i][n].x, x[i][n].y);
        multiply_16<T>(products[n], w.z, 0, w.w, 0, x[i][n].z, x[i][n].w);
      }
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
  __device__ __forceinline__ void read_hidden(int stage, int round, int pass, unsigned active,
                                              Fragments& x) const {
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
  __device__ __forceinline__ static uint4 pack(float value) {
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

  __device__ __forceinline__ static float next_hidden(float& cell, const float4& gate) {
    cell = quick_sigmoid(gate.y) * cell + quick_sigmoid(gate.x) * quick_tanh(gate.z);
    return quick_sigmoid(gate.w) * quick_tanh(cell);
  }

  __device__ __forceinline__ static float4 add(const float4& a, const float4& b) {
    return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
  }

  // Sends the block's 8 values of a row, then keeps them for the caller.
  __device__ __forceinline__ void send_hidden(int stage, int round, int row, bool active, float value) const {
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

  __device__ __forceinline__ void first_stage(int round) {
    float4 input[Passes];
    int label[Passes];
#pragma unroll
    for (int pass = 0; pass < Passes; ++pass) {
      const int row = own_row(pass);
      label[pass] = row < c.batch ? c.labels(round)[row] : -1;
      if (p.layers > 0) {
        const int64_t entry = static_cast<int64_t>(max(label[pass], 0)) * p.width + c.unit;
        input[pass] = __ldg(reinterpret_cast<const float4*>(p.gate_table) + entry);
      }
    }
#pragma unroll
    for (int pass = 0; pass < Passes; ++pass) {
      const int row = own_row(pass);
      float value = 0.0f;
      if (label[pass] >= 0) {
        value = p.layers > 0 ? next_hidden(cell[0][pass], add(input[pass], recurrent[0][pass]))
                             : embed(row, label[pass]);
      }
      send_hidden(0, round, row, label[pass] >= 0, value);
      if (label[pass] >= 0 && p.layers > 0) p.cell[state_index(0, row, c.unit)] = cell[0][pass];
    }
    if (p.context_size > 1) shift_history(round);
  }

  __device__ __forceinline__ void second_stage(int round) {
#pragma unroll
    for (int pass = 0; pass < Passes; ++pass) {
      const unsigned active = pass * kPassRows < c.batch ? active_rows(round, pass) : 0;
      if (active == 0) continue;
      const int row = own_row(pass);
      const bool own = row < c.batch && c.labels(round)[row] >= 0;
      Fragments x;
      read_hidden(0, round, pass, active, x);
      const float4 input = input_gates(x);
      float value = 0.0f;
      if (own) value = next_hidden(cell[1][pass], add(add(input, recurrent[1][pass]), gate_bias));
      send_hidden(1, round, row, own, value);
      if (own) p.cell[state_index(1, row, c.unit)] = cell[1][pass];
      const float4 next = recurrent_gates(0, x);
      if (own) recurrent[0][pass] = next;
    }
  }

  __device__ __forceinline__ void project(int round) {
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
        const float4 next = recurrent_gates(stage, x);
        if (own && stage == 0) recurrent[0][pass] = next;
        if (own && stage == 1) recurrent[1][pass] = next;
      }
    }
  }

  // A step for the rows with a label in `round`.
  __device__ __forceinline__ void step(int round) {
    if (c.has_units) {
      first_stage(round);
      if (p.layers > 1) second_stage(round);
    }
    if (c.has_outputs || (c.has_units && p.layers > 0)) project(round);
  }
};

}  // namespace rnnt_fastdecode::cuda
