// The joint's encoder projection in one launch with the rows' start.
#pragma once

#include "state_rows.cuh"

namespace rnnt_fastdecode::cuda {

// output = frames weight^T + bias: accumulated in fp32 and rounded once, as torch.addmm does.
struct EncoderProjection {
  const void* frames;  // [rows, width]
  const void* weight;  // [output_width, width]
  const void* bias;    // [output_width], or null
  void* output;        // [rows, output_width]
  int64_t rows;
  int width;
  int output_width;
};

// Whether this kernel is the fastest, which with many frames of 16-bit elements a library's is, and rows are
// whole 16-byte vectors.
template <typename T>
bool projection_supports(const EncoderProjection& projection);

// What launch_load_rows does, and the projection.
template <typename T>
cudaError_t launch_load_and_project(const LoadProblem& load, const EncoderProjection& projection,
                                    cudaStream_t stream);

}  // namespace rnnt_fastdecode::cuda
