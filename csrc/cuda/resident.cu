// The resident decoder. A round, as every block sees it:
//
//   joint     enc + pred of the rows' next W frames, times the block's columns -> partial results
//   decide    a few blocks: merge a row's partial results, walk to its first label -> decision
//   gather    all blocks: the decisions of all rows
//   predict   blocks with units: layer 0 from the table of input gates, further layers and the projection
//             from the messages of the stage before; off the critical path, the recurrent halves of the next
//             step's gates
//
// The stages wait for messages (exchange.cuh), never for a barrier of the grid. Value messages have three
// generations, round % 3. A block empties the messages of round r - 2 after its joint of round r: by then its
// gathered decision of round r - 1 proves that everybody has read them. It then publishes its progress, and
// no decision of round r + 1 appears before every block's progress is r, so that no reader can meet the
// remains of an earlier round. Rows that are done keep their last messages.
//
// A thread owns one unit (8 in a block) of one row of every 32: gates, cell and recurrent sums of it stay in
// its registers.

#include <cooperative_groups.h>

#include "exchange.cuh"
#include "fragments.cuh"
#include "resident.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarp * kWarps;
constexpr unsigned kFullMask = 0xffffffffu;
constexpr int kGates = 4;
constexpr int kPassRows = 32;  // rows that the threads of a block own at a time
constexpr int kRowTiles = kPassRows / 8;
constexpr int kGenerations = 3;
constexpr int kChunksPerWarp = kResidentWidth / kChunk / kWarps;
constexpr int kMaxGroups = kResidentRows / 8;

