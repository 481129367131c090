// greedy_decode on the CPU: the ops of the greedy loop, one after the other.

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <cstring>

#include "../decode_arguments.h"
#include "../projection.h"
#include "loop.h"

namespace rnnt_fastdecode {
namespace {

constexpr MatrixProducts kProducts{aoti_torch_cpu_mm_out, aoti_torch_cpu_addmm_out};

std::tuple<Tensor, Tensor, std::vector<Tensor>> greedy_decode(
    const Tensor& encoder_output, const Tensor& lengths, const std::vector<Tensor>& given_state,
    int64_t window, const Tensor& block, const std::vector<int64_t>& numbers, int64_t host_records) {
  const CallContext call{"greedy_decode", encoder_output.device()};
  const Network network = read_network(call, block, numbers);
  const DecodeSizes sizes = check_greedy_decode(call, encoder_output, lengths, given_state, window, network);
  check_host_records(call, host_records, sizes);
  const auto tensors = [&](const std::vector<NetworkPart>& parts) {
    std::vector<Tensor> all;
    for (const NetworkPart& part : parts) all.push_back(part.tensor(block));
    return all;
  };
  const std::vector<Tensor> state = given_state.empty() ? tensors(network.start) : given_state;
  const int64_t batch = sizes.joint.batch, frames = sizes.joint.frames;
  const auto empty = [&](std::initializer_list<int64_t> shape, ScalarType of) {
    return new_tensor(encoder_output, shape, of);
  };
  const auto counters = [&] { return empty({batch}, ScalarType::Int); };
  const auto table = [&](ScalarType of) { return empty({batch, sizes.capacity}, of); };

  std::vector<Tensor> carried = new_carried(sizes, encoder_output), given(state.begin(), state.end() - 2);
  const Tensor &time_jumps = state[given.size()], &decoded_lengths = state[given.size() + 1];
  std::vector<int64_t> batch_dims;
  for (const StateTensor& part : sizes.carried) batch_dims.push_back(part.batch_dim);
  const Tensor row_lengths = counters(), times = counters(), symbols = counters(), counts = counters();
  cpu::load_rows(lengths, time_jumps, given, batch_dims, frames, row_lengths, times, symbols, counts,
                 carried);

  const Tensor encoder =
      torch::stable::view(project_frames(kProducts, encoder_output, network.encoder_weight.tensor(block),
                                         network.encoder_bias.optional_tensor(block)),
                          {batch, frames, sizes.joint.joint_width});
  const Tensor tokens = table(ScalarType::Int), token_frames = table(ScalarType::Int),
               token_durations = table(ScalarType::Int), log_probs = table(ScalarType::Float),
               active = empty({1}, ScalarType::Int), output = carried.back();
  std::vector<Tensor> predictor_state(carried.begin(), carried.end() - 1);
  if (sizes.predictor.layers > 0) predictor_state.push_back(torch::stable::empty_like(carried[0]));
  cpu::greedy_rounds(encoder, row_lengths, network.weight.tensor(block), network.bias.optional_tensor(block),
                     name_of(network.activation), network.blank_id, network.durations, network.max_symbols,
                     window, -1, name_of(sizes.predictor.kind), tensors(network.predictor_weights),
                     predictor_state, output, times, symbols, tokens, token_frames, token_durations,
                     log_probs, counts, active, {}, 0);
  Tensor labels = cpu::pack_labels(tokens, token_frames, token_durations, log_probs, counts, lengths,
                                   decoded_lengths, sizes.room);
  const Tensor host_labels = empty({host_records, labels.size(1)}, ScalarType::Int);
  std::memcpy(host_labels.mutable_data_ptr(), labels.const_data_ptr(),
              static_cast<size_t>(host_labels.numel()) * sizeof(int32_t));
  for (const Tensor& part : cpu::save_rows({}, {}, times, row_lengths, decoded_lengths, batch)) {
    carried.push_back(part);
  }
  return {labels, host_labels, carried};
}

}  // namespace
}  // namespace rnnt_fastdecode

STABLE_TORCH_LIBRARY_IMPL(rnnt_fastdecode, CPU, m) {
  m.impl("greedy_decode", TORCH_BOX(&rnnt_fastdecode::greedy_decode));
}
