// A block's share of the joint + argmax for many rows of 16-bit elements: kRows of the rows that have a frame
// times kColumns columns. The encoder's rows come through the ring of the product; the thread that has copied
// a vector of them turns it into activations before the others read it. The logits are then laid out in
// shared memory, and a few threads look through each row.
#pragma once

#include "block_product.cuh"
#include "joint_activation.cuh"

namespace rnnt_fastdecode::cuda::product {

struct FrameRow {
  int row;  // batch * window + place in the window
  int batch;
  int frame;
};

template <typename T, typename Product, typename Function>
class JointBlock {
 public:
  // Floats from row to row of the logits: lanes that write, of eight columns in every second row, find
  // different banks.
  static constexpr int kLogitStride = Product::kColumns + 4;
  static constexpr int kBytes = Product::kRows * kLogitStride * static_cast<int>(sizeof(float));

  // Into partials [rows, splits].
  __device__ static void run(const JointProblem& p, Function activation, unsigned char* shared, int row_tile,
                             int column_tile, JointPartial* partials, int splits) {
    __shared__ FrameRow rows[Product::kRows];
    const int first = column_tile * Product::kColumns;
    const int columns = min(p.columns() - first, Product::kColumns);
    const int vectors = p.width / kVector<T>;
    const WeightRows weights{static_cast<const uint4*>(p.weight) +
                                 static_cast<int64_t>(first + min(Product::own_row(), columns - 1)) * vectors,
                             static_cast<int64_t>(Product::kStrip) * vectors,
                             ceil_div(columns - Product::own_row(), Product::kStrip)};
    Product product(shared, weights, vectors);
    ptx::wait_for_kernel_before();
    ptx::let_next_kernel_start();
    const int first_row = row_tile * Product::kRows;
    const auto frames = [&](int batch) {
      return max(0, min(min(p.lengths[batch], p.frames) - p.times[batch], p.window));
    };
    const auto place = [&](int i, int batch, int frame) {
      rows[i] = {batch * p.window + frame, batch, p.times[batch] + frame};
    };
    const int count =
        min(find_items<Product::kRows>(p.batch, first_row, frames, place) - first_row, Product::kRows);
    if (count <= 0) {
      return Product::give_up();
    }
    __syncthreads();
    float sums[Product::kSumTiles][kSums] = {};
    multiply(p, product, rows, count, sums, activation);
    auto* logits = reinterpret_cast<float*>(shared);
    store(p, logits, sums, first, columns);
    __syncthreads();
    const JointBlock block(logits, first, columns, p.num_tokens);
    constexpr int kAtOnce = kThreads / kReaders;
#pragma unroll 1
    for (int base = 0; base < count; base += kAtOnce) {
      const int row = base + static_cast<int>(threadIdx.x) / kReaders;
      // Whole warps: the readers of a row exchange what they have found.
      const JointPartial best = block.search(min(row, count - 1));
      if (row < count && threadIdx.x % kReaders == 0) {
        partials[static_cast<int64_t>(rows[row].row) * splits + column_tile] = best;
      }
    }
  }

 private:
  // Threads that look through a row together, four columns at a time.
  static constexpr int kReaders = 8;
  static constexpr int kOwnColumns = Product::kColumns / kReaders;

  __device__ static void multiply(const JointProblem& p, Product& product, const FrameRow* rows, int count,
                                  float (&sums)[Product::kSumTiles][kSums], Function activation) {
    const int vectors = p.width / kVector<T>;
    const uint4* operands[Product::kOwnRows];
    const uint4* labels[Product::kOwnRows];
    uint4 label_values[Product::kOwnRows];
#pragma unroll
    for (int i = 0; i < Product::kOwnRows; ++i) {
      const int r = Product::own_row() + i * Product::kStrip;
      const FrameRow row = rows[min(r, count - 1)];
      const T* frame = static_cast<const T*>(p.encoder) + row.batch * p.encoder_batch_stride +
                       static_cast<int64_t>(row.frame) * p.width;
      operands[i] = r < count ? reinterpret_cast<const uint4*>(frame) : nullptr;
      labels[i] = static_cast<const uint4*>(p.predictor) + static_cast<int64_t>(row.batch) * vectors;
    }
    const auto load_labels = [&](int step) {
      const int v = min(step * Product::kVectors + Product::own_vector(), vectors - 1);
#pragma unroll
      for (int i = 0; i < Product::kOwnRows; ++i) {
        label_values[i] = labels[i][v];
      }
    };
    load_labels(0);
    product.multiply(sums, count, operands, [&](int step, auto values) {
      // Beyond the width there are zeros, which stay zeros.
      if (step * Product::kVectors + Product::own_vector() < vectors) {
#pragma unroll
        for (int i = 0; i < Product::kOwnRows; ++i) {
          values(i) = activated<T>(values(i), label_values[i], activation);
        }
      }
      load_labels(step + 1);
    });
  }

