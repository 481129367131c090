// The joint's encoder projection with torch's matrix products, which autocast does not touch here.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <optional>

namespace rnnt_fastdecode {

// torch's kernels of one device, with the result as their first argument.
struct MatrixProducts {
  AOTITorchError (*mm)(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle);
  AOTITorchError (*addmm)(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, double,
                          double);
};

// A matrix [rows, columns] in the memory of a contiguous tensor, or its transpose.
inline torch::stable::Tensor as_matrix(const torch::stable::Tensor& tensor, int64_t rows, int64_t columns,
                                       bool transposed = false) {
  const int64_t sizes[] = {rows, columns};
  const int64_t strides[] = {transposed ? 1 : columns, transposed ? rows : 1};
  AtenTensorHandle view = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(tensor.get(), 2, sizes, strides, 0, &view));
  return torch::stable::Tensor(view);
}

// encoder_output [B, T, D], weight [J, D], bias [J] -> [B * T, J].
inline torch::stable::Tensor project_frames(const MatrixProducts& products,
                                            const torch::stable::Tensor& encoder_output,
                                            const torch::stable::Tensor& weight,
                                            const std::optional<torch::stable::Tensor>& bias) {
  const int64_t frames = encoder_output.size(0) * encoder_output.size(1);
  const int64_t joint_width = weight.size(0), width = weight.size(1);
  torch::stable::Tensor projected = torch::stable::new_empty(encoder_output, {frames, joint_width});
  if (frames > 0) {
    const torch::stable::Tensor rows = as_matrix(encoder_output, frames, width);
    const torch::stable::Tensor columns = as_matrix(weight, width, joint_width, true);
    TORCH_ERROR_CODE_CHECK(
        bias ? products.addmm(projected.get(), bias->get(), rows.get(), columns.get(), 1.0, 1.0)
             : products.mm(projected.get(), rows.get(), columns.get()));
  }
  return projected;
}

}  // namespace rnnt_fastdecode
