// load_rows_ and save_rows on the CPU: copies of bytes, row after row.

#include <algorithm>
#include <cstring>

#include "../result_arguments.h"
#include "loop.h"

namespace rnnt_fastdecode {
namespace {

void copy_rows(const std::vector<StatePart>& parts, int64_t batch) {
  for (const StatePart& part : parts) {
    for (int64_t block = 0; block < part.outer; ++block) {
      const auto* from = static_cast<const char*>(part.from) + block * part.from_rows * part.row_bytes;
      auto* to = static_cast<char*>(part.to) + block * part.to_rows * part.row_bytes;
      if (part.from_rows > 1 or batch == 1) {
        std::memcpy(to, from, static_cast<size_t>(batch * part.row_bytes));
        continue;
      }
      for (int64_t row = 0; row < batch; ++row) {
        std::memcpy(to + row * part.row_bytes, from, static_cast<size_t>(part.row_bytes));
      }
    }
  }
}

}  // namespace

void cpu::load_rows(const Tensor& lengths, const Tensor& time_jumps, const std::vector<Tensor>& given,
                    const std::vector<int64_t>& batch_dims, int64_t frames, const Tensor& row_lengths,
                    const Tensor& times, const Tensor& symbols, const Tensor& counts,
                    const std::vector<Tensor>& state) {
  const LoadSizes sizes = check_load_rows(lengths, time_jumps, given, batch_dims, frames, row_lengths, times,
                                          symbols, counts, state);
  const bool wide = lengths.scalar_type() == ScalarType::Long;
  const auto* jumps = time_jumps.const_data_ptr<int32_t>();
  auto* length = row_lengths.mutable_data_ptr<int32_t>();
  auto* time = times.mutable_data_ptr<int32_t>();
  for (int64_t b = 0; b < sizes.batch; ++b) {
    const int64_t value = wide ? lengths.const_data_ptr<int64_t>()[b] : lengths.const_data_ptr<int32_t>()[b];
    length[b] = static_cast<int32_t>(std::clamp<int64_t>(value, 0, frames));
    time[b] = jumps[time_jumps.size(0) == 1 ? 0 : b];
  }
  std::fill(length + sizes.batch, length + sizes.rows, 0);
  std::fill_n(symbols.mutable_data_ptr<int32_t>(), sizes.rows, 0);
  std::fill_n(counts.mutable_data_ptr<int32_t>(), sizes.rows, 0);
  copy_rows(sizes.parts, sizes.batch);
}

std::vector<Tensor> cpu::save_rows(const std::vector<Tensor>& state, const std::vector<int64_t>& batch_dims,
                                   const Tensor& times, const Tensor& row_lengths,
                                   const Tensor& decoded_lengths, int64_t batch) {
  const SavedRows saved = check_save_rows(state, batch_dims, times, row_lengths, decoded_lengths, batch);
  copy_rows(saved.parts, batch);
  const auto* time = times.const_data_ptr<int32_t>();
  const auto* length = row_lengths.const_data_ptr<int32_t>();
  const auto* before = decoded_lengths.const_data_ptr<int64_t>();
  auto* time_jumps = saved.tensors[state.size()].mutable_data_ptr<int32_t>();
  auto* decoded = saved.tensors[state.size() + 1].mutable_data_ptr<int64_t>();
  for (int64_t b = 0; b < batch; ++b) {
    time_jumps[b] = std::max(0, time[b] - length[b]);
    decoded[b] = before[decoded_lengths.size(0) == 1 ? 0 : b] + length[b];
  }
  return saved.tensors;
}

}  // namespace rnnt_fastdecode

STABLE_TORCH_LIBRARY_IMPL(rnnt_fastdecode, CPU, m) {
  m.impl("load_rows_", TORCH_BOX(&rnnt_fastdecode::cpu::load_rows));
  m.impl("save_rows", TORCH_BOX(&rnnt_fastdecode::cpu::save_rows));
}
