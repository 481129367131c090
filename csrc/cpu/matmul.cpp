// Weights are the large operand: they are read once for all rows, in blocks of weight rows that are widened
// to float32 where they are halves, and stay in the cache while tiles of 2 rows x 6 weight rows run over
// them.

#include "matmul.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

namespace rnnt_fastdecode {
namespace {

// One AVX2 register: where there is no AVX-512, GCC splits longer vectors by way of memory. 12 accumulators
// hide the latency of multiply-add and leave AVX2 registers for the operands.
constexpr int kLanes = 8;
constexpr int kTileRows = 2;
constexpr int kTileWeights = 6;

constexpr int64_t kBlock = 24;  // weight rows that a thread takes at a time: 61 KB at 640 columns

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

template <int kRows, int kWeights>
inline __attribute__((always_inline)) void dot_tile(const float* x, const float* weight, int64_t columns,
                                                    float* out, int64_t out_stride) {
  Lanes sums[kRows][kWeights] = {};
  int64_t k = 0;
  for (; k + kLanes <= columns; k += kLanes) {
    for (int r = 0; r < kRows; ++r) {
      const Lanes value = *reinterpret_cast<const Lanes*>(x + r * columns + k);
      for (int n = 0; n < kWeights; ++n) {
        sums[r][n] += value * *reinterpret_cast<const Lanes*>(weight + n * columns + k);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kWeights; ++n) {
      float sum = 0;
      for (int lane = 0; lane < kLanes; ++lane) sum += sums[r][n][lane];
      for (int64_t i = k; i < columns; ++i) sum += x[r * columns + i] * weight[n * columns + i];
      out[r * out_stride + n] = sum;
    }
  }
}

template <int kRows>
inline __attribute__((always_inline)) void dot_rows(const float* x, const float* weight, int64_t weights,
                                                    int64_t columns, float* out, int64_t out_stride) {
  int64_t n = 0;
  for (; n + kTileWeights <= weights; n += kTileWeights) {
    dot_tile<kRows, kTileWeights>(x, weight + n * columns, columns, out + n, out_stride);
  }
  for (; n < weights; ++n) dot_tile<kRows, 1>(x, weight + n * columns, columns, out + n, out_stride);
}

RNNT_FASTDECODE_CLONES void dot_block(const float* x, int64_t count, const float* weight, int64_t weights,
                                      int64_t columns, float* out, int64_t out_stride) {
  int64_t r = 0;
  for (; r + kTileRows <= count; r += kTileRows) {
    dot_rows<kTileRows>(x + r * columns, weight, weights, columns, out + r * out_stride, out_stride);
  }
  for (; r < count; ++r)
    dot_rows<1>(x + r * columns, weight, weights, columns, out + r * out_stride, out_stride);
}

}  // namespace

void multiply(const float* x, int64_t count, const WeightMatrix& weight, float* out) {
  const int64_t blocks = (weight.rows + kBlock - 1) / kBlock;
  const int64_t block_work = count * kBlock * weight.columns;
  const int64_t grain = std::max<int64_t>(1, kMinimumWork / std::max<int64_t>(1, block_work));
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> widened;
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlock;
      const int64_t size = std::min(kBlock, weight.rows - first);
      const int64_t offset = weight.offset + first * weight.columns;
      const float* values;
      if (weight.dtype == ScalarType::Float) {
        values = static_cast<const float*>(weight.data) + offset;
      } else {
        widened.resize(static_cast<size_t>(kBlock * weight.columns));
        load_row(weight.dtype, weight.data, offset, size * weight.columns, widened.data());
        values = widened.data();
      }
      dot_block(x, count, values, size, weight.columns, out + first, weight.rows);
      if (weight.bias == nullptr) continue;
      for (int64_t r = 0; r < count; ++r) {
        float* sums = out + r * weight.rows + first;
        for (int64_t n = 0; n < size; ++n) sums[n] += weight.bias[first + n];
      }
    }
  });
}

}  // namespace rnnt_fastdecode