// The order of comes_before as an unsigned number: NaN is the greatest, both zeros are equal.
__device__ inline unsigned order(float value) {
  if (isnan(value)) return 0xffffffffu;
  const unsigned bits = __float_as_uint(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline float value_of(unsigned order) {
  if (order == 0xffffffffu) return NAN;
  return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

__device__ inline float exp_below(float logit, float max) {
  return logit == -INFINITY ? 0.0f : expf(logit - max);
}

// Eight sums of two rounded numbers, activated.
template <typename T>
__device__ inline unsigned activate_pair(unsigned a, unsigned b, Activation activation) {
  using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
  const Pair sum = __hadd2(reinterpret_cast<const Pair&>(a), reinterpret_cast<const Pair&>(b));
  Pair out;
  if (activation == Activation::kRelu) {
    const unsigned zero = 0;
    out = __hmax2_nan(sum, reinterpret_cast<const Pair&>(zero));
  } else {
    out.x = from_float<T>(activate(to_float(sum.x), activation));
    out.y = from_float<T>(activate(to_float(sum.y), activation));
  }
  return reinterpret_cast<unsigned&>(out);
}

// What a block knows of its rows, in shared memory.
struct Rows {
  int labels[kGenerations][kResidentRows];  // by round; -1 = none
  int times[kResidentRows];
  int lengths[kResidentRows];
  int done[kResidentRows];
  int history[kResidentHistory][kResidentRows];  // labels before the last, most recent first
  int symbols[kResidentRows];                    // of the rows that this block decides
  int counts[kResidentRows];
};

struct FrameResult {
  int token;
  int duration;
  float sum;
};

template <typename T, int Passes, int Tiles>
struct Resident {
  const ResidentProblem& p;
  const ResidentPlan& plan;
  unsigned char* shared;
  Rows& rows;
  FrameResult* frame_results;
  // Of the groups that this block judges, the projected predictor outputs: this lane's part of its row.
  uint4 (*predicted)[kChunksPerWarp];
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int g = lane / 4;
  const int t = lane % 4;
  const int block = blockIdx.x;
  const int batch = p.greedy.joint.batch;
  const bool has_units = block < plan.unit_blocks;
  const bool has_outputs = block < plan.output_blocks;
  const int unit = block * 8 + g;
  const int column_block = block % plan.column_blocks;
  const int slot = block / plan.column_blocks;

  float cell[kResidentLayers][Passes];
  float4 recurrent[kResidentLayers][Passes];
  float4 gate_bias;  // of layer 1
  float output_bias;

  // --- memory -----------------------------------------------------------------------------------------

  __device__ uint4* fragments(int offset) const { return reinterpret_cast<uint4*>(shared + offset); }
  __device__ float4* sums() const { return reinterpret_cast<float4*>(shared + plan.sums); }

  __device__ uint4* hidden_message(int stage, int round, int row, int unit_block) const {
    const int64_t index =
        ((static_cast<int64_t>(stage) * kGenerations + round % kGenerations) * batch + row) *
            plan.unit_blocks +
        unit_block;
    return reinterpret_cast<uint4*>(p.scratch + plan.hidden_messages) + index;
  }
  __device__ uint4* output_message(int round, int row, int output_block) const {
    const int64_t index =
        (static_cast<int64_t>(round % kGenerations) * batch + row) * plan.output_blocks + output_block;
    return reinterpret_cast<uint4*>(p.scratch + plan.output_messages) + index;
  }
  __device__ uint4* decision(int round, int row) const {
    return reinterpret_cast<uint4*>(p.scratch + plan.decisions) + (round % 2) * batch + row;
  }
  __device__ uint4* partial(int row, int frame, int column) const {
    return reinterpret_cast<uint4*>(p.scratch + plan.partials) +
           (static_cast<int64_t>(row) * p.greedy.joint.window + frame) * plan.column_blocks + column;
  }
  __device__ uint4* duration_partial(int row, int frame, int index) const {
    return reinterpret_cast<uint4*>(p.scratch + plan.duration_partials) +
           (static_cast<int64_t>(row) * p.greedy.joint.window + frame) * plan.duration_blocks + index;
  }
  __device__ int* progress(int of_block) const {
    return reinterpret_cast<int*>(p.scratch + plan.progress) + of_block;
  }

  // The row of a pass whose unit this thread owns.
  __device__ int own_row(int pass) const { return kPassRows * pass + 8 * (warp / 2) + 2 * t + warp % 2; }

  // --- start ------------------------------------------------------------------------------------------

  // A block's rows of a row-major matrix [*, width], as fragments.
  __device__ void load_fragment(uint4* fragment, const T* row, int width, bool exists, int chunk) const {
    const int k = chunk * kChunk + t * kLaneElements;
    fragment[lane] = exists && k < width ? *reinterpret_cast<const uint4*>(row + k) : uint4{0, 0, 0, 0};
  }

  __device__ void load_weights() {
    const int chunks = (p.width + kChunk - 1) / kChunk;
    const int64_t width = p.width;
    if (has_units) {
      for (int i = warp; i < p.layers * chunks * kGates; i += kWarps) {
        const int layer = i / (chunks * kGates), chunk = i / kGates % chunks, gate = i % kGates;
        const T* row = static_cast<const T*>(p.weight) + ((layer * 4 + gate) * width + unit) * 2 * width;
        load_fragment(fragments(plan.recurrent_weights) + i * kWarp, row + width, p.width, true, chunk);
        if (layer > 0) {
          load_fragment(fragments(plan.input_weights) + (i - chunks * kGates) * kWarp, row, p.width, true,
                        chunk);
        }
      }
      if (p.layers > 1) {
        const float* bias = p.bias + 4 * width + unit;
        gate_bias = {bias[0], bias[width], bias[2 * width], bias[3 * width]};
      }
    }
    if (has_outputs) {
      for (int chunk = warp; chunk < chunks; chunk += kWarps) {
        load_fragment(fragments(plan.projection_weights) + chunk * kWarp,
                      static_cast<const T*>(p.projection) + unit * width, p.width, true, chunk);
      }
      output_bias = to_float(static_cast<const T*>(p.projection_bias)[unit]);
    }
    const JointProblem& joint = p.greedy.joint;
    const int joint_chunks = (joint.width + kChunk - 1) / kChunk;
    for (int i = warp; i < plan.column_tiles * joint_chunks * 2; i += kWarps) {
      const int tile = i / (2 * joint_chunks), chunk = i / 2 % joint_chunks, half = i % 2;
      const int column = (column_block * plan.column_tiles + tile) * 16 + half * 8 + g;
      load_fragment(fragments(plan.joint_weights) + i * kWarp,
                    static_cast<const T*>(joint.weight) + static_cast<int64_t>(column) * joint.width,
                    joint.width, column < joint.columns(), chunk);
    }
  }

  __device__ void load_rows() {
    for (int row = threadIdx.x; row < batch; row += kThreads) {
      const int time = p.greedy.times[row], count = p.greedy.counts[row];
      const int length = min(p.greedy.joint.lengths[row], p.greedy.joint.frames);
      rows.times[row] = time;
      rows.lengths[row] = length;
      rows.symbols[row] = p.greedy.symbols[row];
      rows.counts[row] = count;
      rows.done[row] = !(time < length && count < p.greedy.capacity);
      for (int i = 0; i < kGenerations; ++i) rows.labels[i][row] = -1;
      for (int c = 0; c + 1 < p.context_size; ++c) {
        rows.history[c][row] = p.context[static_cast<int64_t>(row) * (p.context_size - 1) + c];
      }
    }
  }

  __device__ void empty_messages() {
    const int stages = max(p.layers, 1);
    for (int row = threadIdx.x; row < batch; row += kThreads) {
      for (int i = 0; i < kGenerations; ++i) {
        for (int stage = 0; has_units && stage < stages; ++stage) {
          write_message(hidden_message(stage, i, row, block), empty_message());
        }
        if (has_outputs) write_message(output_message(i, row, block), empty_message());
      }
      for (int i = 0; block == 0 && i < 2; ++i) write_message(decision(i, row), {0, 0, 0, 0});
    }
    const int window = p.greedy.joint.window;
    for (int i = threadIdx.x; slot == 0 && i < batch * window; i += kThreads) {
      write_message(partial(i / window, i % window, column_block), {0, 0, 0, 0});
      const int index = column_block - plan.first_duration_block;
      if (plan.duration_blocks > 0 && index >= 0) {
        write_message(duration_partial(i / window, i % window, index), {0, 0, 0, 0});
      }
    }
    if (threadIdx.x == 0) publish_progress(progress(block), -1);
  }

  __device__ void load_state() {
    const int chunks = (p.width + kChunk - 1) / kChunk;
    if (has_units) {
#pragma unroll
      for (int layer = 0; layer < kResidentLayers; ++layer) {
        if (layer >= p.layers) break;
#pragma unroll
        for (int pass = 0; pass < Passes; ++pass) {
          const int row = own_row(pass);
          const int64_t first = static_cast<int64_t>(layer) * p.state_rows * p.width;
          cell[layer][pass] = row < batch ? p.cell[first + static_cast<int64_t>(row) * p.width + unit] : 0.0f;
          if (pass * kPassRows >= batch) break;
          uint4 x[kChunksPerWarp][kRowTiles];
#pragma unroll
          for (int c = 0; c < kChunksPerWarp; ++c) {
#pragma unroll
            for (int n = 0; n < kRowTiles; ++n) {
              const int source = pass * kPassRows + n * 8 + g;
              const int k = (warp + c * kWarps) * kChunk + t * kLaneElements;
              x[c][n] = source < batch && k < p.width
                            ? *reinterpret_cast<const uint4*>(static_cast<const T*>(p.hidden) + first +
                                                              static_cast<int64_t>(source) * p.width + k)
                            : uint4{0, 0, 0, 0};
            }
          }
          recurrent[layer][pass] =
              gates(fragments(plan.recurrent_weights) + layer * chunks * kGates * kWarp, x, kFullMask);
        }
      }
    }
    for (int i = 0, group = slot; group * plan.group_rows < batch; ++i, group += plan.slots) {
      if (slot >= plan.slots) break;
      const int row = group * plan.group_rows + g % plan.group_rows;
#pragma unroll
      for (int c = 0; c < kChunksPerWarp; ++c) {
        const int k = (warp + c * kWarps) * kChunk + t * kLaneElements;
        predicted[i][c] =
            row < batch && k < p.greedy.joint.width
                ? *reinterpret_cast<const uint4*>(static_cast<const T*>(p.output) +
                                                  static_cast<int64_t>(row) * p.greedy.joint.width + k)
                : uint4{0, 0, 0, 0};
      }
    }
  }

  // --- predict ----------------------------------------------------------------------------------------

  // The block's four gates of 8 units for the tiles of 8 rows that hold a row of `active`: the depth is split
  // over the warps, and each thread gets the sums of the unit and row that it owns.
  __device__ float4 gates(const uint4* weights, const uint4 (&x)[kChunksPerWarp][kRowTiles],
                          unsigned active) {
    const int chunks = (p.width + kChunk - 1) / kChunk;
    float products[2][kRowTiles][4] = {};
#pragma unroll
    for (int c = 0; c < kChunksPerWarp; ++c) {
      const int chunk = warp + c * kWarps;
      if (chunk >= chunks) continue;
      const uint4* w = weights + chunk * kGates * kWarp + lane;
      const uint4 i = w[0], f = w[kWarp], z = w[2 * kWarp], o = w[3 * kWarp];
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        if ((active >> (8 * n) & 0xff) == 0) continue;
        multiply_chunk<T>(products[0][n], i, f, x[c][n]);
        multiply_chunk<T>(products[1][n], z, o, x[c][n]);
      }
    }
    float4* all = sums();
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
      if ((active >> (8 * n) & 0xff) == 0) continue;
#pragma unroll
      for (int parity = 0; parity < 2; ++parity) {
        all[(warp * 2 * kRowTiles + 2 * n + parity) * kWarp + lane] = {
            products[0][n][parity], products[0][n][2 + parity], products[1][n][parity],
            products[1][n][2 + parity]};
      }
    }
    __syncthreads();
    float4 total{0.0f, 0.0f, 0.0f, 0.0f};
    if ((active >> (8 * (warp / 2)) & 0xff) != 0) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float4 part = all[(w * 2 * kRowTiles + warp) * kWarp + lane];
        total = {total.x + part.x, total.y + part.y, total.z + part.z, total.w + part.w};
      }
    }
    __syncthreads();
    return total;
  }

  // The block's 8 outputs of the projection, likewise.
  __device__ float outputs(const uint4 (&x)[kChunksPerWarp][kRowTiles], unsigned active) {
    const int chunks = (p.width + kChunk - 1) / kChunk;
    const uint4 none{0, 0, 0, 0};
    float products[kRowTiles][4] = {};
#pragma unroll
    for (int c = 0; c < kChunksPerWarp; ++c) {
      const int chunk = warp + c * kWarps;
      if (chunk >= chunks) continue;
      const uint4 w = fragments(plan.projection_weights)[chunk * kWarp + lane];
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        if ((active >> (8 * n) & 0xff) == 0) continue;
        multiply_chunk<T>(products[n], w, none, x[c][n]);
      }
    }
    float* all = reinterpret_cast<float*>(sums());
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
      if ((active >> (8 * n) & 0xff) == 0) continue;
      all[(warp * 2 * kRowTiles + 2 * n) * kWarp + lane] = products[n][0];
      all[(warp * 2 * kRowTiles + 2 * n + 1) * kWarp + lane] = products[n][1];
    }
    __syncthreads();
    float total = 0.0f;
    if ((active >> (8 * (warp / 2)) & 0xff) != 0) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += all[(w * 2 * kRowTiles + warp) * kWarp + lane];
    }
    __syncthreads();
    return total;
  }

  // The hidden values of a stage for the active rows of a pass, as fragments; waits for them.
  __device__ void read_hidden(int stage, int round, int pass, unsigned active,
                              uint4 (&x)[kChunksPerWarp][kRowTiles]) const {
    const uint4* first = hidden_message(stage, round, pass * kPassRows + g, warp * 4 + t);
    const int limit = plan.unit_blocks - (warp * 4 + t);
#pragma unroll
    for (int c = 0; c < kChunksPerWarp; ++c) {
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        const bool wanted = (active >> (8 * n + g) & 1) != 0 && c * 4 * kWarps < limit;
        x[c][n] =
            wanted ? read_message(first + n * 8 * plan.unit_blocks + c * 4 * kWarps) : uint4{0, 0, 0, 0};
      }
    }
