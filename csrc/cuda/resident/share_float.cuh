// What a block of the resident decoder in fp32 owns, however its products are made: up to 5 units of every
// layer and up to 6 outputs; the messages that carry their values; lists of rows.
#pragma once

#include "../ptx.cuh"
#include "stateless.cuh"
#include "values.cuh"

namespace rnnt_fastdecode::cuda {

__device__ inline float4 prefetch_quad(const float* address, bool wanted) {
  return as_floats(prefetch_constant(address, wanted));
}

// The projected output of a row after as many labels of this launch.
__device__ inline float* output_values(const Context& c, int labels, int row) {
  const int64_t index = static_cast<int64_t>(labels % kGenerations) * c.batch + row;
  return reinterpret_cast<float*>(c.p.scratch + c.plan.output_messages) + index * c.p.greedy.joint.width;
}

// Rows for which `wanted` holds, listed by every warp for itself.
template <typename Wanted>
__device__ inline int list_rows(const Context& c, unsigned char* list, Wanted wanted) {
  int count = 0;
  for (int first = 0; first < c.batch; first += kWarp) {
    const int row = first + c.lane;
    const bool listed = row < c.batch && wanted(row);
    const unsigned mask = __ballot_sync(kFullMask, listed);
    if (listed) list[count + __popc(mask & ((1u << c.lane) - 1))] = static_cast<unsigned char>(row);
    count += __popc(mask);
  }
  __syncwarp();
  return count;
}

// Merges the best of the lanes that differ in the bits from `From` on, below `To`.
template <int From, int To>
__device__ inline void take_over_lanes(unsigned& order, int& index) {
#pragma unroll
  for (int offset = From; offset < To; offset *= 2) {
    take(order, index, __shfl_xor_sync(kFullMask, order, offset), __shfl_xor_sync(kFullMask, index, offset));
  }
}

__device__ inline float4 rectified(const float4& x) {
  return {ptx::max_nan(x.x, 0.0f), ptx::max_nan(x.y, 0.0f), ptx::max_nan(x.z, 0.0f), ptx::max_nan(x.w, 0.0f)};
}

__device__ inline float4 activated(const float4& x, Activation activation) {
  return {activate(x.x, activation), activate(x.y, activation), activate(x.z, activation),
          activate(x.w, activation)};
}

// What the joint knows, however its products are made.
struct JointShare {
  const Context& c;
  const ResidentPlan& plan = c.plan;
  const FloatPlan& layout = c.plan.single;
  const JointProblem& joint = c.p.greedy.joint;

  __device__ float* floats(int offset) const { return reinterpret_cast<float*>(c.at(offset)); }
  // The list of live rows of this warp.
  __device__ unsigned char* live() const { return c.at(layout.row_lists) + (kWarps + c.warp) * kFloatRows; }
  // Of a row, -1 if there is none: frames of its window.
  __device__ int frames_left(int row) const {
    return row < 0 ? 0 : min(c.rows.lengths[row] - c.rows.times[row], joint.window);
  }
};

struct FloatShare {
  static constexpr int kGates = 4;

  const Context& c;
  const ResidentProblem& p = c.p;
  const ResidentPlan& plan = c.plan;
  const FloatPlan& layout = c.plan.single;
  const int block = opaque(c.block);
  const int first_unit = block * layout.units;
  const int first_output = block * layout.outputs;
  const int units = c.has_units ? min(layout.units, p.width - first_unit) : 0;
  const int outputs = c.has_outputs ? min(layout.outputs, p.greedy.joint.width - first_output) : 0;

  __device__ float* floats(int offset) const { return reinterpret_cast<float*>(c.at(offset)); }
  __device__ float* hidden_message(int stage, int round, int row) const {
    const int64_t index = (stage * kGenerations + round % kGenerations) * c.batch + row;
    return reinterpret_cast<float*>(p.scratch + plan.hidden_messages) + index * p.width;
  }
  __device__ int64_t state_index(int layer, int row, int unit) const {
    return (static_cast<int64_t>(layer) * p.state_rows + row) * p.width + unit;
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

  // The next hidden value of a unit, to everybody and to the state; returns its next cell.
  __device__ float send_cell(int layer, int round, int row, int unit, const float4& gate, float cell) const {
    const float value = exact_lstm(cell, gate.x, gate.y, gate.z, gate.w);
    write_value(hidden_message(layer, round, row) + first_unit + unit, value);
    const int64_t index = state_index(layer, row, first_unit + unit);
    static_cast<float*>(p.hidden)[index] = value;
    p.cell[index] = cell;
    return cell;
  }

  __device__ void send_output(int row, int output, float value) const {
    write_value(output_values(c, c.rows.labelled[row], row) + first_output + output, value);
    const int64_t index = static_cast<int64_t>(row) * p.greedy.joint.width + first_output + output;
    static_cast<float*>(p.output)[index] = value;
  }

  // Layer 0 needs no product once the label is known. `step_cell` gets the input gates of a row and unit.
  template <typename StepCell>
  __device__ void first_stage(int round, const unsigned char* list, int count, StepCell step_cell) const {
    for (int i = c.thread; i < count * kFloatUnits; i += kThreads) {
      const int row = list[i / kFloatUnits], unit = i % kFloatUnits;
      if (unit >= units) continue;
      const int label = c.labels(round)[row];
      if (p.layers > 0) {
        const int64_t entry = static_cast<int64_t>(label) * p.width + first_unit + unit;
        step_cell(row, unit, __ldg(reinterpret_cast<const float4*>(p.gate_table) + entry));
      } else {
        write_value(hidden_message(0, round, row) + first_unit + unit,
                    embed<float>(c, row, label, first_unit + unit));
      }
    }
    if (p.context_size > 1) {
      __syncthreads();
      shift_history(c, round);
    }
  }
};

}  // namespace rnnt_fastdecode::cuda
