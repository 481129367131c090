// A block's share of an LSTM or GRU prediction network whose rounds are prepared ahead, for many rows of
// 16-bit elements. The recurrent halves of all layers' sums depend on the state alone: they are computed
// beside the joint, for every row that has a frame, before it is known which of them get a label. What a
// label adds to the first layer's sums is in a table. So the steps between a label and the next joint are the
// first layer's units, the input half of every other layer, and the projection.
#pragma once

#include "block_product.cuh"
#include "joint_argmax.cuh"
#include "recurrent_cell.cuh"

namespace rnnt_fastdecode::cuda {

struct AheadProblem {
  RecurrentProblem predictor;  // next_hidden is not used: who writes `hidden` runs after all who read it
  const float4* table;         // [V, H] the four sums of the first layer's units over the input, with biases
  float4* gates;               // [L, B, H] scratch: recurrent halves, from the second layer on with biases
};

// The new state of a unit out of its sums: those that are ready and those of the input.
template <typename T, typename Cell>
__device__ inline void update_unit(const RecurrentProblem& p, int64_t place, const float4& ready,
                                   const float4& input) {
  const float sums[kCellSums] = {ready.x + input.x, ready.y + input.y, ready.z + input.z, ready.w + input.w};
  const float state = Cell::template state<T>(p, place);
  static_cast<T*>(p.hidden)[place] = from_float<T>(Cell::template update<T>(p, place, state, sums));
}

// The first layer's step of a row, by a whole block.
template <typename T, typename Cell>
struct FirstLayer {
  static constexpr int kWarps = 8;

  AheadProblem ahead;

  __device__ void operator()(int row, int label) const {
    const RecurrentProblem& p = ahead.predictor;
    for (int unit = threadIdx.x; unit < p.hidden_width; unit += blockDim.x) {
      const int64_t place = static_cast<int64_t>(row) * p.hidden_width + unit;
      update_unit<T, Cell>(p, place, ahead.gates[place],
                           __ldg(ahead.table + static_cast<int64_t>(label) * p.hidden_width + unit));
    }
  }
};

namespace product {

// The batch rows of a block.
template <typename T, typename Product>
struct BatchRows {
  int rows[Product::kRows];

  // Of the rows that are wanted: those of this tile. Returns how many.
  template <typename Wanted>
  __device__ int find(int batch, int tile, Wanted wanted) {
    const int first = tile * Product::kRows;
    const int all = find_items<Product::kRows>(
        batch, first, [&](int row) { return wanted(row) ? 1 : 0; },
        [&](int place, int row, int) { rows[place] = row; });
    __syncthreads();
    return min(all - first, Product::kRows);
  }

  // Adds hidden values of a layer times the product's weights to the sums.
  __device__ void multiply_hidden(const RecurrentProblem& p, Product& product, int layer, int count,
                                  float (&sums)[Product::kSumTiles][kSums]) const {
    if (count <= 0) {
      return Product::give_up();
    }
    const int64_t vectors = p.hidden_width / kVector<T>;
    const auto* hidden = static_cast<const uint4*>(p.hidden) + layer * p.batch * vectors;
    const uint4* operands[Product::kOwnRows];
#pragma unroll
    for (int i = 0; i < Product::kOwnRows; ++i) {
      const int r = Product::own_row() + i * Product::kStrip;
      operands[i] = r < count ? hidden + rows[r] * vectors : nullptr;
    }
    product.multiply(sums, count, operands, [](int, auto) {});
  }

  // Calls visit(row, tile, j) for the rows that the lane's sums belong to.
  template <typename Visit>
  __device__ void for_own_rows(int count, Visit visit) const {
    const int first = Product::row_group() * Product::kSumTiles * kOctet + threadIdx.x % 4 * 2;
#pragma unroll
    for (int tile = 0; tile < Product::kSumTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int r = first + tile * kOctet + j;
        if (r < count) {
          visit(rows[r], tile, j);
        }
      }
    }
  }
};

// The four sums of kUnits units of a layer: a warp's octets are those of eight units.
template <typename T, typename Product>
class GateBlock {
 public:
  static constexpr int kUnits = Product::kColumns / kOctets;

  // The recurrent halves of rows that have a frame.
  __device__ static void run_recurrent(const AheadProblem& ahead, const JointProblem& joint,
                                       unsigned char* shared, int row_tile, int layer, int unit_tile) {
    const RecurrentProblem& p = ahead.predictor;
    __shared__ BatchRows<T, Product> rows;
    const WeightRows weights =
        with_cell(p, [&](auto cell) { return weight_rows<decltype(cell)>(p, layer, unit_tile, true); });
    Product product(shared, weights, p.hidden_width / kVector<T>);
    ptx::wait_for_kernel_before();
    ptx::let_next_kernel_start();
    const int count = rows.find(
        p.batch, row_tile, [&](int row) { return joint.times[row] < min(joint.lengths[row], joint.frames); });
    const int unit = own_unit(unit_tile);
    const int64_t start = static_cast<int64_t>(layer) * p.batch * p.hidden_width;
    float sums[Product::kSumTiles][kSums] = {};
    rows.multiply_hidden(p, product, layer, count, sums);
    if (unit >= p.hidden_width) {
      return;
    }
    float bias[kCellSums] = {};
    if (layer > 0) {
      with_cell(p, [&](auto cell) {
#pragma unroll
        for (int sum = 0; sum < kCellSums; ++sum) {
          bias[sum] = decltype(cell)::bias(p, layer, sum, unit);
        }
      });
    }
    rows.for_own_rows(count, [&](int row, int tile, int j) {
      const auto& s = sums[tile];
      ahead.gates[start + static_cast<int64_t>(row) * p.hidden_width + unit] = {
          s[j] + bias[0], s[2 + j] + bias[1], s[4 + j] + bias[2], s[6 + j] + bias[3]};
    });
  }

