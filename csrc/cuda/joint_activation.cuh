// The joint's activations, a 16-byte vector at a time: activation(encoder + predictor), the sum and the
// result rounded to T.
#pragma once

#include <type_traits>

#include "joint_argmax.cuh"
#include "warp_product.cuh"

namespace rnnt_fastdecode::cuda::product {

template <typename T>
using Pair = std::conditional_t<std::is_same_v<T, float>, float2,
                                std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>>;

// Sums rounded to the element type. The packed sum is rounded once, a sum in float would be rounded twice,
// and both give the same number: float has more than twice the digits.
template <typename P>
__device__ inline P add(P a, P b) {
  return __hadd2(a, b);
}
template <>
__device__ inline float2 add(float2 a, float2 b) {
  return {a.x + b.x, a.y + b.y};
}

template <typename P>
__device__ inline P positive(P pair) {
  return __hmax2_nan(pair, P{});
}
template <>
__device__ inline float2 positive(float2 pair) {
  return {activate(pair.x, Activation::kRelu), activate(pair.y, Activation::kRelu)};
}

// activation(a + b).
template <typename T, typename Function>
__device__ inline uint4 activated(const uint4& a, const uint4& b, Function function) {
  uint4 out;
#pragma unroll
  for (int i = 0; i < kVector<T> / 2; ++i) {
    const auto sum = add(reinterpret_cast<const Pair<T>*>(&a)[i], reinterpret_cast<const Pair<T>*>(&b)[i]);
    reinterpret_cast<Pair<T>*>(&out)[i] = function(sum);
  }
  return out;
}

// The activation as a function of pairs.
template <typename T>
struct Relu {
  __device__ Pair<T> operator()(Pair<T> sum) const { return positive(sum); }
};

template <typename T>
struct Curved {
  Activation activation;

  __device__ Pair<T> operator()(Pair<T> sum) const {
    return {from_float<T>(activate(to_float(sum.x), activation)),
            from_float<T>(activate(to_float(sum.y), activation))};
  }
};

// Calls visit with that function.
template <typename T, typename Visit>
__host__ __device__ inline auto with_activation(Activation activation, Visit visit) {
  return activation == Activation::kRelu ? visit(Relu<T>{}) : visit(Curved<T>{activation});
}

}  // namespace rnnt_fastdecode::cuda::product
