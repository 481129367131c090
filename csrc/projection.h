// The joint's encoder projection with torch's matrix products, which autocast does not touch here.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <optional>

#include "checks.h"

namespace rnnt_fastdecode {

// torch's kernels of one device, with the result as their first argument.
struct MatrixProducts {
  AOTITorchError (*mm)(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle);
  AOTITorchError (*addmm)(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, double,
                          double);
};

// A matrix [rows, columns] in the memory of a contiguous tensor, or its transpose.
inline Tensor as_matrix(const Tensor& tensor, int64_t rows, int64_t columns, bool transposed = false) {
  const int64_t sizes[] = {rows, columns};
  const int64_t strides[] = {transposed ? 1 : columns, transposed ? rows : 1};
  AtenTensorHandle view = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(tensor.get(), 2, sizes, strides, 0, &view));
  return Tensor(view);
}

// encoder_output [B, T, D], weight [J, D], bias [J] -> [B * T, J].
inline Tensor project_frames(const MatrixProducts& products, const Tensor& encoder_output,
                             const Tensor& weight, const std::optional<Tensor>& bias) {
  const int64_t frames = encoder_output.size(0) * encoder_output.size(1);
  const int64_t joint_width = weight.size(0), width = weight.size(1);
  Tensor projected = new_tensor(encoder_output, {frames, joint_width}, encoder_output.scalar_type());
  if (frames > 0) {
    const Tensor rows = as_matrix(encoder_output, frames, width);
    const Tensor columns = as_matrix(weight, width, joint_width, true);
    TORCH_ERROR_CODE_CHECK(
        bias ? products.addmm(projected.get(), bias->get(), rows.get(), columns.get(), 1.0, 1.0)
             : products.mm(projected.get(), rows.get(), columns.get()));
  }
  return projected;
}

}  // namespace rnnt_fastdecode
