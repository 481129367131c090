// The CUDA kernels around the greedy loop as torch ops: checks, output tensors, the current stream.

#include <algorithm>

#include "../result_arguments.h"
#include "launch.h"
#include "pack_labels.cuh"
#include "state_rows.cuh"

namespace rnnt_fastdecode {
namespace {

bool wide(const Tensor& lengths) { return lengths.scalar_type() == ScalarType::Long; }

cuda::StateParts state_parts(const char* op, const std::vector<StatePart>& parts, int64_t batch) {
  check(parts.size() <= cuda::kMaxStateParts, op, ": state must hold at most ", int64_t{cuda::kMaxStateParts},
        " tensors on CUDA, got ", count_of(parts), ".");
  cuda::StateParts state{
      .part = {}, .count = static_cast<int>(parts.size()), .batch = static_cast<int>(batch)};
  std::copy(parts.begin(), parts.end(), state.part);
  return state;
}

void load_rows(Tensor lengths, Tensor time_jumps, std::vector<Tensor> given, std::vector<int64_t> batch_dims,
               int64_t frames, Tensor row_lengths, Tensor times, Tensor symbols, Tensor counts,
               std::vector<Tensor> state) {
  const LoadSizes sizes = check_load_rows(lengths, time_jumps, given, batch_dims, frames, row_lengths, times,
                                          symbols, counts, state);
  const cuda::LoadProblem problem{.state = state_parts("load_rows_", sizes.parts, sizes.batch),
                                  .lengths = lengths.const_data_ptr(),
                                  .wide_lengths = wide(lengths),
                                  .time_jumps = ints(time_jumps),
                                  .one_time_jump = time_jumps.size(0) == 1,
                                  .frames = static_cast<int>(frames),
                                  .rows = static_cast<int>(sizes.rows),
                                  .row_lengths = mutable_ints(row_lengths),
                                  .times = mutable_ints(times),
                                  .symbols = mutable_ints(symbols),
                                  .counts = mutable_ints(counts)};
  if (sizes.rows > 0) {
    const Launch launch(row_lengths);
    check_cuda("load_rows_", cuda::launch_load_rows(problem, launch.stream));
  }
}

std::vector<Tensor> save_rows(std::vector<Tensor> state, std::vector<int64_t> batch_dims, Tensor times,
                              Tensor row_lengths, Tensor decoded_lengths, int64_t batch) {
  const SavedRows saved = check_save_rows(state, batch_dims, times, row_lengths, decoded_lengths, batch);
  const Tensor &time_jumps = saved.tensors[state.size()], &decoded = saved.tensors[state.size() + 1];
  const cuda::SaveProblem problem{
      .state = state_parts("save_rows", saved.parts, batch),
      .times = ints(times),
      .row_lengths = ints(row_lengths),
      .decoded_lengths = static_cast<const int64_t*>(decoded_lengths.const_data_ptr()),
      .one_decoded_length = decoded_lengths.size(0) == 1,
      .time_jumps = mutable_ints(time_jumps),
      .decoded = static_cast<int64_t*>(decoded.mutable_data_ptr())};
  if (batch > 0) {
    const Launch launch(times);
    check_cuda("save_rows", cuda::launch_save_rows(problem, launch.stream));
  }
  return saved.tensors;
}

Tensor pack_labels(Tensor tokens, Tensor frames, Tensor token_durations, Tensor log_probs, Tensor counts,
                   Tensor lengths, Tensor decoded_lengths, int64_t room) {
  const PackSizes sizes =
      check_pack_labels(tokens, frames, token_durations, log_probs, counts, lengths, decoded_lengths, room);
  constexpr int64_t kWords = sizeof(int4) / sizeof(int);
  Tensor packed = new_tensor(tokens, {sizes.batch + room, kWords}, ScalarType::Int);
  if (sizes.batch > 0) {
    const cuda::PackProblem problem{
        .tokens = ints(tokens),
        .frames = ints(frames),
        .token_durations = ints(token_durations),
        .log_probs = static_cast<const float*>(log_probs.const_data_ptr()),
        .counts = ints(counts),
        .lengths = lengths.const_data_ptr(),
        .wide_lengths = wide(lengths),
        .decoded_lengths = static_cast<const int64_t*>(decoded_lengths.const_data_ptr()),
        .one_decoded_length = decoded_lengths.size(0) == 1,
        .batch = static_cast<int>(sizes.batch),
        .capacity = static_cast<int>(sizes.capacity),
        .room = static_cast<int>(room),
        .packed = reinterpret_cast<int4*>(mutable_ints(packed)),
        .host = nullptr,
        .host_records = 0,
        .ends = {}};
    const Launch launch(tokens);
    check_cuda("pack_labels", cuda::launch_pack_labels(problem, launch.stream));
  }
  return packed;
}

}  // namespace
}  // namespace rnnt_fastdecode

STABLE_TORCH_LIBRARY_IMPL(rnnt_fastdecode, CUDA, m) {
  m.impl("load_rows_", TORCH_BOX(&rnnt_fastdecode::load_rows));
  m.impl("save_rows", TORCH_BOX(&rnnt_fastdecode::save_rows));
  m.impl("pack_labels", TORCH_BOX(&rnnt_fastdecode::pack_labels));
}
