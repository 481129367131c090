// activations x weights^T with sums in float32, for weights stored in any dtype.
#pragma once

#include <initializer_list>
#include <vector>

#include "crew.h"
#include "kernels.h"
#include "numeric.h"

namespace rnnt_fastdecode {

// A weight matrix [rows, columns] as torch stores it, with the bias (may be null) already in float32.
struct WeightMatrix {
  const void* data;
  int64_t offset;  // of the first element, in elements
  int64_t rows, columns;
  ScalarType dtype;
  const float* bias;
};

// Rows of numbers of `dtype` in the form that the kernels multiply: bfloat16 where the machine multiplies
// that with bfloat16, float32 otherwise. Different threads may write different parts.
class Activations {
 public:
  explicit Activations(ScalarType dtype)
      : dtype_(dtype), halves_(dtype == ScalarType::BFloat16 and kernels().dot_bfloat16_pairs != nullptr) {}

  // Makes room for `rows` rows; what was in them is lost.
  void resize(int64_t rows, int64_t columns);

  // Puts numbers of dtype into [row, column ..].
  void load(int64_t row, int64_t column, const void* base, int64_t offset, int64_t count);
  // Puts float32 numbers there, rounded to dtype.
  void store(int64_t row, int64_t column, const float* values, int64_t count);

  // To be called by one thread once all rows are there.
  void finish();

  // out[r, n] = the sum over the columns of row begin + r times weight row first + n, plus its bias.
  void multiply(int64_t begin, int64_t end, const WeightMatrix& weight, int64_t first, int64_t count,
                float* out, int64_t out_stride) const;

 private:
  ScalarType dtype_;
  bool halves_;
  int64_t rows_ = 0, columns_ = 0;
  std::vector<float> floats_;
  std::vector<BFloat16> bfloat16_;
  // Rows with subnormal numbers, for which products of bfloat16 with bfloat16 have no regard: they are
  // multiplied as float32.
  std::vector<std::atomic<bool>> subnormal_;
  bool any_subnormal_ = false;
};

// A matrix product whose results [rows, weight.rows] consist of groups (gates) of `units` columns each.
struct Product {
  Activations* activations;
  const WeightMatrix* weight;
  float* out;
};

// Units in blocks of nearly equal size, whole vectors where there are enough of them. Long blocks are read
// from memory faster than short ones, a few for each thread make up for unequal threads.
struct UnitBlocks {
  int64_t units, step, count;

  UnitBlocks(int64_t units, int64_t members) : units(units), step(16), count(4 * members) {
    while (count > members and units < count * step) count /= 2;
    if (units < count * step) step = 4;
    count = std::clamp<int64_t>(units / step, 1, count);
  }
  int64_t start(int64_t block) const { return block == count ? units : units * block / count / step * step; }
};

// The products of `rows` rows, for a block of units and of rows at a time, and then(first_row, end_row,
// first_unit, end_unit) for each block once all its results are there. Every sum is taken in the same order
// whatever `rows` and the number of threads are, so a row's result does not depend on the batch it is in.
template <typename Then>
void multiply(Crew& crew, std::initializer_list<Product> products, int64_t rows, int64_t units,
              const Then& then) {
  constexpr int64_t kRowBlock = 64;  // of 1280 columns in float32: 328 KB, which the second cache holds
  int64_t work = 0;
  for (const Product& product : products) {
    product.activations->finish();
    work += rows * product.weight->rows * product.weight->columns;
  }
  const int64_t row_blocks = (rows + kRowBlock - 1) / kRowBlock;
  const UnitBlocks blocks(units, crew.members());
  crew.share(blocks.count * row_blocks, work, [&](int64_t chunk) {
    const int64_t first_row = chunk % row_blocks * kRowBlock, end_row = std::min(first_row + kRowBlock, rows);
    const int64_t first = blocks.start(chunk / row_blocks), end = blocks.start(chunk / row_blocks + 1);
    for (const Product& product : products) {
      const int64_t width = product.weight->rows;
      for (int64_t group = 0; group < width; group += units) {
        product.activations->multiply(first_row, end_row, *product.weight, group + first, end - first,
                                      product.out + first_row * width + group + first, width);
      }
    }
    then(first_row, end_row, first, end);
  });
}

}  // namespace rnnt_fastdecode