#pragma unroll
    for (int c = 0; c < kChunksPerWarp; ++c) {
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        await_value(x[c][n], first + n * 8 * plan.unit_blocks + c * 4 * kWarps);
      }
    }
    __syncwarp();
  }

  // The value of every unit of a row, gathered from 8 lanes; right in the lanes with g = 0.
  __device__ uint4 pack(float value) const {
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

  __device__ float next_hidden(float& own_cell, const float4& sum) const {
    own_cell = sigmoid(sum.y) * own_cell + sigmoid(sum.x) * tanhf(sum.z);
    return sigmoid(sum.w) * tanhf(own_cell);
  }

  __device__ void send_hidden(int stage, int round, int row, bool active, float value) const {
    const uint4 packed = pack(value);
    if (active && g == 0) {
      write_message(hidden_message(stage, round, row, block), packed);
      if (p.layers > 0) {
        const int64_t index = (static_cast<int64_t>(stage) * p.state_rows + row) * p.width + block * 8;
        *reinterpret_cast<uint4*>(static_cast<T*>(p.hidden) + index) = packed;
      }
    }
  }

  __device__ void store_cell(int layer, int row, float value) const {
    p.cell[(static_cast<int64_t>(layer) * p.state_rows + row) * p.width + unit] = value;
  }

  __device__ unsigned active_rows(int round, int pass) const {
    const int row = pass * kPassRows + lane;
    return __ballot_sync(kFullMask, row < batch && rows.labels[round % kGenerations][row] >= 0);
  }

  // Sum of the context's embeddings of this thread's unit, most recent label first.
  __device__ float embed(int row, int label) const {
    const int history = p.context_size - 1;
    float sum = 0.0f;
    for (int c = 0; c <= history; ++c) {
      const int past = c == 0 ? label : rows.history[c - 1][row];
      const bool known = past >= 0 && past < p.greedy.joint.num_tokens;
      const int64_t index = (static_cast<int64_t>(c) * p.greedy.joint.num_tokens + past) * p.width + unit;
      sum += known ? to_float(static_cast<const T*>(p.tables)[index]) : NAN;
    }
    const float rounded = to_float(from_float<T>(sum));
    return p.relu ? activate(rounded, Activation::kRelu) : rounded;
  }

  __device__ void first_stage(int round) {
    const int* labels = rows.labels[round % kGenerations];
#pragma unroll
    for (int pass = 0; pass < Passes; ++pass) {
      if (pass * kPassRows >= batch) break;
      const int row = own_row(pass);
      const int label = row < batch ? labels[row] : -1;
      float value = 0.0f;
      if (label >= 0) {
        if (p.layers > 0) {
          const int64_t entry = static_cast<int64_t>(label) * p.width + unit;
          const float4 input = __ldg(reinterpret_cast<const float4*>(p.gate_table) + entry);
          const float4& own = recurrent[0][pass];
          value = next_hidden(cell[0][pass],
                              {input.x + own.x, input.y + own.y, input.z + own.z, input.w + own.w});
        } else {
          value = embed(row, label);
        }
      }
      send_hidden(0, round, row, label >= 0, value);
      if (label >= 0 && p.layers > 0) store_cell(0, row, cell[0][pass]);
    }
    if (p.context_size > 1) {
      __syncthreads();
      for (int row = threadIdx.x; row < batch; row += kThreads) {
        if (labels[row] >= 0) shift_history(row, labels[row]);
      }
    }
  }

  __device__ void shift_history(int row, int label) {
    for (int c = p.context_size - 2; c > 0; --c) rows.history[c][row] = rows.history[c - 1][row];
    rows.history[0][row] = label;
  }

  __device__ void second_stage(int round) {
    const int* labels = rows.labels[round % kGenerations];
#pragma unroll
    for (int pass = 0; pass < Passes; ++pass) {
      if (pass * kPassRows >= batch) break;
      const unsigned active = active_rows(round, pass);
      if (active == 0) continue;
      const int row = own_row(pass);
      const bool own = row < batch && labels[row] >= 0;
      uint4 x[kChunksPerWarp][kRowTiles];
      read_hidden(0, round, pass, active, x);
      const float4 input = gates(fragments(plan.input_weights), x, active);
      const float4& past = recurrent[1][pass];
      float value = 0.0f;
      if (own) {
        value = next_hidden(cell[1][pass], {input.x + past.x + gate_bias.x, input.y + past.y + gate_bias.y,
                                            input.z + past.z + gate_bias.z, input.w + past.w + gate_bias.w});
      }
      send_hidden(1, round, row, own, value);
      if (own) store_cell(1, row, cell[1][pass]);
      const float4 next = gates(fragments(plan.recurrent_weights), x, active);
      if (own) recurrent[0][pass] = next;
    }
  }

  __device__ void project(int round) {
    const int chunks = (p.width + kChunk - 1) / kChunk;
    const int* labels = rows.labels[round % kGenerations];
    const int stage = max(p.layers - 1, 0);
#pragma unroll
    for (int pass = 0; pass < Passes; ++pass) {
      if (pass * kPassRows >= batch) break;
      const unsigned active = active_rows(round, pass);
      if (active == 0) continue;
      const int row = own_row(pass);
      const bool own = row < batch && labels[row] >= 0;
      uint4 x[kChunksPerWarp][kRowTiles];
      read_hidden(stage, round, pass, active, x);
      if (has_outputs) {
        const uint4 packed = pack(outputs(x, active) + output_bias);
        if (own && g == 0) {
          write_message(output_message(round, row, block), packed);
          const int64_t index = static_cast<int64_t>(row) * p.greedy.joint.width + block * 8;
          *reinterpret_cast<uint4*>(static_cast<T*>(p.output) + index) = packed;
        }
      }
      if (has_units && p.layers > 0) {
        const float4 next =
            gates(fragments(plan.recurrent_weights) + stage * chunks * kGates * kWarp, x, active);
        if (own) {
          if (stage == 0) recurrent[0][pass] = next;
          if (stage == 1) recurrent[1][pass] = next;
        }
      }
    }
  }

  __device__ void predict(int round) {
    if (has_units) {
      first_stage(round);
      if (p.layers > 1) second_stage(round);
    }
    if (has_outputs || (has_units && p.layers > 0)) project(round);
  }

  // --- joint ------------------------------------------------------------------------------------------

  // The best of a lane's columns so far, for one (row, frame).
  struct Best {
    unsigned order = 0;
    int token = INT32_MAX;
    float sum = 0.0f;  // of exp(logit - value_of(order))
    unsigned duration_order = 0;
    int duration = INT32_MAX;
  };

  __device__ static void take(unsigned& best, int& index, unsigned other, int other_index) {
    if (other > best || (other == best && other_index < index)) {
      best = other;
      index = other_index;
    }
  }

  __device__ void include(Best& best, float logit, int column) const {
    const JointProblem& joint = p.greedy.joint;
    if (column >= joint.columns()) return;
    if (column >= joint.num_tokens) {
      take(best.duration_order, best.duration, order(logit), column - joint.num_tokens);
      return;
    }
    const unsigned before = best.order;
    take(best.order, best.token, order(logit), column);
    const float max = value_of(best.order);
    if (before != best.order && best.sum != 0.0f) best.sum *= expf(value_of(before) - max);
    best.sum += exp_below(logit, max);
  }

  __device__ void joint(int round) {
    if (slot >= plan.slots) return;
    for (int i = 0, group = slot; group * plan.group_rows < batch; ++i, group += plan.slots) {
      const int row = group * plan.group_rows + g % plan.group_rows;
      const bool live = row < batch && !rows.done[row];
      if (__ballot_sync(kFullMask, live) == 0) continue;
      joint_group(round, group, row, live, predicted[i]);
    }
  }

  __device__ void joint_group(int round, int group, int row, bool live, uint4 (&pred)[kChunksPerWarp]) {
    const JointProblem& joint = p.greedy.joint;
    const int chunks = (joint.width + kChunk - 1) / kChunk;
    const int frames_per_tile = 8 / plan.group_rows;
    const int first_frame = g / plan.group_rows;
    const int time = live ? rows.times[row] : 0;
    const int left = live ? min(rows.lengths[row] - time, joint.window) : 0;

    uint4 x[Tiles][kChunksPerWarp];
    const T* encoder = static_cast<const T*>(joint.encoder) + row * joint.encoder_batch_stride +
                       static_cast<int64_t>(time) * joint.width + warp * kChunk + t * kLaneElements;
    const int room = joint.width - (warp * kChunk + t * kLaneElements);
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      const int frame = n * frames_per_tile + first_frame;
#pragma unroll
      for (int c = 0; c < kChunksPerWarp; ++c) {
        x[n][c] =
            frame < left && c * kWarps * kChunk < room
                ? __ldg(reinterpret_cast<const uint4*>(encoder + frame * joint.width + c * kWarps * kChunk))
                : uint4{0, 0, 0, 0};
      }
    }
    if (round > 0 && live && rows.labels[(round - 1) % kGenerations][row] >= 0) {
      const uint4* message = output_message(round - 1, row, warp * 4 + t);
#pragma unroll
      for (int c = 0; c < kChunksPerWarp; ++c) {
        if (c * kWarps * kChunk < room) pred[c] = read_message(message + c * 4 * kWarps);
      }
#pragma unroll
      for (int c = 0; c < kChunksPerWarp; ++c) {
        if (c * kWarps * kChunk < room) await_value(pred[c], message + c * 4 * kWarps);
      }
    }
    __syncwarp();
#pragma unroll
    for (int c = 0; c < kChunksPerWarp; ++c) {
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
        x[n][c] = {activate_pair<T>(x[n][c].x, pred[c].x, joint.activation),
                   activate_pair<T>(x[n][c].y, pred[c].y, joint.activation),
                   activate_pair<T>(x[n][c].z, pred[c].z, joint.activation),
                   activate_pair<T>(x[n][c].w, pred[c].w, joint.activation)};
      }
    }

    Best best[2];
    for (int pair = 0; pair < plan.column_tiles; pair += 2) {
      float products[2][Tiles][4] = {};
      const bool both = pair + 1 < plan.column_tiles;
#pragma unroll
      for (int c = 0; c < kChunksPerWarp; ++c) {
        const int chunk = warp + c * kWarps;
        if (chunk >= chunks) continue;
        const uint4* w = fragments(plan.joint_weights) + (pair * chunks + chunk) * 2 * kWarp + lane;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          if (m == 1 && !both) continue;
          const uint4 low = w[m * chunks * 2 * kWarp], high = w[m * chunks * 2 * kWarp + kWarp];
#pragma unroll
          for (int n = 0; n < Tiles; ++n) {
            if (n < plan.frame_tiles) multiply_chunk<T>(products[m][n], low, high, x[n][c]);
          }
        }
      }
      float4* all = sums();
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        if (m == 1 && !both) continue;
#pragma unroll
        for (int n = 0; n < Tiles; ++n) {
          if (n < plan.frame_tiles) {
            all[((warp * 2 + m) * plan.frame_tiles + n) * kWarp + lane] = {
                products[m][n][0], products[m][n][1], products[m][n][2], products[m][n][3]};
          }
        }
      }
      __syncthreads();
      if (warp < plan.frame_tiles) {
        for (int m = 0; m < (both ? 2 : 1); ++m) {
          float4 total{0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
          for (int w = 0; w < kWarps; ++w) {
            const float4 part = all[((w * 2 + m) * plan.frame_tiles + warp) * kWarp + lane];
            total = {total.x + part.x, total.y + part.y, total.z + part.z, total.w + part.w};
          }
          const int column = (column_block * plan.column_tiles + pair + m) * 16 + g;
          const float low = column_bias(column), high = column_bias(column + 8);
          include(best[0], total.x + low, column);
          include(best[1], total.y + low, column);
          include(best[0], total.z + high, column + 8);
          include(best[1], total.w + high, column + 8);
        }
      }
      __syncthreads();
    }
    if (warp < plan.frame_tiles) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int index = 2 * t + i;
        send_partial(best[i], round, group * plan.group_rows + index % plan.group_rows,
                     warp * frames_per_tile + index / plan.group_rows);
      }
    }
  }

  __device__ float column_bias(int column) const {
    const JointProblem& joint = p.greedy.joint;
    return joint.bias != nullptr && column < joint.columns()
               ? to_float(static_cast<const T*>(joint.bias)[column])
               : 0.0f;
  }

  // Merges a (row, frame) over the 8 lanes that hold its columns.
  __device__ void send_partial(Best& best, int round, int row, int frame) const {
    const bool wanted = row < batch && !rows.done[row] && frame < p.greedy.joint.window &&
                        rows.times[row] + frame < rows.lengths[row];
    const unsigned own = best.order;
#pragma unroll
    for (int offset = 4; offset < kWarp; offset *= 2) {
      take(best.order, best.token, __shfl_xor_sync(kFullMask, best.order, offset),
           __shfl_xor_sync(kFullMask, best.token, offset));
    }
    float sum = best.sum == 0.0f || own == best.order ? best.sum
                                                      : best.sum * expf(value_of(own) - value_of(best.order));
#pragma unroll
    for (int offset = 4; offset < kWarp; offset *= 2) sum += __shfl_xor_sync(kFullMask, sum, offset);
    if (g == 0 && wanted) {
      write_message(partial(row, frame, column_block),
                    {best.order, __float_as_uint(sum), static_cast<unsigned>(best.token),
                     static_cast<unsigned>(round + 1)});
    }
    const int index = column_block - plan.first_duration_block;
    if (plan.duration_blocks > 0 && index >= 0) {
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2) {
        take(best.duration_order, best.duration, __shfl_xor_sync(kFullMask, best.duration_order, offset),
             __shfl_xor_sync(kFullMask, best.duration, offset));
      }
      if (g == 0 && wanted) {
        write_message(
            duration_partial(row, frame, index),
            {best.duration_order, static_cast<unsigned>(best.duration), 0, static_cast<unsigned>(round + 1)});
      }
    }
  }

  // --- decide -----------------------------------------------------------------------------------------

  __device__ void decide(int round) {
    const int first = plan.blocks - 1 - block;
    if (first >= plan.deciders) return;
    for (int row = first; row < batch; row += plan.deciders) {
      if (!rows.done[row]) decide_row(round, row);
    }
  }

  __device__ void judge_frame(int round, int row, int frame) const {
    const unsigned tag = static_cast<unsigned>(round + 1);
    unsigned best = 0;
    int token = INT32_MAX;
    float sum = 0.0f;
    for (int column = lane; column < plan.column_blocks; column += kWarp) {
      const uint4 part = await_tag(partial(row, frame, column), tag);
      const unsigned before = best;
      take(best, token, part.x, static_cast<int>(part.z));
      const float max = value_of(best);
      const float other = __uint_as_float(part.y);
      if (sum != 0.0f && before != best) sum *= expf(value_of(before) - max);
      sum += other == 0.0f || part.x == best ? other : other * expf(value_of(part.x) - max);
    }
    const unsigned top = __reduce_max_sync(kFullMask, best);
    const int chosen = __reduce_min_sync(kFullMask, best == top ? token : INT32_MAX);
    if (sum != 0.0f && best != top) sum *= expf(value_of(best) - value_of(top));
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) sum += __shfl_xor_sync(kFullMask, sum, offset);
    int duration = 0;
    if (plan.duration_blocks > 0) {
      unsigned best_duration = 0;
      int index = INT32_MAX;
      for (int i = lane; i < plan.duration_blocks; i += kWarp) {
        const uint4 part = await_tag(duration_partial(row, frame, i), tag);
        take(best_duration, index, part.x, static_cast<int>(part.y));
      }
      const unsigned top_duration = __reduce_max_sync(kFullMask, best_duration);
      duration =
          p.greedy.durations[__reduce_min_sync(kFullMask, best_duration == top_duration ? index : INT32_MAX)];
    }
    if (lane == 0) frame_results[frame] = {chosen, duration, sum};
  }

  __device__ void decide_row(int round, int row) {
    const int start = rows.times[row], length = rows.lengths[row];
    const int frames = min(p.greedy.joint.window, length - start);
    for (int frame = warp; frame < frames; frame += kWarps) judge_frame(round, row, frame);
    if (warp == kWarps - 1) {
      for (int other = lane; other < plan.blocks; other += kWarp) await_progress(progress(other), round - 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int label = -1, frame = 0, duration = 0, time = start, symbols = rows.symbols[row];
      const int count = rows.counts[row];
      while (label < 0 && time < start + frames) {
        frame = time;
        const FrameResult& result = frame_results[frame - start];
        duration = result.duration;
        const bool blank = result.token == p.greedy.blank_id;
        if (!blank) label = result.token;
        const RowState next = blank ? RowState{time + max(duration, 1), 0}
                                    : after_label({time, symbols}, duration, p.greedy.max_symbols);
        time = next.time;
        symbols = next.symbols;
      }
      const int new_count = count + (label >= 0 ? 1 : 0);
      const bool done = !(time < length && new_count < p.greedy.capacity);
      write_message(decision(round, row), {static_cast<unsigned>(label), static_cast<unsigned>(time),
                                           static_cast<unsigned>(done), static_cast<unsigned>(round + 1)});
      rows.symbols[row] = symbols;
      rows.counts[row] = new_count;
      if (label >= 0) {
        const int64_t index = static_cast<int64_t>(row) * p.greedy.capacity + count;
        p.greedy.tokens[index] = label;
        p.greedy.frames[index] = frame;
        p.greedy.token_durations[index] = duration;
        p.greedy.log_probs[index] = -logf(frame_results[frame - start].sum);
      }
      if (done) {
        p.greedy.times[row] = time;
        p.greedy.symbols[row] = symbols;
        p.greedy.counts[row] = new_count;
      }
    }
    __syncthreads();
  }

  // --- between the stages -------------------------------------------------------------------------------

  __device__ void empty_old_messages(int round) {
    if (round >= 2) {
      const int* labels = rows.labels[(round - 2) % kGenerations];
      const int stages = max(p.layers, 1);
      for (int row = threadIdx.x; row < batch; row += kThreads) {
        if (labels[row] < 0 || rows.done[row]) continue;
        for (int stage = 0; has_units && stage < stages; ++stage) {
          write_message(hidden_message(stage, round - 2, row, block), empty_message());
        }
        if (has_outputs) write_message(output_message(round - 2, row, block), empty_message());
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) publish_progress(progress(block), round);
  }

  struct Outcome {
    bool any_label;
    bool all_done;
  };

  __device__ Outcome gather(int round) {
    int label = -1, done = 1;
    if (threadIdx.x < batch) {
      const int row = threadIdx.x;
      done = rows.done[row];
      if (!done) {
        const uint4 message = await_tag(decision(round, row), static_cast<unsigned>(round + 1));
        label = static_cast<int>(message.x);
        done = static_cast<int>(message.z);
        rows.times[row] = static_cast<int>(message.y);
        rows.done[row] = done;
      }
      rows.labels[round % kGenerations][row] = label;
    }
    const bool any_label = __syncthreads_or(label >= 0);
    const bool all_done = __syncthreads_and(done);
    return {any_label, all_done};
  }

  __device__ void run() {
    load_rows();
    empty_messages();
    load_weights();
    __syncthreads();
    load_state();
    cooperative_groups::this_grid().sync();
    bool live = false;
    for (int row = 0; row < batch; ++row) live = live || !rows.done[row];
    for (int round = 0; live; ++round) {
      joint(round);
      decide(round);
      empty_old_messages(round);
      const Outcome outcome = gather(round);
      if (outcome.any_label) predict(round);
      live = !outcome.all_done;
    }
    if (block == 0) {
      if (threadIdx.x == 0) *p.greedy.active = 0;
      __syncthreads();
      for (int row = threadIdx.x; row < batch; row += kThreads) {
        for (int c = 0; c + 1 < p.context_size; ++c) {
          p.context[static_cast<int64_t>(row) * (p.context_size - 1) + c] = rows.history[c][row];
        }
      }
    }
  }
};

template <typename T, int Passes, int Tiles>
__global__ void __launch_bounds__(kThreads, 1) resident_kernel(const __grid_constant__ ResidentProblem p) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ Rows rows;
  __shared__ FrameResult frame_results[kWarps * 8];
  static_assert(sizeof(rows) + sizeof(frame_results) <= kResidentStaticBytes);
  uint4 predicted[kMaxGroups][kChunksPerWarp];
  Resident<T, Passes, Tiles> decoder{p, p.plan, shared, rows, frame_results, predicted};
  decoder.run();
}

