// fp32 values on their way between blocks: words that are their own flags. Whoever reads four of them waits
// for each, so that any block may write any of them.
#pragma once

#include "exchange.cuh"

namespace rnnt_fastdecode::cuda {

__device__ inline void write_value(float* address, float value) {
  const unsigned bits = isnan(value) ? 0x7fffffffu : __float_as_uint(value);
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(bits) : "memory");
}

__device__ inline void empty_value(float* address) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(kEmpty) : "memory");
}

__device__ inline unsigned greatest(const uint4& values) {
  return max(max(values.x, values.y), max(values.z, values.w));
}

__device__ inline bool is_missing(const uint4& values) { return greatest(values) == kEmpty; }

// The first attempt; zeros where `wanted` is false.
__device__ inline uint4 read_values(const float* address, bool wanted = true) {
  uint4 values;
  asm volatile(
      "{\n\t.reg .pred wanted;\n\t"
      "setp.ne.u32 wanted, %5, 0;\n\t"
      "mov.u32 %0, 0;\n\tmov.u32 %1, 0;\n\tmov.u32 %2, 0;\n\tmov.u32 %3, 0;\n\t"
      "@wanted ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
      : "=&r"(values.x), "=&r"(values.y), "=&r"(values.z), "=&r"(values.w)
      : "l"(address), "r"(static_cast<unsigned>(wanted))
      : "memory");
  return values;
}

__device__ inline void read_if_missing(uint4& values, const float* address) {
  asm volatile(
      "{\n\t.reg .pred missing;\n\t"
      "setp.ne.u32 missing, %5, 0;\n\t"
      "@missing ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
      : "+r"(values.x), "+r"(values.y), "+r"(values.z), "+r"(values.w)
      : "l"(address), "r"(static_cast<unsigned>(is_missing(values)))
      : "memory");
}

__device__ inline float2 prefetch_pair(const float* address, bool wanted) {
  float2 out;
  asm volatile(
      "{\n\t.reg .pred wanted;\n\t"
      "setp.ne.u32 wanted, %3, 0;\n\t"
      "mov.f32 %0, 0f00000000;\n\tmov.f32 %1, 0f00000000;\n\t"
      "@wanted ld.global.nc.v2.f32 {%0, %1}, [%2];\n\t}"
      : "=&f"(out.x), "=&f"(out.y)
      : "l"(address), "r"(static_cast<unsigned>(wanted)));
  return out;
}

}  // namespace rnnt_fastdecode::cuda
