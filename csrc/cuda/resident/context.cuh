// What a block of the resident decoder knows: its place in the plan, its rows, where messages lie.
#pragma once

#include "exchange.cuh"
#include "resident.cuh"

namespace rnnt_fastdecode::cuda {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarp * kWarps;
constexpr unsigned kFullMask = 0xffffffffu;

// A few numbers of every row, in shared memory.
struct RowTable {
  int* first;
  int rows;

  __device__ int* operator[](int i) const { return first + i * rows; }
};

// What a block knows of its rows.
struct Rows {
  static constexpr int kNumbers = kGenerations + kResidentHistory + 6;

  RowTable labels;   // by round; -1 = none
  RowTable history;  // labels before the last, most recent first
  int* times;
  int* lengths;
  int* done;
  int* labelled;  // labels of this launch
  int* symbols;   // of the rows that this block decides
  int* counts;

  // In an array of kNumbers for each of `rows` rows.
  __device__ static Rows in(int* array, int rows) {
    const RowTable table{array, rows}, others{table[kGenerations + kResidentHistory], rows};
    return {table,    {table[kGenerations], rows}, others[0], others[1], others[2], others[3], others[4],
            others[5]};
  }
};

// An index that the compiler cannot see through: addresses that follow from it are worked out where they are
// needed. Carried from round to round they would be more than the registers hold.
__device__ inline int opaque(int index) {
  asm volatile("" : "+r"(index));
  return index;
}

// The address of shared memory. kSettled: it stays in a register; the compiler would ask for the memory's
// place again and again.
template <bool kSettled = true>
__device__ inline unsigned address_of(unsigned char* shared) {
  const int address = static_cast<int>(__cvta_generic_to_shared(shared));
  return kSettled ? opaque(address) : address;
}

// Likewise an address: worked out here.
__device__ inline uint4* opaque(uint4* address) {
  asm volatile("" : "+l"(address));
  return address;
}

struct Context {
  const ResidentProblem& p;
  const ResidentPlan& plan;
  const unsigned shared;  // address of the block's shared memory
  const Rows rows;
  const int slot;  // of the joint
  const int thread;

  // A lane's place in a product: see fragments.cuh.
  const int warp = thread / kWarp;
  const int lane = thread % kWarp;
  const int g = lane / 4;
  const int t = lane % 4;

  const int block = blockIdx.x;
  const int batch = p.greedy.joint.batch;
  const bool has_units = block < plan.unit_blocks;
  const int output_tile = block - plan.first_output_block;  // 16 outputs of the projection
  const bool has_outputs = output_tile >= 0 && output_tile < plan.output_blocks;
  const int unit = block * 8 + g;  // of this thread
  const int column_block = block - slot * plan.column_blocks;
  const int duration_block = plan.duration_blocks > 0 ? column_block - plan.first_duration_block : -1;

  __device__ Context anew() const { return {p, plan, shared, rows, slot, opaque(thread)}; }

  // Of the block's shared memory.
  __device__ unsigned char* at(int offset) const {
    return static_cast<unsigned char*>(__cvta_shared_to_generic(shared + offset));
  }
  __device__ uint4* fragments(int offset) const { return reinterpret_cast<uint4*>(at(offset)); }
  // Of a layer, and of tile `tile` of 8 rows.
  template <bool kPasses>
  __device__ float4* recurrent_sums(int layer, int tile) const {
    if constexpr (!kPasses) {
      return reinterpret_cast<float4*>(at(plan.recurrent_sums)) + (layer * row_tiles() + tile) * 2 * kWarp;
    }
    const int index = (block * kResidentLayers + layer) * row_tiles() + tile;
    return reinterpret_cast<float4*>(p.scratch + static_cast<unsigned>(plan.recurrent_scratch)) +
           index * 2 * kWarp;
  }
  __device__ float4* sums() const { return reinterpret_cast<float4*>(at(plan.sums)); }
  __device__ float* column_biases() const { return reinterpret_cast<float*>(at(plan.column_biases)); }
  __device__ int* labels(int round) const { return rows.labels[round % kGenerations]; }
  __device__ int stages() const { return max(p.layers, 1); }
  // A bit for each row of a pass.
  __device__ unsigned labelled_rows(int round, int pass) const {
    const int row = pass * kPassRows + lane;
    return __ballot_sync(kFullMask, row < batch && labels(round)[row] >= 0);
  }
  // Whether any row goes on, for every warp to ask.
  __device__ bool goes_on() const {
    bool own = false;
    for (int row = lane; row < batch; row += kWarp) own |= !rows.done[row];
    return __any_sync(kFullMask, own);
  }

