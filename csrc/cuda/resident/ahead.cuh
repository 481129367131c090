// What the side crew does of the prediction network: the recurrent halves of the gates, as soon as the hidden
// values of a step are there, for the step that follows; and the messages of old steps, emptied.
#pragma once

#include "crew.cuh"
#include "operands.cuh"

namespace rnnt_fastdecode::cuda {

template <typename T>
struct Ahead {
  static constexpr int kChunks = kResidentWidth / kChunk / kSideWarps;
  using Values = Operand<kChunks, 1>;

  const Context& c;
  const ResidentProblem& p = c.p;
  const ResidentPlan& plan = c.plan;
  const int warp = c.warp - kWarps;
  const int chunks = (p.width + kChunk - 1) / kChunk;
  int labels = 0;  // so far, of the row that is this lane's

  __device__ float4* sums() const { return reinterpret_cast<float4*>(c.shared + plan.side_sums); }

  // Of 8 rows, those in `active`.
  __device__ __forceinline__ void multiply(int layer, int tile, unsigned active, const Values& values) const {
    float products[2][4] = {};
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
#pragma unroll
    for (int parity = 0; parity < 2; ++parity) {
      sums()[(warp * 2 + parity) * kWarp + c.lane] = {products[0][parity], products[0][2 + parity],
                                                      products[1][parity], products[1][2 + parity]};
    }
    meet_side();
    if (warp < 2 && (active >> (2 * c.t + warp) & 1) != 0) {
      float4 total{0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
      for (int w = 0; w < kSideWarps; ++w) {
        const float4 part = sums()[(w * 2 + warp) * kWarp + c.lane];
        total = {total.x + part.x, total.y + part.y, total.z + part.z, total.w + part.w};
      }
      c.recurrent_sums(layer)[(2 * tile + warp) * kWarp + c.lane] = total;
    }
    meet_side();
  }

  // From the state that the launch begins with.
  __device__ void load() const {
    for (int i = 0; c.has_units && i < p.layers * c.row_tiles(); ++i) {
      const int layer = i / c.row_tiles(), tile = i % c.row_tiles(), row = tile * 8 + c.g;
      const T* hidden = static_cast<const T*>(p.hidden) +
                        (static_cast<int64_t>(layer) * p.state_rows + row) * p.width;
      Values values;
#pragma unroll
      for (int j = 0; j < kChunks; ++j) {
        values.x[j][0] = load_operand(c, hidden, p.width, row < c.batch, warp + j * kSideWarps);
      }
      multiply(layer, tile, 0xff, values);
    }
  }

  // After the step of `round`.
  __device__ void renew(int round) const {
    const unsigned labelled = c.has_units ? c.labelled_rows(round) : 0;
    for (int i = 0; labelled != 0 && i < p.layers * c.row_tiles(); ++i) {
      const int layer = i / c.row_tiles(), tile = i % c.row_tiles();
      const unsigned active = labelled >> (8 * tile) & 0xff;
      if (active == 0) continue;
      Values values;
      values.await(c, c.hidden_messages(layer, round) + tile * kWarp, active, warp, kSideWarps,
                   plan.unit_blocks);
      multiply(layer, tile, active, values);
    }
  }

  // --- messages -------------------------------------------------------------------------------------------

  // Of a row all that this block writes: empty, but for the outputs that the state begins with.
  __device__ void prepare(int row) const {
    for (int i = 0; i < kGenerations; ++i) empty_hidden(i, row);
    if (!c.has_outputs) return;
    const int64_t index = static_cast<int64_t>(row) * p.greedy.joint.width + c.block * 8;
    uint4 output = *reinterpret_cast<const uint4*>(static_cast<const T*>(p.output) + index);
    // A caller's NaN must not look like a message that is still to come.
    if (output.x == kEmpty) output.x = 0x7fff7fffu;
    write_message(c.output_messages(0) + c.message_index(row, c.block), output);
    for (int i = 1; i < kGenerations; ++i) empty_output(i, row);
  }

  __device__ void empty_hidden(int round, int row) const {
    for (int stage = 0; c.has_units && stage < c.stages(); ++stage) {
      write_message(c.hidden_messages(stage, round) + c.message_index(row, c.block), empty_message());
    }
  }

  __device__ void empty_output(int after, int row) const {
    if (c.has_outputs) {
      write_message(c.output_messages(after) + c.message_index(row, c.block), empty_message());
    }
  }

  // What everybody has read: see half_rounds.cuh.
  __device__ void empty_old(int round) {
    const int row = c.lane;
    if (row >= c.batch) return;
    if (warp == 0 && round >= 3 && c.labels(round - 3)[row] >= 0) empty_hidden(round - 3, row);
    if (warp == 1 && round >= 1 && c.labels(round - 1)[row] >= 0) empty_output(++labels + 2, row);
  }
};

}  // namespace rnnt_fastdecode::cuda
