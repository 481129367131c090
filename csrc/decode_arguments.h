// The arguments of greedy_decode, checked before any work, and the tensors that its kernels start from.
#pragma once

#include "arguments.h"
#include "result_arguments.h"

namespace rnnt_fastdecode {

// A tensor of a decode state of B rows.
struct StateTensor {
  ScalarType dtype;
  std::vector<int64_t> shape;
  int64_t batch_dim;
};

// What the predictor carries and its output; a state ends with time_jumps and decoded_lengths, both [B].
inline std::vector<StateTensor> carried_tensors(const PredictorSizes& sizes) {
  std::vector<StateTensor> tensors;
  if (sizes.layers > 0) {
    tensors.push_back({sizes.dtype, {sizes.layers, sizes.batch, sizes.width}, 1});
    if (sizes.kind == PredictorKind::kLstm) {
      tensors.push_back({ScalarType::Float, {sizes.layers, sizes.batch, sizes.width}, 1});
    }
  } else {
    tensors.push_back({ScalarType::Int, {sizes.batch, sizes.context - 1}, 0});
  }
  tensors.push_back({sizes.dtype, {sizes.batch, sizes.joint_width}, 0});
  return tensors;
}

struct DecodeSizes {
  JointSizes joint;
  PredictorSizes predictor;
  std::vector<StateTensor> carried;
  int64_t capacity;  // of a row, in labels
  int64_t room;      // of all rows
};

inline DecodeSizes check_greedy_decode(const Tensor& encoder_output, const Tensor& lengths,
                                       const std::vector<Tensor>& state, int64_t window,
                                       const Tensor& encoder_weight,
                                       const std::optional<Tensor>& encoder_bias, const Tensor& weight,
                                       const std::optional<Tensor>& bias, const std::string& activation,
                                       int64_t blank_id, const std::vector<int64_t>& durations,
                                       int64_t max_symbols, const std::string& predictor_kind,
                                       const std::vector<Tensor>& predictor_weights) {
  const CallContext call{"greedy_decode", encoder_output.device()};
  call.dims("encoder_output", encoder_output, 3, "[B, T, D]");
  call.floating("encoder_output", encoder_output);
  call.dims("encoder_weight", encoder_weight, 2, "[J, D]");
  const ScalarType dtype = encoder_output.scalar_type();
  const int64_t batch = encoder_output.size(0), frames = encoder_output.size(1);
  const int64_t joint_width = encoder_weight.size(0), width = encoder_weight.size(1);
  check(joint_width > 0 and width > 0, call.op, ": encoder_weight must not be empty, got shape ",
        shape_of(encoder_weight), ".");
  call.tensor("encoder_output", encoder_output, dtype, {batch, frames, width});
  call.tensor("encoder_weight", encoder_weight, dtype, {joint_width, width});
  if (encoder_bias) call.tensor("encoder_bias", *encoder_bias, dtype, {joint_width});
  DecodeSizes sizes;
  sizes.joint = check_joint_weights(call, dtype, batch, frames, joint_width, weight, bias, window,
                                    count_of(durations), activation);
  sizes.predictor = check_predictor_weights(call, "predictor_", predictor_kind, predictor_weights, dtype,
                                            batch, joint_width);
  check_rules(call, sizes.joint, sizes.predictor, blank_id, durations, max_symbols);
  check(frames == 0 or max_symbols <= INT32_MAX / frames, call.op, ": max_symbols must be at most ",
        INT32_MAX / std::max<int64_t>(frames, 1), " for ", frames, " frames, got ", max_symbols, ".");
  sizes.capacity = frames * max_symbols;
  sizes.room = batch * sizes.capacity;
  check(sizes.room <= INT32_MAX, call.op, ": B * T * max_symbols must be at most ", int64_t{INT32_MAX},
        ", got ", sizes.room, ".");
  check_lengths(call, lengths);
  call.tensor("lengths", lengths, lengths.scalar_type(), {batch});

  sizes.carried = carried_tensors(sizes.predictor);
  std::vector<StateTensor> given = sizes.carried;
  given.push_back({ScalarType::Int, {batch}, 0});
  given.push_back({ScalarType::Long, {batch}, 0});
  check(state.size() == given.size(), call.op, ": state must hold ", count_of(given),
        " tensors for predictor_kind '", predictor_kind, "', got ", count_of(state), ".");
  for (size_t i = 0; i < given.size(); ++i) {
    const Item name{"", "state", static_cast<int64_t>(i)};
    auto& [part_dtype, shape, batch_dim] = given[i];
    call.dims(name, state[i], count_of(shape), "of a decode state");
    if (state[i].size(batch_dim) == 1) shape[batch_dim] = 1;
    call.tensor(name, state[i], part_dtype, Extents{shape.data(), shape.size()});
  }
  return sizes;
}

// Room for what the predictor carries; `next_to` is a tensor on the device.
inline std::vector<Tensor> new_carried(const DecodeSizes& sizes, const Tensor& next_to) {
  std::vector<Tensor> tensors;
  tensors.reserve(sizes.carried.size() + 2);
  for (const StateTensor& part : sizes.carried) {
    tensors.push_back(new_tensor(next_to, part.shape, part.dtype));
  }
  return tensors;
}

}  // namespace rnnt_fastdecode
