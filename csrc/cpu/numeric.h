// Reading and writing rows of float32, bfloat16 or float16 as float32, the type of all arithmetic on the CPU.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>

// One binary for every x86-64: the loader picks the variant for the machine at hand. GCC 11 cannot clone for
// levels of the architecture yet, and FMA alone, with the AVX that it implies, gives most of what they give.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define RNNT_FASTDECODE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define RNNT_FASTDECODE_CLONES __attribute__((target_clones("fma", "default")))
#endif
#else
#define RNNT_FASTDECODE_CLONES
#endif

namespace rnnt_fastdecode {

using torch::headeronly::ScalarType;

// out[i] = base[offset + i], widened to float32.
void load_row(ScalarType dtype, const void* base, int64_t offset, int64_t count, float* out);

// base[offset + i] = values[i], rounded to nearest even.
void store_row(ScalarType dtype, const float* values, int64_t count, void* base, int64_t offset);

// values[i] = the nearest number that dtype can hold.
void round_row(ScalarType dtype, float* values, int64_t count);

}  // namespace rnnt_fastdecode