  // Sums with their biases; -inf in the columns that do not exist.
  __device__ static void store(const JointProblem& p, float* logits,
                               const float (&sums)[Product::kSumTiles][kSums], int first, int columns) {
    const int lane = threadIdx.x % kWarp;
    const T* bias = static_cast<const T*>(p.bias);
    const int row = Product::row_group() * Product::kSumTiles * kOctet + lane % 4 * 2;
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      const int column = Product::column_group() * kWarpColumns + octet * kOctet + lane / 4;
      const bool exists = column < columns;
      const float own = exists && bias != nullptr ? to_float(bias[first + column]) : 0.0f;
#pragma unroll
      for (int tile = 0; tile < Product::kSumTiles; ++tile) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          logits[(row + tile * kOctet + j) * kLogitStride + column] =
              exists ? sums[tile][2 * octet + j] + own : -INFINITY;
        }
      }
    }
  }

  __device__ JointBlock(const float* logits, int first, int columns, int num_tokens)
      : logits_(logits),
        first_(first),
        tokens_(min(max(num_tokens - first, 0), columns)),
        columns_(columns),
        num_tokens_(num_tokens) {}

  // The best of the thread's columns in [low, high), as far as `values` goes. NaN is the greatest.
  __device__ static void find(const float (&values)[kOwnColumns], int low, int high, float& top, int& index) {
    top = -INFINITY;
    index = INT32_MAX;
#pragma unroll
    for (int i = 0; i < kOwnColumns; ++i) {
      const int column = own_column(i);
      top = ptx::max_nan(top, column >= low && column < high ? values[i] : -INFINITY);
    }
#pragma unroll
    for (int i = kOwnColumns - 1; i >= 0; --i) {
      const int column = own_column(i);
      const bool best = values[i] == top || isnan(values[i]);
      index = best && column >= low && column < high ? column : index;
    }
  }

  __device__ static int own_column(int i) {
    return (i / 4 * kReaders + static_cast<int>(threadIdx.x) % kReaders) * 4 + i % 4;
  }

  __device__ JointPartial search(int row) const {
    float values[kOwnColumns];
#pragma unroll
    for (int i = 0; i < kOwnColumns; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(logits_ + row * kLogitStride + own_column(i));
      values[i] = four.x;
      values[i + 1] = four.y;
      values[i + 2] = four.z;
      values[i + 3] = four.w;
    }
    JointPartial best = empty_partial();
    find(values, 0, tokens_, best.token_max, best.token);
    // exp(-inf - -inf) must count as nothing, not as NaN.
    const float base = best.token_max == -INFINITY ? 0.0f : best.token_max;
#pragma unroll
    for (int i = 0; i < kOwnColumns; ++i) {
      best.token_sum += own_column(i) < tokens_ ? __expf(values[i] - base) : 0.0f;
    }
    best.token = best.token == INT32_MAX ? INT32_MAX : first_ + best.token;
    if (tokens_ < columns_) {
      find(values, tokens_, columns_, best.duration_max, best.duration);
      best.duration = best.duration == INT32_MAX ? INT32_MAX : first_ + best.duration - num_tokens_;
    }
#pragma unroll
    for (int offset = 1; offset < kReaders; offset *= 2) {
      best = merge(best, shuffled(best, offset));
    }
    return best;
  }

  const float* logits_;
  int first_;
  int tokens_;  // of the block's columns
  int columns_;
  int num_tokens_;
};

}  // namespace rnnt_fastdecode::cuda::product
