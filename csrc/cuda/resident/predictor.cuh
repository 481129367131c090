// The prediction network of the resident decoder. A thread owns one unit (8 in a block) of one row: cell and
// recurrent sums of it stay in its registers. Layer 0 needs no product once the label is known:
// its input gates are a table, its recurrent half was computed after the step before. Later layers and the
// projection wait for the values of the stage before, in messages of 8 units.
#pragma once

#include "../fragments.cuh"
#include "context.cuh"

namespace rnnt_fastdecode::cuda {

constexpr int kGates = 4;
constexpr int kChunksPerWarp = kResidentWidth / kChunk / kWarps;

// RowTiles tiles of 8 rows.
template <typename T, int RowTiles>
struct Predictor {
  using Fragments = uint4[kChunksPerWarp][RowTiles];

  const Context& c;
  const ResidentProblem& p = c.p;
  const ResidentPlan& plan = c.plan;
  const int chunks = (p.width + kChunk - 1) / kChunk;
  // The row whose unit this thread owns.
  const int row = 8 * (c.warp / 2) + 2 * c.t + c.warp % 2;
  float cell[kResidentLayers];
  float4 recurrent[kResidentLayers];
  float4 gate_bias;  // of layer 1
  float output_bias;
  // Layer 1's input gates stay in registers: of i and f, of g and o.
  WeightFragment input_weights[kChunksPerWarp][2];

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
    }
    if (two_layers) {
      const float* bias = p.bias + kGates * p.width + c.unit;
      gate_bias = {bias[0], bias[p.width], bias[2 * p.width], bias[3 * p.width]};
    }
    if (!c.has_outputs) return;
    for (int chunk = c.warp; chunk < chunks; chunk += kWarps) {
      const T* row = static_cast<const T*>(p.projection) + static_cast<int64_t>(c.unit) * p.width;
      c.fragments(plan.projection_weights)[chunk * kWarp + c.lane] =
          load_fragment(c, row, p.width, true, chunk);
    }
    output_bias = to_float(static_cast<const T*>(p.projection_bias)[c.unit]);
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
  __device__ __forceinline__ void load_state() {
    if (!c.has_units) return;
#pragma unroll
    for (int layer = 0; layer < kResidentLayers; ++layer) {
      if (layer >= p.layers) continue;
      cell[layer] = row < c.batch ? p.cell[state_index(layer, row, c.unit)] : 0.0f;
      Fragments x;
#pragma unroll
      for (int i = 0; i < kChunksPerWarp; ++i) {
#pragma unroll
        for (int n = 0; n < RowTiles; ++n) {
          const int source = n * 8 + c.g;
          const int k = (c.warp + i * kWarps) * kChunk + c.t * kLaneElements;
          x[i][n] = prefetch_constant(static_cast<const T*>(p.hidden) + state_index(layer, source, k),
                                      source < c.batch && k < p.width);
        }
      }
      recurrent[layer] = recurrent_gates(layer, x);
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
      const int chunk = c.warp + i * kWarps;
      if (chunk >= chunks) continue;
      const uint4 w = read_shared(c.fragments(plan.projection_weights) + chunk * kWarp + c.lane);
#pragma unroll
      for (int n = 0; n < RowTiles; ++n) {
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

  // The hidden values of a stage for the active rows; waits for them.
  __device__ __forceinline__ void read_hidden(int stage, int round, unsigned active, Fragments& x) const {
    const uint4* first = c.hidden_message(stage, round, c.g, c.warp * 4 + c.t);
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

  // Sends the block's 8 values of the row, then keeps them for the caller.
  __device__ __forceinline__ void send_hidden(int stage, int round, bool active, float value) const {
    const uint4 packed = pack(value);
    if (active && c.g == 0) {
      write_message(c.hidden_message(stage, round, row, c.block), packed);
      if (p.layers > 0) {
        *reinterpret_cast<uint4*>(static_cast<T*>(p.hidden) + state_index(stage, row, c.block * 8)) = packed;
      }
    }
    if (active && p.layers > 0) p.cell[state_index(stage, row, c.unit)] = stage == 0 ? cell[0] : cell[1];
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
    __syncthreads();
    for (int row = threadIdx.x; row < c.batch; row += kThreads) {
      const int label = c.labels(round)[row];
      if (label < 0) continue;
      for (int i = p.context_size - 2; i > 0; --i) c.rows.history[i][row] = c.rows.history[i - 1][row];
      c.rows.history[0][row] = label;
    }
  }

  __device__ __forceinline__ void first_stage(int round, bool own) {
    const int label = own ? c.labels(round)[row] : 0;
    float value = 0.0f;
    if (p.layers > 0) {
      const int64_t entry = static_cast<int64_t>(label) * p.width + c.unit;
      const float4 input = __ldg(reinterpret_cast<const float4*>(p.gate_table) + entry);
      if (own) value = next_hidden(cell[0], add(input, recurrent[0]));
    } else if (own) {
      value = embed(label);
    }
    send_hidden(0, round, own, value);
    if (p.context_size > 1) shift_history(round);
  }

  __device__ __forceinline__ void second_stage(int round, unsigned active, bool own) {
    Fragments x;
    read_hidden(0, round, active, x);
    const float4 input = input_gates(x);
    float value = 0.0f;
    if (own) value = next_hidden(cell[1], add(add(input, recurrent[1]), gate_bias));
    send_hidden(1, round, own, value);
    const float4 next = recurrent_gates(0, x);
    if (own) recurrent[0] = next;
  }

  __device__ __forceinline__ void project(int round, unsigned active, bool own) {
    const int stage = c.stages() - 1;
    Fragments x;
    read_hidden(stage, round, active, x);
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
      if (own && stage == 0) recurrent[0] = next;
      if (own && stage == 1) recurrent[1] = next;
    }
  }

  // A step for the rows with a label in `round`. `meanwhile` is called while the first values travel.
  template <typename Meanwhile>
  __device__ __forceinline__ void step(int round, Meanwhile meanwhile) {
    const int* labels = c.labels(round);
    const unsigned active = __ballot_sync(kFullMask, c.lane < c.batch && labels[c.lane] >= 0);
    const bool own = (active >> row & 1) != 0;
    if (c.has_units && active != 0) first_stage(round, own);
    meanwhile();
    if (active == 0) return;
    if (c.has_units && p.layers > 1) second_stage(round, active, own);
    if (c.has_outputs || (c.has_units && p.layers > 0)) project(round, active, own);
  }
};

}  // namespace rnnt_fastdecode::cuda
