// The inner loops of the CPU ops, compiled once for each instruction set; the machine at hand decides at run
// time which are used.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

namespace rnnt_fastdecode {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// One block of a matrix product: out[r * out_stride + n] = bias[n] + sum_k x[r, k] * weight[n, k] for x
// [rows, depth] and weight [columns, depth], both dense; bias may be null. A sum is taken in the same order
// whatever rows, columns and the position in the block are.
template <typename Operand, typename Weight>
using DotBlock = void (*)(const Operand* x, int64_t rows, const Weight* weight, int64_t columns,
                          int64_t depth, const float* bias, float* out, int64_t out_stride);

struct Kernels {
  const char* name;
  DotBlock<float, float> dot_float;
  DotBlock<float, BFloat16> dot_bfloat16;
  DotBlock<float, Half> dot_half;
  // Products of bfloat16 with bfloat16, which count subnormal numbers as zero; null without such
  // instructions.
  DotBlock<BFloat16, BFloat16> dot_bfloat16_pairs;

  void (*widen_bfloat16)(const BFloat16* in, int64_t count, float* out);
  void (*widen_half)(const Half* in, int64_t count, float* out);
  void (*narrow_bfloat16)(const float* in, int64_t count, BFloat16* out);  // to nearest even
  void (*narrow_half)(const float* in, int64_t count, Half* out);
  bool (*any_subnormal)(const BFloat16* values, int64_t count);

  void (*add)(const float* other, int64_t count, float* values);
  void (*relu)(float* values, int64_t count);  // NaN passes, as in torch.relu
  void (*tanh)(float* values, int64_t count);
  void (*sigmoid)(float* values, int64_t count);
  // gates: input, forget, cell and output gate of `count` units, each `gate_stride` after the one before.
  // cell = sigmoid(forget) * cell + sigmoid(input) * tanh(cell gate); hidden = sigmoid(output) * tanh(cell)
  void (*lstm_cell)(const float* gates, int64_t gate_stride, int64_t count, float* cell, float* hidden);
  // inputs, states: reset, update and new gate of `count` units, the part of the input and that of the hidden
  // state, each gate `gate_stride` after the one before. new = tanh(input + sigmoid(reset) * state);
  // hidden = (1 - sigmoid(update)) * new + sigmoid(update) * hidden
  void (*gru_cell)(const float* inputs, const float* states, int64_t gate_stride, int64_t count,
                   float* hidden);

  // Index of the first maximum; NaN counts as greatest, as in torch.argmax.
  int64_t (*argmax)(const float* values, int64_t count);
  // Sum of exp(values[i] - shift).
  double (*sum_exp)(const float* values, int64_t count, float shift);
};

// The kernels in use: the best that the machine has, or those that RNNT_FASTDECODE_CPU_CAPABILITY names,
// which is read once. Fails if that names kernels that the machine does not have.
const Kernels& kernels();

const Kernels& portable_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512_bf16_kernels();
#endif

}  // namespace rnnt_fastdecode

// Functions between BEGIN_TARGET and END_TARGET may use the instructions named, whatever the compiler's flags
// are. GCC 12 warns of the lanes that its own AVX-512 intrinsics leave undefined on purpose.
#define RNNT_FASTDECODE_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define RNNT_FASTDECODE_BEGIN_TARGET(names) \
  RNNT_FASTDECODE_PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define RNNT_FASTDECODE_END_TARGET RNNT_FASTDECODE_PRAGMA(clang attribute pop)
#define RNNT_FASTDECODE_UNROLL _Pragma("unroll")
#define RNNT_FASTDECODE_IGNORE_UNDEFINED_LANES
#else
#define RNNT_FASTDECODE_BEGIN_TARGET(names) \
  RNNT_FASTDECODE_PRAGMA(GCC push_options) RNNT_FASTDECODE_PRAGMA(GCC target(names))
#define RNNT_FASTDECODE_END_TARGET RNNT_FASTDECODE_PRAGMA(GCC pop_options)
#define RNNT_FASTDECODE_UNROLL _Pragma("GCC unroll 8")
#define RNNT_FASTDECODE_IGNORE_UNDEFINED_LANES                     \
  RNNT_FASTDECODE_PRAGMA(GCC diagnostic ignored "-Wuninitialized") \
  RNNT_FASTDECODE_PRAGMA(GCC diagnostic ignored "-Wmaybe-uninitialized")
#endif
