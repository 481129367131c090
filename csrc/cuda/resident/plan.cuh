// What the two layouts of the resident decoder have in common.
#pragma once

#include <cstdint>

#include "resident.cuh"

namespace rnnt_fastdecode::cuda {

inline int divide_up(int value, int by) { return (value + by - 1) / by; }
inline int64_t aligned_to(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }
inline int64_t aligned(int64_t bytes) { return aligned_to(bytes, 128); }

void place_duration_blocks(const ResidentShape& shape, int tile_columns, ResidentPlan& plan);
// `bytes` more of the scratch memory; where they begin.
inline int64_t reserve(ResidentPlan& plan, int64_t bytes) {
  const int64_t offset = plan.scratch_bytes;
  plan.scratch_bytes += aligned(bytes);
  return offset;
}

void reserve_scratch(const ResidentShape& shape, int64_t rows, int element_bytes, ResidentPlan& plan);

bool plan_float(const ResidentShape& shape, int rows, int multiprocessors, int shared_limit,
                ResidentPlan* plan);

}  // namespace rnnt_fastdecode::cuda
