// What the side crew does of the prediction network: the recurrent halves of the gates, as soon as the hidden
// values of a step are there, for the step that follows; and the messages of old steps, emptied.
#pragma once

#include "crew.cuh"
#include "operands.cuh"

namespace rnnt_fastdecode::cuda {

// For a tile of 8 rows at a time.
template <typename T>
struct Ahead {
  static constexpr int kChunks = kResidentWidth / kChunk / kSideWarps;
  using Values = Operand<kChunks, 1>;

  const Context& c;
  const ResidentProblem& p = c.p;
  const ResidentPlan& plan = c.plan;
  const int warp = c.warp - kWarps;
  const int chunks = (p.width + kChunk - 1) / kChunk;
  int turn = 0;

  // In turn: what was added up last may still be read.
  __device__ float4* sums() const {
    return reinterpret_cast<float4*>(c.shared + plan.side_sums) + turn * 2 * (kSideWarps - 1) * kWarp;
  }

  __device__ __forceinline__ void multiply(int layer, const Values& values, float (&products)[2][4]) const {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int chunk = warp + i * kSideWarps;
      if (chunk >= chunks) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        multiply_chunk<T>(products[half],
                          kept_weights(c, plan.recurrent_weights, (layer * chunks + chunk) * 2 + half),
                          values.x[i][0]);
      }
    }
  }

  // For the rows of the tile that are in `active`: warps 0 and 1 add up what all have.
  __device__ __forceinline__ void add_up(int layer, int tile, unsigned active,
                                         const float (&products)[2][4]) {
    float4 total{0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int parity = 0; parity < 2; ++parity) {
      const float4 part{products[0][parity], products[0][2 + parity], products[1][parity],
                        products[1][2 + parity]};
      if (parity == warp) {
        total = part;
      } else {
        sums()[other_part<kSideWarps>(parity, warp) * kWarp + c.lane] = part;
      }
    }
    meet_side();
    if (warp < 2 && (active >> (2 * c.t + warp) & 1) != 0) {
#pragma unroll
      for (int w = 0; w < kSideWarps - 1; ++w) {
        total = add(total, sums()[(warp * (kSideWarps - 1) + w) * kWarp + c.lane]);
      }
      c.recurrent_sums(layer)[(2 * tile + warp) * kWarp + c.lane] = total;
    }
    turn ^= 1;
  }

  // From the state that the launch begins with.
  __device__ void load(int layer) {
    if (!c.has_units || layer >= p.layers) return;
#pragma unroll 1
    for (int tile = 0; tile < c.row_tiles(); ++tile) {
      const int row = tile * 8 + c.g;
      const T* hidden =
          static_cast<const T*>(p.hidden) + (static_cast<int64_t>(layer) * p.state_rows + row) * p.width;
      Values values;
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        values.x[i][0] = load_operand(c, hidden, p.width, row < c.batch, warp + i * kSideWarps);
      }
      float products[2][4] = {};
      multiply(layer, values, products);
      add_up(layer, tile, 0xff, products);
    }
  }

  // After the step of `round`.
  __device__ __forceinline__ void renew(int layer, int round) {
    if (!c.has_units || layer >= p.layers) return;
    const unsigned labelled = c.labelled_rows(round);
    const uint4* messages = c.hidden_messages(layer, round);
    Values values;
    const auto request = [&](int tile) {
      values.request(c, messages + tile * kWarp, labelled >> (8 * tile), warp, kSideWarps, plan.unit_blocks);
    };
    request(0);
#pragma unroll 1
    for (int tile = 0; tile < c.row_tiles(); ++tile) {
      const unsigned active = labelled >> (8 * tile) & 0xff;
      float products[2][4] = {};
      if (active != 0) {
        values.template await<true>();
        multiply(layer, values, products);
      }
      if (tile + 1 < c.row_tiles()) request(tile + 1);
      if (active != 0) add_up(layer, tile, active, products);
    }
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
  // labels: so far, of the row that is this lane's.
  __device__ void empty_old(int round, int& labels) const {
    const int row = c.lane;
    if (row >= c.batch) return;
    if (warp == 0 && round >= 3 && c.labels(round - 3)[row] >= 0) empty_hidden(round - 3, row);
    if (warp == 1 && round >= 1 && c.labels(round - 1)[row] >= 0) empty_output(++labels + 2, row);
  }
};

}  // namespace rnnt_fastdecode::cuda
