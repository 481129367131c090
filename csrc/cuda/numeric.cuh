// Element types, rounding and the activations of the joint, shared by every kernel.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>

namespace rnnt_fastdecode::cuda {

enum class Activation : int { kRelu, kTanh, kSigmoid };

template <typename T>
__device__ inline float to_float(T value) {
  return static_cast<float>(value);
}

template <typename T>
__device__ inline T from_float(float value) {
  return static_cast<T>(value);
}

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// For results that are rounded to 16 bits: errors below 1e-6.
__device__ inline float quick_sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
__device__ inline float quick_tanh(float x) { return 2.0f * quick_sigmoid(2.0f * x) - 1.0f; }

// The hidden value of an LSTM unit out of its gates; the cell is updated.
__device__ inline float exact_lstm(float& cell, float i, float f, float g, float o) {
  cell = sigmoid(f) * cell + sigmoid(i) * tanhf(g);
  return sigmoid(o) * tanhf(cell);
}
__device__ inline float quick_lstm(float& cell, float i, float f, float g, float o) {
  cell = quick_sigmoid(f) * cell + quick_sigmoid(i) * quick_tanh(g);
  return quick_sigmoid(o) * quick_tanh(cell);
}

// The hidden value of a GRU unit out of the one before, its gates r and z, and the halves of n.
__device__ inline float exact_gru(float hidden, float r, float z, float n_input, float n_hidden) {
  const float n = tanhf(n_input + sigmoid(r) * n_hidden);
  return n + sigmoid(z) * (hidden - n);
}
__device__ inline float quick_gru(float hidden, float r, float z, float n_input, float n_hidden) {
  const float n = quick_tanh(n_input + quick_sigmoid(r) * n_hidden);
  return n + quick_sigmoid(z) * (hidden - n);
}

__device__ inline float activate(float x, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      // Written so that a NaN stays a NaN, as in torch.relu.
      return x < 0.0f ? 0.0f : x;
    case Activation::kTanh:
      return tanhf(x);
    default:
      return sigmoid(x);
  }
}

// Total order of torch.argmax: NaN is the greatest, of equal values the first index wins.
__device__ inline bool comes_before(float value, int index, float other, int other_index) {
  const bool value_nan = isnan(value);
  const bool other_nan = isnan(other);
  if (value_nan || other_nan) {
    return value_nan && (!other_nan || index < other_index);
  }
  return value > other || (value == other && index < other_index);
}

}  // namespace rnnt_fastdecode::cuda
