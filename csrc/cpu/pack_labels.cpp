// pack_labels on the CPU: one pass over the rows of the tables.

#include <algorithm>
#include <cstring>

#include "../result_arguments.h"
#include "loop.h"

namespace rnnt_fastdecode {
namespace {

constexpr int64_t kWords = 4;

}  // namespace

Tensor cpu::pack_labels(const Tensor& tokens, const Tensor& frames, const Tensor& token_durations,
                        const Tensor& log_probs, const Tensor& counts, const Tensor& lengths,
                        const Tensor& decoded_lengths, int64_t room) {
  const PackSizes sizes =
      check_pack_labels(tokens, frames, token_durations, log_probs, counts, lengths, decoded_lengths, room);
  const bool wide = lengths.scalar_type() == ScalarType::Long;
  const auto* count = counts.const_data_ptr<int32_t>();
  int64_t total = 0;
  for (int64_t b = 0; b < sizes.batch; ++b) {
    check(count[b] >= 0 and count[b] <= sizes.capacity, "pack_labels: counts must be between 0 and ",
          sizes.capacity, ", got ", count[b], " in row ", b, ".");
    total += count[b];
  }
  check(total <= room, "pack_labels: room must hold all ", total, " labels, got ", room, ".");

  Tensor packed = new_tensor(tokens, {sizes.batch + room, kWords}, ScalarType::Int);
  auto* row = packed.mutable_data_ptr<int32_t>();
  auto* label = row + sizes.batch * kWords;
  const auto* decoded = decoded_lengths.const_data_ptr<int64_t>();
  int32_t begin = 0;
  for (int64_t b = 0; b < sizes.batch; ++b, row += kWords) {
    const int64_t table = b * sizes.capacity;
    const auto before = static_cast<int32_t>(decoded[decoded_lengths.size(0) == 1 ? 0 : b]);
    double score = 0;
    for (int64_t i = table; i < table + count[b]; ++i, label += kWords) {
      const float log_prob = log_probs.const_data_ptr<float>()[i];
      label[0] = tokens.const_data_ptr<int32_t>()[i];
      label[1] = frames.const_data_ptr<int32_t>()[i] + before;
      label[2] = token_durations.const_data_ptr<int32_t>()[i];
      std::memcpy(label + 3, &log_prob, sizeof(float));
      score += log_prob;
    }
    const auto rounded = static_cast<float>(score);
    const int64_t length = wide ? lengths.const_data_ptr<int64_t>()[b] : lengths.const_data_ptr<int32_t>()[b];
    row[0] = begin;
    row[1] = count[b];
    std::memcpy(row + 2, &rounded, sizeof(float));
    row[3] = static_cast<int32_t>(std::clamp<int64_t>(length, INT32_MIN, INT32_MAX));
    begin += count[b];
  }
  return packed;
}

}  // namespace rnnt_fastdecode

STABLE_TORCH_LIBRARY_IMPL(rnnt_fastdecode, CPU, m) {
  m.impl("pack_labels", TORCH_BOX(&rnnt_fastdecode::cpu::pack_labels));
}