  // The scratch memory has less than 4 GiB.
  __device__ uint4* message(int64_t offset, int index) const {
    return reinterpret_cast<uint4*>(p.scratch + (static_cast<unsigned>(offset) + 16u * index));
  }
  // Messages of 8 values each lie by chunk of 32 values, tile of 8 rows, row, in the order in which the
  // lanes of a warp read them.
  __device__ int row_tiles() const { return (batch + 7) / 8; }
  __device__ int message_index(int row, int eighth) const {
    return ((eighth / 4 * row_tiles() + row / 8) * 8 + row % 8) * 4 + eighth % 4;
  }
  __device__ uint4* hidden_messages(int stage, int round) const {
    const int generation = stage * kGenerations + round % kGenerations;
    return message(plan.hidden_messages, generation * ((p.width + 31) / 32) * row_tiles() * kWarp);
  }
  // Messages of outputs that this block writes for a row.
  __device__ int first_eighth() const { return has_outputs ? 2 * output_tile : 0; }
  __device__ int last_eighth() const {
    return has_outputs ? min(2 * output_tile + 2, p.greedy.joint.width / 8) : 0;
  }
  // Of the outputs after as many labels of a row in this launch.
  __device__ uint4* output_messages(int labels) const {
    const int chunks = (p.greedy.joint.width + 31) / 32;
    return message(plan.output_messages, labels % kGenerations * chunks * row_tiles() * kWarp);
  }
  // Every block has its own copy of each decision: readers do not queue for one address.
  __device__ uint4* decision(int round, int reader, int row) const {
    return message(plan.decisions, (reader * 2 + round % 2) * batch + row);
  }
  // What column blocks find has two generations, by round.
  __device__ int frame_index(int round, int row, int frame) const {
    return (round % 2 * batch + row) * p.greedy.joint.window + frame;
  }
  __device__ uint4* partial(int frame_index, int column) const {
    return message(plan.partials, frame_index * plan.column_blocks + column);
  }
  __device__ uint4* duration_partial(int frame_index, int i) const {
    return message(plan.duration_partials, frame_index * plan.duration_blocks + i);
  }
  __device__ uint4* partial_sum(int frame_index, int column) const {
    return message(plan.partial_sums, frame_index * plan.column_blocks + column);
  }
  __device__ int* progress(int of_block) const {
    return reinterpret_cast<int*>(p.scratch + plan.progress) + of_block;
  }
};

// The order of comes_before as an unsigned number: NaN is the greatest, both zeros are equal.
__device__ inline unsigned order_of(float value) {
  const unsigned bits = __float_as_uint(value + 0.0f);
  const unsigned mirrored = bits ^ (static_cast<unsigned>(static_cast<int>(bits) >> 31) | 0x80000000u);
  return isnan(value) ? 0xffffffffu : mirrored;
}

__device__ inline float value_of(unsigned order) {
  const unsigned bits = order & 0x80000000u ? order & 0x7fffffffu : ~order;
  return order == 0xffffffffu ? NAN : __uint_as_float(bits);
}

__device__ inline float exp_below(float logit, float max) {
  return logit == -INFINITY ? 0.0f : expf(logit - max);
}

// A sum of exp(logit - value_of(from)) as one of exp(logit - value_of(to)).
__device__ inline float scaled(float sum, unsigned from, unsigned to) {
  return sum == 0.0f || from == to ? sum : sum * expf(value_of(from) - value_of(to));
}

__device__ inline float4 as_floats(const uint4& bits) {
  return {__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z), __uint_as_float(bits.w)};
}

__device__ inline float4 add(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

// The better of two candidates: the higher order, of equal ones the lower index.
__device__ inline void take(unsigned& order, int& index, unsigned other, int other_index) {
  const bool better = other > order || (other == order && other_index < index);
  order = better ? other : order;
  index = better ? other_index : index;
}

// The best of a warp's lanes.
__device__ inline void take_over_warp(unsigned& order, int& index) {
  const unsigned top = __reduce_max_sync(kFullMask, order);
  index = __reduce_min_sync(kFullMask, order == top ? index : INT32_MAX);
  order = top;
}

}  // namespace rnnt_fastdecode::cuda
