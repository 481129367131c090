// What a block does of the copies of state_rows.cuh, for every kernel that has blocks for them.
//
// A state tensor is [outer, rows, bytes]; a block copies whole (outer, row) pieces, its threads side by side
// in the widest words that the addresses and sizes allow.
#pragma once

#include "state_rows.cuh"

namespace rnnt_fastdecode::cuda {

// Which of the blocks that share some work a block is.
struct BlockShare {
  int index;
  int count;
};

template <typename Word>
__device__ inline void copy_piece(const char* from, char* to, int64_t bytes) {
  const int64_t words = bytes / sizeof(Word);
  for (int64_t i = threadIdx.x; i < words; i += blockDim.x) {
    reinterpret_cast<Word*>(to)[i] = reinterpret_cast<const Word*>(from)[i];
  }
}

__device__ inline void copy_rows(const StatePart& part, int batch, const BlockShare& share) {
  const auto from_start = reinterpret_cast<uintptr_t>(part.from);
  const auto to_start = reinterpret_cast<uintptr_t>(part.to);
  const uintptr_t grain = from_start | to_start | static_cast<uintptr_t>(part.row_bytes);
  const int64_t pieces = part.outer * batch;
  for (int64_t piece = share.index; piece < pieces; piece += share.count) {
    const int64_t block = piece / batch, row = piece % batch;
    const int64_t source = block * part.from_rows + (part.from_rows == 1 ? 0 : row);
    const int64_t target = block * part.to_rows + row;
    const char* from = static_cast<const char*>(part.from) + source * part.row_bytes;
    char* to = static_cast<char*>(part.to) + target * part.row_bytes;
    if (grain % sizeof(int4) == 0) {
      copy_piece<int4>(from, to, part.row_bytes);
    } else if (grain % sizeof(int) == 0) {
      copy_piece<int>(from, to, part.row_bytes);
    } else {
      copy_piece<char>(from, to, part.row_bytes);
    }
  }
}

__device__ inline void load_counters(const LoadProblem& p, const BlockShare& share) {
  for (int row = share.index * blockDim.x + threadIdx.x; row < p.rows; row += share.count * blockDim.x) {
    int length = 0;
    if (row < p.state.batch) {
      const int64_t given = p.wide_lengths ? static_cast<const int64_t*>(p.lengths)[row]
                                           : static_cast<const int*>(p.lengths)[row];
      length = static_cast<int>(min(max(given, int64_t{0}), static_cast<int64_t>(p.frames)));
      p.times[row] = p.time_jumps[p.one_time_jump ? 0 : row];
    }
    p.row_lengths[row] = length;
    p.symbols[row] = 0;
    p.counts[row] = 0;
  }
}

// Work item 0 .. count: a state tensor, or the counters.
__device__ inline void load_item(const LoadProblem& p, int item, const BlockShare& share) {
  if (item < p.state.count) {
    copy_rows(p.state.part[item], p.state.batch, share);
  } else {
    load_counters(p, share);
  }
}

}  // namespace rnnt_fastdecode::cuda
