// What the side crew does of the prediction network: the recurrent halves of the gates, as soon as the hidden
// values of a step are there, for the step that follows; and the messages of old steps, emptied.
#pragma once

#include "crew.cuh"
#include "operands.cuh"

namespace rnnt_fastdecode::cuda {

// Of a block's recurrent weights two gates: see gate_weights.
__device__ inline WeightFragment recurrent_weights(const Context& c, int layer, int chunk, int half) {
  return kept_weights(c, c.plan.recurrent_weights, (layer * recurrent_chunks(c) + chunk) * 2 + half);
}

// The four gates of a lane's unit and of row 2 t + parity of a tile.
__device__ inline float4 gates_of(const float (&products)[2][4], int parity) {
  return {products[0][parity], products[0][2 + parity], products[1][parity], products[1][2 + parity]};
}

// Few rows: the warps share the depth of a product over one tile of 8 rows.
template <typename T>
struct AheadOfFew {
  static constexpr int kChunks = kResidentWidth / kChunk / kSideWarps;
  using Values = Operand<kChunks, 1>;

  const Context& c;
  const int warp = c.warp - kWarps;
  const int chunks = (c.p.width + kChunk - 1) / kChunk;

  // Of a layer: what was added up last may still be read.
  __device__ float4* sums(int layer) const {
    return reinterpret_cast<float4*>(c.at(c.plan.side_sums)) + layer * 2 * kSideWarps * kWarp;
  }

  __device__ __forceinline__ void multiply(int layer, const Values& values, float (&products)[2][4]) const {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int chunk = warp + i * kSideWarps;
      if (chunk >= chunks) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        multiply_chunk<T>(products[half], recurrent_weights(c, layer, chunk, half), values.x[i][0]);
      }
    }
  }

  // For the rows in `active`: warps 0 and 1 add up what all have.
  __device__ __forceinline__ void add_up(int layer, unsigned active, const float (&products)[2][4]) const {
    float4* all = sums(layer);
#pragma unroll
    for (int parity = 0; parity < 2; ++parity) {
      all[(parity * kSideWarps + warp) * kWarp + c.lane] = gates_of(products, parity);
    }
    meet_side();
    if (warp < 2 && (active >> (2 * c.t + warp) & 1) != 0) {
      float4 total{0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
      for (int w = 0; w < kSideWarps; ++w) total = add(total, all[(warp * kSideWarps + w) * kWarp + c.lane]);
      c.recurrent_sums<false>(layer, 0)[warp * kWarp + c.lane] = total;
    }
  }

  __device__ void load(int layer, const T* hidden) const {
    Values values;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      values.x[i][0] =
          load_operand(c, hidden + c.g * c.p.width, c.p.width, c.g < c.batch, warp + i * kSideWarps);
    }
    float products[2][4] = {};
    multiply(layer, values, products);
    add_up(layer, 0xff, products);
  }

  __device__ __forceinline__ void renew(int layer, int round) const {
    const unsigned active = c.labelled_rows(round, 0);
    Values values;
    values.request(c, c.hidden_messages(layer, round), active, warp, kSideWarps, chunks);
    if (active == 0) return;
    values.template await<true>();
    float products[2][4] = {};
    multiply(layer, values, products);
    add_up(layer, active, products);
  }
};

// Many rows: each warp has tiles of 8 rows of its own.
template <typename T, bool kPasses>
struct AheadOfMany {
  using Values = Operand<kPartChunks, 1>;
  using Sums = float[2][2][4];  // two chains

  const Context& c;
  const int warp = c.warp - kWarps;
  const int chunks = (c.p.width + kChunk - 1) / kChunk;

  __device__ __forceinline__ void multiply(int layer, int chunk, const uint4& x, Sums& products) const {
    const WeightFragment first = recurrent_weights(c, layer, chunk, 0),
                         second = recurrent_weights(c, layer, chunk, 1);
    multiply_chunk<T>(products[0][0], products[1][0], first, x);
    multiply_chunk<T>(products[0][1], products[1][1], second, x);
  }

  __device__ __forceinline__ void keep(int layer, int tile, unsigned active, const Sums& products) const {
    float total[2][4];
#pragma unroll
    for (int i = 0; i < 8; ++i) total[i / 4][i % 4] = products[0][i / 4][i % 4] + products[1][i / 4][i % 4];
#pragma unroll
    for (int parity = 0; parity < 2; ++parity) {
      if ((active >> (2 * c.t + parity) & 1) == 0) continue;
      c.recurrent_sums<kPasses>(layer, tile)[parity * kWarp + c.lane] = gates_of(total, parity);
    }
  }

  __device__ void load(int layer, const T* hidden) const {
    for (int tile = warp; tile < c.row_tiles(); tile += kSideWarps) {
      const int row = tile * 8 + c.g;
      const T* const values = hidden + static_cast<int64_t>(row) * c.p.width;
      Sums products = {};
#pragma unroll 1
      for (int chunk = 0; chunk < chunks; ++chunk) {
        multiply(layer, chunk, load_operand(c, values, c.p.width, row < c.batch, chunk), products);
      }
      keep(layer, tile, 0xff, products);
    }
  }

