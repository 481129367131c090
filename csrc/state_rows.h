// One tensor of a decode state as rows of bytes, copied between a batch and the loop's buffers. No torch
// here: the CPU and the CUDA kernels share it.
#pragma once

#include <cstdint>

namespace rnnt_fastdecode {

// [outer, from_rows, row_bytes] -> [outer, to_rows, row_bytes], the first rows of each; where from_rows is 1,
// every row gets that one.
struct StatePart {
  const void* from;
  void* to;
  int64_t outer, from_rows, to_rows, row_bytes;
};

}  // namespace rnnt_fastdecode
