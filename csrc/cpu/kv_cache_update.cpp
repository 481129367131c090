// kv_cache_update_ on the CPU: a copy of head_width numbers for every valid frame and head.

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

#include "../arguments.h"

namespace rnnt_fastdecode {
namespace {

void kv_cache_update_(const Tensor& keys, const Tensor& values, const Tensor& lengths, const Tensor& slots,
                      const Tensor& positions, const Tensor& key_cache, const Tensor& value_cache) {
  const CacheSizes sizes =
      check_kv_cache_update(keys, values, lengths, slots, positions, key_cache, value_cache);
  const auto* length = lengths.const_data_ptr<int32_t>();
  const auto* slot = slots.const_data_ptr<int32_t>();
  const auto* position = positions.const_data_ptr<int32_t>();
  std::vector<bool> taken(static_cast<size_t>(sizes.slots));
  for (int64_t b = 0; b < sizes.batch; ++b) {
    if (slot[b] == -1) continue;
    check(slot[b] >= 0 and slot[b] < sizes.slots, "kv_cache_update_: slots must be between -1 and ",
          sizes.slots - 1, ", got ", slot[b], " in row ", b, ".");
    check(not taken[slot[b]], "kv_cache_update_: slots must not repeat, got ", slot[b], " again in row ", b,
          ".");
    check(length[b] >= 0 and length[b] <= sizes.frames, "kv_cache_update_: lengths must be between 0 and ",
          sizes.frames, ", got ", length[b], " in row ", b, ".");
    check(position[slot[b]] >= 0, "kv_cache_update_: positions must not be negative, got ", position[slot[b]],
          " for slot ", slot[b], ".");
    taken[slot[b]] = true;
  }

  const int64_t bytes = sizes.head_width * sizes.element_bytes;
  const auto* key = static_cast<const char*>(keys.const_data_ptr());
  const auto* value = static_cast<const char*>(values.const_data_ptr());
  auto* key_ring = static_cast<char*>(key_cache.mutable_data_ptr());
  auto* value_ring = static_cast<char*>(value_cache.mutable_data_ptr());
  torch::stable::parallel_for(0, sizes.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      if (slot[b] == -1) continue;
      for (int64_t i = std::max<int64_t>(0, length[b] - sizes.capacity); i < length[b]; ++i) {
        const int64_t place = (position[slot[b]] + i) % sizes.capacity;
        for (int64_t head = 0; head < sizes.heads; ++head) {
          const int64_t from = ((b * sizes.frames + i) * sizes.heads + head) * bytes;
          const int64_t to = ((slot[b] * sizes.heads + head) * sizes.capacity + place) * bytes;
          std::memcpy(key_ring + to, key + from, static_cast<size_t>(bytes));
          std::memcpy(value_ring + to, value + from, static_cast<size_t>(bytes));
        }
      }
    }
  });
}

}  // namespace
}  // namespace rnnt_fastdecode

STABLE_TORCH_LIBRARY_IMPL(rnnt_fastdecode, CPU, m) {
  m.impl("kv_cache_update_", TORCH_BOX(&rnnt_fastdecode::kv_cache_update_));
}