  __device__ __forceinline__ void request(Values& values, const uint4* messages, unsigned active,
                                          int first) const {
    values.request(c, messages, active, first, 1, chunks);
  }

  __device__ __forceinline__ void multiply_part(int layer, int first, Values& values, Sums& products) const {
    values.template await<true>();
#pragma unroll
    for (int i = 0; i < kPartChunks; ++i) multiply(layer, first + i, values.x[i][0], products);
  }

  __device__ __forceinline__ void renew(int layer, int round) const {
#pragma unroll 1
    for (int tile = warp; tile < c.row_tiles(); tile += kSideWarps) {
      const unsigned active = c.labelled_rows(round, tile / kSideWarps) >> (8 * warp) & 0xff;
      if (active == 0) continue;
      const uint4* const messages = c.hidden_messages(layer, round) + tile * kWarp;
      // Two parts of the depth in turn: one is on its way while the other is multiplied.
      Values even, odd;
      Sums products = {};
      request(even, messages, active, 0);
#pragma unroll 1
      for (int first = 0; first < chunks; first += 2 * kPartChunks) {
        request(odd, messages, active, first + kPartChunks);
        multiply_part(layer, first, even, products);
        request(even, messages, active, first + 2 * kPartChunks);
        if (first + kPartChunks < chunks) multiply_part(layer, first + kPartChunks, odd, products);
      }
      keep(layer, tile, active, products);
    }
  }
};
static_assert(kSideWarps * 8 == kPassRows);

// By: of few or of many.
template <typename T, typename By, int kMostPasses>
struct Ahead {
  const Context& c;
  const ResidentProblem& p = c.p;
  const ResidentPlan& plan = c.plan;
  const int warp = c.warp - kWarps;

  // From the state that the launch begins with.
  __device__ void load(int layer) const {
    if (!c.has_units || layer >= p.layers) return;
    const int64_t first = static_cast<int64_t>(layer) * p.state_rows * p.width;
    By{c}.load(layer, static_cast<const T*>(p.hidden) + first);
  }

  // After the step of `round`.
  __device__ __forceinline__ void renew(int layer, int round) const {
    if (c.has_units && layer < p.layers) By{c}.renew(layer, round);
  }

  // --- messages -------------------------------------------------------------------------------------------

  // Of a row all that this block writes: empty, but for the outputs that the state begins with.
  __device__ void prepare(int row) const {
    for (int i = 0; i < kGenerations; ++i) empty_hidden(i, row);
    for (int eighth = c.first_eighth(); eighth < c.last_eighth(); ++eighth) {
      const int64_t index = static_cast<int64_t>(row) * p.greedy.joint.width + eighth * kLaneElements;
      uint4 output = *reinterpret_cast<const uint4*>(static_cast<const T*>(p.output) + index);
      // A caller's NaN must not look like a message that is still to come.
      if (output.x == kEmpty) output.x = 0x7fff7fffu;
      write_message(c.output_messages(0) + c.message_index(row, eighth), output);
    }
    for (int i = 1; i < kGenerations; ++i) empty_output(i, row);
    if (c.block == 0) fill_chunks(row);
  }

  // The last chunks end with zeros that nobody sends.
  __device__ void fill_chunks(int row) const {
    const uint4 zero{0, 0, 0, 0};
    for (int i = 0; i < kGenerations; ++i) {
      for (int eighth = p.width / kLaneElements; eighth % 4 != 0; ++eighth) {
        for (int stage = 0; stage < c.stages(); ++stage) {
          write_message(c.hidden_messages(stage, i) + c.message_index(row, eighth), zero);
        }
      }
      for (int eighth = p.greedy.joint.width / kLaneElements; eighth % 4 != 0; ++eighth) {
        write_message(c.output_messages(i) + c.message_index(row, eighth), zero);
      }
    }
  }

  __device__ void empty_hidden(int round, int row) const {
    for (int stage = 0; c.has_units && stage < c.stages(); ++stage) {
      write_message(c.hidden_messages(stage, round) + c.message_index(row, c.block), empty_message());
    }
  }

  __device__ void empty_output(int after, int row) const {
    for (int eighth = c.first_eighth(); eighth < c.last_eighth(); ++eighth) {
      write_message(c.output_messages(after) + c.message_index(row, eighth), empty_message());
    }
  }

  // What everybody has read: see half_rounds.cuh.
  // labels: so far, of the rows that are this lane's.
  __device__ void empty_old(int round, int (&labels)[kMostPasses]) const {
#pragma unroll
    for (int pass = 0; pass < kMostPasses; ++pass) {
      const int row = pass * kPassRows + c.lane;
      if (row >= c.batch) return;
      if (warp == 0 && round >= 3 && c.labels(round - 3)[row] >= 0) empty_hidden(round - 3, row);
      if (warp == 1 && round >= 1 && c.labels(round - 1)[row] >= 0) empty_output(++labels[pass] + 2, row);
    }
  }
};

}  // namespace rnnt_fastdecode::cuda