template <typename T, int Passes, int Tiles>
cudaError_t launch(const ResidentProblem& problem, cudaStream_t stream) {
  const auto kernel = resident_kernel<T, Passes, Tiles>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, problem.plan.shared_bytes);
  if (error != cudaSuccess) {
    return error;
  }
  void* arguments[] = {const_cast<ResidentProblem*>(&problem)};
  return cudaLaunchCooperativeKernel(kernel, dim3(problem.plan.blocks), dim3(kThreads), arguments,
                                     problem.plan.shared_bytes, stream);
}

}  // namespace

template <typename T>
cudaError_t launch_resident(const ResidentProblem& problem, cudaStream_t stream) {
  const int passes = (problem.greedy.joint.batch + kPassRows - 1) / kPassRows;
  const int tiles = problem.plan.frame_tiles;
  if (passes == 1 && tiles <= 1) return launch<T, 1, 1>(problem, stream);
  if (passes == 1 && tiles <= 3) return launch<T, 1, 3>(problem, stream);
  if (passes == 1) return launch<T, 1, 6>(problem, stream);
  if (passes == 2) return launch<T, 2, 6>(problem, stream);
  return launch<T, 4, 6>(problem, stream);
}

template cudaError_t launch_resident<__nv_bfloat16>(const ResidentProblem&, cudaStream_t);
template cudaError_t launch_resident<__half>(const ResidentProblem&, cudaStream_t);

}  // namespace rnnt_fastdecode::cuda
