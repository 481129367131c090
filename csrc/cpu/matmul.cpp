#include "matmul.h"

#include <cstring>

namespace rnnt_fastdecode {

void Activations::resize(int64_t rows, int64_t columns) {
  rows_ = rows;
  columns_ = columns;
  const auto size = static_cast<size_t>(rows * columns);
  if (floats_.size() < size) floats_.resize(size);
  if (not halves_) return;
  if (bfloat16_.size() < size) bfloat16_.resize(size);
  if (subnormal_.size() < static_cast<size_t>(rows)) {
    subnormal_ = std::vector<std::atomic<bool>>(static_cast<size_t>(rows));
  }
  for (auto& row : subnormal_) row.store(false, std::memory_order_relaxed);
}

void Activations::load(int64_t row, int64_t column, const void* base, int64_t offset, int64_t count) {
  const int64_t place = row * columns_ + column;
  if (not halves_) {
    load_row(dtype_, base, offset, count, floats_.data() + place);
    return;
  }
  BFloat16* values = bfloat16_.data() + place;
  std::memcpy(values, static_cast<const BFloat16*>(base) + offset,
              static_cast<size_t>(count) * sizeof(BFloat16));
  if (kernels().any_subnormal(values, count)) subnormal_[row].store(true, std::memory_order_relaxed);
}

void Activations::store(int64_t row, int64_t column, const float* values, int64_t count) {
  const int64_t place = row * columns_ + column;
  if (not halves_) {
    std::copy_n(values, count, floats_.data() + place);
    round_row(dtype_, floats_.data() + place, count);
    return;
  }
  kernels().narrow_bfloat16(values, count, bfloat16_.data() + place);
  if (kernels().any_subnormal(bfloat16_.data() + place, count)) {
    subnormal_[row].store(true, std::memory_order_relaxed);
  }
}

void Activations::finish() {
  any_subnormal_ = false;
  for (int64_t row = 0; halves_ and row < rows_; ++row) {
    if (not subnormal_[row].load(std::memory_order_relaxed)) continue;
    any_subnormal_ = true;
    const int64_t place = row * columns_;
    kernels().widen_bfloat16(bfloat16_.data() + place, columns_, floats_.data() + place);
  }
}

void Activations::multiply(int64_t begin, int64_t end, const WeightMatrix& weight, int64_t first,
                           int64_t count, float* out, int64_t out_stride) const {
  const int64_t offset = weight.offset + first * columns_;
  const float* bias = weight.bias ? weight.bias + first : nullptr;
  const auto as_floats = [&](int64_t row, int64_t rows, auto dot, auto* values) {
    dot(floats_.data() + row * columns_, rows, values + offset, count, columns_, bias,
        out + (row - begin) * out_stride, out_stride);
  };
  const Kernels& kernel = kernels();
  if (dtype_ == ScalarType::Float) {
    as_floats(begin, end - begin, kernel.dot_float, static_cast<const float*>(weight.data));
    return;
  }
  if (dtype_ == ScalarType::Half) {
    as_floats(begin, end - begin, kernel.dot_half, static_cast<const Half*>(weight.data));
    return;
  }
  const auto* values = static_cast<const BFloat16*>(weight.data);
  if (not halves_) {
    as_floats(begin, end - begin, kernel.dot_bfloat16, values);
    return;
  }
  for (int64_t row = begin; row < end;) {
    if (any_subnormal_ and subnormal_[row].load(std::memory_order_relaxed)) {
      as_floats(row++, 1, kernel.dot_bfloat16, values);
      continue;
    }
    int64_t stop = end;
    if (any_subnormal_) {
      stop = row + 1;
      while (stop < end and not subnormal_[stop].load(std::memory_order_relaxed)) ++stop;
    }
    kernel.dot_bfloat16_pairs(bfloat16_.data() + row * columns_, stop - row, values + offset, count, columns_,
                              bias, out + (row - begin) * out_stride, out_stride);
    row = stop;
  }
}

}  // namespace rnnt_fastdecode
