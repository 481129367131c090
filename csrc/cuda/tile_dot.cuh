// The matrix primitive of the decoder: kTileRows activation rows in shared memory times kTileColumns weight
// rows in device memory, by one warp, accumulated in fp32 (true fp32 for float inputs, no TF32).
//
// A warp holds kTileRows x kTileColumns = 32 sums, one for each lane at the end: every lane multiplies its
// own slice of the depth, then a butterfly halves the number of sums a lane carries at each of five steps.
// Lane l returns the sum of row l / kTileColumns and column l % kTileColumns.
#pragma once

#include <cstdint>

#include "numeric.cuh"

namespace rnnt_fastdecode::cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;
constexpr int kTileRows = 8;
constexpr int kTileColumns = 4;
static_assert(kTileRows * kTileColumns == kWarp, "one sum for each lane");

// Elements of one 16-byte access.
template <typename T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

template <typename T>
inline bool is_vectorizable(const void* pointer, int64_t depth) {
  return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0 && depth % kVector<T> == 0;
}

template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T value[N];
};

template <int Offset, int Count>
__device__ inline void butterfly(float (&sums)[kWarp], int lane) {
  // The upper half of each lane pair keeps the upper half of the sums.
  const bool upper = (lane & Offset) != 0;
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const float keep = upper ? sums[i + Count] : sums[i];
    const float send = upper ? sums[i] : sums[i + Count];
    sums[i] = keep + __shfl_xor_sync(kFullMask, send, Offset);
  }
}

__device__ inline float reduce_to_lane(float (&sums)[kWarp], int lane) {
  butterfly<16, 16>(sums, lane);
  butterfly<8, 8>(sums, lane);
  butterfly<4, 4>(sums, lane);
  butterfly<2, 2>(sums, lane);
  butterfly<1, 1>(sums, lane);
  return sums[0];
}

// rows: [kTileRows][stride] in shared memory; columns: pointers to `depth` weights each. Vector = kVector<T>
// needs 16-byte aligned rows and columns and a depth that it divides; Vector = 1 takes any. The lane's share
// of rows x columns is added to its sums, column c to those of the tile's column Places[c].
template <typename T, int Vector, int... Places>
__device__ inline void tile_accumulate(float (&sums)[kWarp], const T* rows, int stride,
                                       const T* const (&columns)[sizeof...(Places)], int depth, int lane) {
  constexpr int kColumns = sizeof...(Places);
  for (int k = lane * Vector; k < depth; k += kWarp * Vector) {
    float weight[kColumns][Vector];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const auto pack = *reinterpret_cast<const Pack<T, Vector>*>(columns[c] + k);
#pragma unroll
      for (int v = 0; v < Vector; ++v) {
        weight[c][v] = to_float(pack.value[v]);
      }
    }
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      const auto pack = *reinterpret_cast<const Pack<T, Vector>*>(rows + r * stride + k);
#pragma unroll
      for (int v = 0; v < Vector; ++v) {
        const float activation = to_float(pack.value[v]);
        int c = 0;
        ((sums[r * kTileColumns + Places] =
              fmaf(activation, weight[c++][v], sums[r * kTileColumns + Places])),
         ...);
      }
    }
  }
}

template <typename T, int Vector>
__device__ inline float tile_dot(const T* rows, int stride, const T* const (&columns)[kTileColumns],
                                 int depth, int lane) {
  float sums[kWarp] = {};
  tile_accumulate<T, Vector, 0, 1, 2, 3>(sums, rows, stride, columns, depth, lane);
  return reduce_to_lane(sums, lane);
}

// row[k] = function(source[k]...) for k < depth, by one warp. The sources do not overlap the row.
template <typename T, int Vector, typename Function, typename... Sources>
__device__ inline void fill_row_by(T* row, int depth, int lane, Function function,
                                   const Sources*... sources) {
  using Slice = Pack<T, Vector>;
#pragma unroll 4
  for (int k = lane * Vector; k < depth; k += kWarp * Vector) {
    Slice out;
    [&](const auto&... slices) {
#pragma unroll
      for (int v = 0; v < Vector; ++v) {
        out.value[v] = from_float<T>(function(to_float(slices.value[v])...));
      }
    }(*reinterpret_cast<const Slice*>(sources + k)...);
    *reinterpret_cast<Slice*>(row + k) = out;
  }
}

template <typename T, typename Function, typename... Sources>
__device__ inline void fill_row(T* row, int depth, int lane, Function function, const Sources*... sources) {
  const auto bits = (reinterpret_cast<std::uintptr_t>(row) | ... | reinterpret_cast<std::uintptr_t>(sources));
  if (bits % 16 == 0 && depth % kVector<T> == 0) {
    fill_row_by<T, kVector<T>>(row, depth, lane, function, sources...);
  } else {
    fill_row_by<T, 1>(row, depth, lane, function, sources...);
  }
}

template <typename T>
__device__ inline void fill_row_with(T* row, int depth, int lane, float value) {
  fill_row(row, depth, lane, [value](auto...) { return value; });
}

// Row stride in shared memory that keeps every row 16-byte aligned.
template <typename T>
__host__ __device__ constexpr int padded_stride(int depth) {
  return (depth + kVector<T> - 1) / kVector<T> * kVector<T>;
}

}  // namespace rnnt_fastdecode::cuda
