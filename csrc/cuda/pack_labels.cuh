// The labels of all rows, out of the tables [R, C], one row after the other.
#pragma once

#include "state_rows.cuh"

namespace rnnt_fastdecode::cuda {

struct PackProblem {
  const int* tokens;               // [R, C]
  const int* frames;               // [R, C]
  const int* token_durations;      // [R, C]
  const float* log_probs;          // [R, C]
  const int* counts;               // [R]
  const void* lengths;             // [B] int64 or int32
  bool wide_lengths;               // int64
  const int64_t* decoded_lengths;  // [B], or [1] for all rows
  bool one_decoded_length;
  int batch;
  int capacity;  // C
  int room;      // labels
  int4* packed;  // [B + room]
  int4* host;    // its first host_records in memory of the host, or null
  int host_records;
  RowEnds ends;  // left out where time_jumps is null
};

cudaError_t launch_pack_labels(const PackProblem& problem, cudaStream_t stream);

}  // namespace rnnt_fastdecode::cuda