  // The step of a layer after the first, of rows that have a label.
  template <typename Cell>
  __device__ static void run_layer(const AheadProblem& ahead, unsigned char* shared, int row_tile, int layer,
                                   int unit_tile) {
    const RecurrentProblem& p = ahead.predictor;
    __shared__ BatchRows<T, Product> rows;
    Product product(shared, weight_rows<Cell>(p, layer, unit_tile, false), p.hidden_width / kVector<T>);
    ptx::wait_for_kernel_before();
    ptx::let_next_kernel_start();
    const int count = rows.find(p.batch, row_tile, [&](int row) { return p.labels[row] >= 0; });
    const int unit = own_unit(unit_tile);
    const int64_t start = static_cast<int64_t>(layer) * p.batch * p.hidden_width;
    float sums[Product::kSumTiles][kSums] = {};
    rows.multiply_hidden(p, product, layer - 1, count, sums);
    if (unit >= p.hidden_width) {
      return;
    }
    rows.for_own_rows(count, [&](int row, int tile, int j) {
      const int64_t place = start + static_cast<int64_t>(row) * p.hidden_width + unit;
      const auto& s = sums[tile];
      update_unit<T, Cell>(p, place, ahead.gates[place], {s[j], s[2 + j], s[4 + j], s[6 + j]});
    });
  }

 private:
  __device__ static int own_unit(int unit_tile) {
    return unit_tile * kUnits + Product::column_group() * kOctet + static_cast<int>(threadIdx.x) % kWarp / 4;
  }

  // The weights of the block's units: the recurrent half or that of the input.
  template <typename Cell>
  __device__ static WeightRows weight_rows(const RecurrentProblem& p, int layer, int unit_tile,
                                           bool recurrent) {
    const int vectors = p.hidden_width / kVector<T>;
    const CellRows rows = Cell::rows(p.hidden_width);
    const int sum = Product::own_row() / kOctet;
    const int first = unit_tile * kUnits + Product::own_row() % kOctet;
    const int64_t row = static_cast<int64_t>(layer) * rows.layer + Cell::gate(sum) * rows.gate +
                        min(first, p.hidden_width - 1) * rows.unit + (recurrent ? rows.side : 0);
    const bool has_weights = recurrent ? Cell::Hidden::has(sum) : Cell::Input::has(sum);
    return {static_cast<const uint4*>(p.weight) + row * vectors,
            static_cast<int64_t>(kOctet) * rows.unit * vectors,
            has_weights ? ceil_div(p.hidden_width - first, kOctet) : 0};
  }
};

// Columns of the projection of rows that have a label.
template <typename T, typename Product>
struct ProjectionBlock {
  __device__ static void run(const RecurrentProblem& p, unsigned char* shared, int row_tile,
                             int column_tile) {
    __shared__ BatchRows<T, Product> rows;
    const int vectors = p.hidden_width / kVector<T>;
    const int first = column_tile * Product::kColumns;
    const int own = first + Product::own_row();
    const WeightRows weights{static_cast<const uint4*>(p.projection) +
                                 static_cast<int64_t>(min(own, p.output_width - 1)) * vectors,
                             static_cast<int64_t>(Product::kStrip) * vectors,
                             ceil_div(p.output_width - own, Product::kStrip)};
    Product product(shared, weights, vectors);
    ptx::wait_for_kernel_before();
    ptx::let_next_kernel_start();
    const int count = rows.find(p.batch, row_tile, [&](int row) { return p.labels[row] >= 0; });
    float sums[Product::kSumTiles][kSums] = {};
    rows.multiply_hidden(p, product, p.layers - 1, count, sums);

    const T* bias = static_cast<const T*>(p.projection_bias);
    T* output = static_cast<T*>(p.output);
    const int column =
        first + Product::column_group() * kWarpColumns + static_cast<int>(threadIdx.x) % kWarp / 4;
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      const int c = column + octet * kOctet;
      if (c < p.output_width) {
        const float own_bias = to_float(bias[c]);
        rows.for_own_rows(count, [&](int row, int tile, int j) {
          output[static_cast<int64_t>(row) * p.output_width + c] =
              from_float<T>(sums[tile][2 * octet + j] + own_bias);
        });
      }
    }
  }
};

}  // namespace product
}  // namespace rnnt_fastdecode::cuda
