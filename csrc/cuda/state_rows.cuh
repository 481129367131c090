// Copies of state rows into and out of the loop's buffers, with the row counters that go along.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../state_rows.h"

namespace rnnt_fastdecode::cuda {

constexpr int kMaxStateParts = 6;

struct StateParts {
  StatePart part[kMaxStateParts];
  int count;
  int batch;
};

struct LoadProblem {
  StateParts state;
  const void* lengths;    // [B] int64 or int32
  bool wide_lengths;      // int64
  const int* time_jumps;  // [B], or [1] for all rows
  bool one_time_jump;
  int frames;        // what lengths are limited to
  int rows;          // R, of the arrays below
  int* row_lengths;  // [R]
  int* times;        // [R]
  int* symbols;      // [R]
  int* counts;       // [R]
};

// Where each row ends.
struct RowEnds {
  const int* times;        // [B]
  const int* row_lengths;  // [B]
  int* time_jumps;         // [B]
  int64_t* decoded;        // [B]
};

// decoded: frames before these.
__device__ inline void end_row(const RowEnds& ends, int row, int64_t decoded) {
  const int length = ends.row_lengths[row];
  ends.time_jumps[row] = max(ends.times[row] - length, 0);
  ends.decoded[row] = decoded + length;
}

struct SaveProblem {
  StateParts state;
  const int* times;                // [R]
  const int* row_lengths;          // [R]
  const int64_t* decoded_lengths;  // [B], or [1] for all rows
  bool one_decoded_length;
  int* time_jumps;   // [B]
  int64_t* decoded;  // [B]
};

cudaError_t launch_load_rows(const LoadProblem& problem, cudaStream_t stream);
cudaError_t launch_save_rows(const SaveProblem& problem, cudaStream_t stream);

}  // namespace rnnt_fastdecode::cuda
