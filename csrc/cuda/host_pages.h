// Page-locked memory of the host that kernels write to.
#pragma once

#include "launch.h"

namespace rnnt_fastdecode {

// [rows, columns] int32 in page-locked memory.
Tensor new_page(int64_t rows, int64_t columns);

// Where a kernel on the current device writes it.
void* device_pointer(const char* op, const Tensor& page);

// Keeps a page until what is on the stream now is done, whoever drops it before: torch knows only of its own
// copies, and would give the memory to another. A later call lets it go.
void keep_until_written(const char* op, const Tensor& page, cudaStream_t stream);

}  // namespace rnnt_fastdecode
