// The arguments of greedy_decode, checked before any work, and the tensors that its kernels start from.
#pragma once

#include "network.h"
#include "result_arguments.h"

namespace rnnt_fastdecode {

struct DecodeSizes {
  JointSizes joint;
  PredictorSizes predictor;
  std::vector<StateTensor> carried;
  int64_t capacity;  // of a row, in labels
  int64_t room;      // of all rows
};

// `state` may be empty, for the start of every row.
inline DecodeSizes check_greedy_decode(const CallContext& call, const Tensor& encoder_output,
                                       const Tensor& lengths, const std::vector<Tensor>& state,
                                       int64_t window, const Network& network) {
  call.dims("encoder_output", encoder_output, 3, "[B, T, D]");
  call.floating("encoder_output", encoder_output);
  const int64_t batch = encoder_output.size(0), frames = encoder_output.size(1);
  DecodeSizes sizes;
  sizes.predictor = network.predictor;
  sizes.predictor.batch = batch;
  const int64_t joint_width = sizes.predictor.joint_width;
  call.tensor("encoder_output", encoder_output, sizes.predictor.dtype,
              {batch, frames, network.encoder_width});
  check(window >= 1, call.op, ": window must be at least 1, got ", window, ".");
  sizes.joint = {.batch = batch,
                 .frames = frames,
                 .joint_width = joint_width,
                 .vocab = sizes.predictor.vocab,
                 .num_durations = count_of(network.durations),
                 .encoder_batch_stride = frames * joint_width,
                 .dtype = sizes.predictor.dtype,
                 .activation = network.activation};
  check_rules(call, sizes.joint, sizes.predictor, network.blank_id, network.durations, network.max_symbols);
  check(frames == 0 or network.max_symbols <= INT32_MAX / frames, call.op, ": max_symbols must be at most ",
        INT32_MAX / std::max<int64_t>(frames, 1), " for ", frames, " frames, got ", network.max_symbols, ".");
  sizes.capacity = frames * network.max_symbols;
  sizes.room = batch * sizes.capacity;
  check(sizes.room <= INT32_MAX, call.op, ": B * T * max_symbols must be at most ", int64_t{INT32_MAX},
        ", got ", sizes.room, ".");
  check_lengths(call, lengths);
  call.tensor("lengths", lengths, lengths.scalar_type(), {batch});

  sizes.carried = carried_tensors(sizes.predictor);
  if (state.empty()) return sizes;
  std::vector<StateTensor> given = sizes.carried;
  given.push_back({ScalarType::Int, {batch}, 0});
  given.push_back({ScalarType::Long, {batch}, 0});
  check(state.size() == given.size(), call.op, ": state must hold ", count_of(given),
        " tensors for this predictor, or none, got ", count_of(state), ".");
  for (size_t i = 0; i < given.size(); ++i) {
    const Item name{"", "state", static_cast<int64_t>(i)};
    auto& [part_dtype, shape, batch_dim] = given[i];
    call.dims(name, state[i], count_of(shape), "of a decode state");
    if (state[i].size(batch_dim) == 1) shape[batch_dim] = 1;
    call.tensor(name, state[i], part_dtype, Extents{shape.data(), shape.size()});
  }
  return sizes;
}

// How many records of the labels the host gets: none, or those of all rows and as many labels as are wanted.
inline void check_host_records(const CallContext& call, int64_t records, const DecodeSizes& sizes) {
  const int64_t least = sizes.joint.batch, most = least + sizes.room;
  check(records == 0 or (records >= least and records <= most), call.op,
        ": host_records must be 0 or between ", least, " and ", most, ", got ", records, ".");
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
