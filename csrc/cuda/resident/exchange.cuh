// Messages between the blocks of one running grid, 16 bytes each: written whole and read whole, so that a
// message is its own flag. No fence and no barrier stands between a writer and its readers.
//
// A value message is known by its first word: empty until the data is there. A tagged message carries a
// sequence number in its last word.
//
// Whoever waits for a few messages reads those again that were missing; whoever waits for many reads all of
// them again, without a condition: what a read may leave as it was would be copied where registers are short,
// and a copy waits for the read.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace rnnt_fastdecode::cuda {

// Two 16-bit NaNs or one 32-bit NaN that no conversion and no arithmetic produces.
constexpr unsigned kEmpty = 0xffffffffu;

// Polls that a waiting thread makes before it gives up and stops the kernel with an error: many seconds.
constexpr int kPatience = 1 << 26;

__device__ inline uint4 read_message(const uint4* address) {
  uint64_t low, high;
  asm volatile(
      "{\n\t.reg .b128 whole;\n\t"
      "ld.relaxed.gpu.global.b128 whole, [%2];\n\t"
      "mov.b128 {%0, %1}, whole;\n\t}"
      : "=l"(low), "=l"(high)
      : "l"(address)
      : "memory");
  return {static_cast<unsigned>(low), static_cast<unsigned>(low >> 32), static_cast<unsigned>(high),
          static_cast<unsigned>(high >> 32)};
}

__device__ inline void write_message(uint4* address, uint4 message) {
  const uint64_t low = message.x | static_cast<uint64_t>(message.y) << 32;
  const uint64_t high = message.z | static_cast<uint64_t>(message.w) << 32;
  asm volatile(
      "{\n\t.reg .b128 whole;\n\t"
      "mov.b128 whole, {%1, %2};\n\t"
      "st.relaxed.gpu.global.b128 [%0], whole;\n\t}" ::"l"(address),
      "l"(low), "l"(high)
      : "memory");
}

__device__ inline uint4 empty_message() { return {kEmpty, kEmpty, kEmpty, kEmpty}; }

// Reads again unless the message is there; without a branch, so that several can be on their way at once.
__device__ inline void read_if_empty(uint4& message, const uint4* address) {
  uint64_t low = message.x | static_cast<uint64_t>(message.y) << 32;
  uint64_t high = message.z | static_cast<uint64_t>(message.w) << 32;
  asm volatile(
      "{\n\t.reg .pred empty;\n\t.reg .b128 whole;\n\t"
      "setp.eq.u32 empty, %3, 0xffffffff;\n\t"
      "mov.b128 whole, {%0, %1};\n\t"
      "@empty ld.relaxed.gpu.global.b128 whole, [%2];\n\t"
      "mov.b128 {%0, %1}, whole;\n\t}"
      : "+l"(low), "+l"(high)
      : "l"(address), "r"(message.x)
      : "memory");
  message = {static_cast<unsigned>(low), static_cast<unsigned>(low >> 32), static_cast<unsigned>(high),
             static_cast<unsigned>(high >> 32)};
}

__device__ inline uint4 await_tag(const uint4* address, unsigned tag) {
  uint4 message = read_message(address);
  for (int polls = 0; message.w != tag; ++polls) {
    if (polls == kPatience) __trap();
    message = read_message(address);
  }
  return message;
}

// Progress of a block: everything that its threads did before the barrier that precedes the call is visible
// to whoever reads this value.
__device__ inline void publish_progress(int* address, int value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

__device__ inline int read_progress(const int* address) {
  int value;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

// A load of constant data that stays where it is written, before the waiting that follows it.
__device__ inline uint4 prefetch_constant(const void* address, bool wanted) {
  uint4 out;
  asm volatile(
      "{\n\t.reg .pred wanted;\n\t"
      "setp.ne.u32 wanted, %5, 0;\n\t"
      "mov.u32 %0, 0;\n\tmov.u32 %1, 0;\n\tmov.u32 %2, 0;\n\tmov.u32 %3, 0;\n\t"
      "@wanted ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
      : "=&r"(out.x), "=&r"(out.y), "=&r"(out.z), "=&r"(out.w)
      : "l"(address), "r"(static_cast<unsigned>(wanted)));
  return out;
}

// 16 bytes on their way to shared memory, for the thread that asked for them and awaits them.
__device__ inline void copy_to_shared(uint4* destination, const void* source, bool wanted) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(destination));
  asm volatile(
      "{\n\t.reg .pred wanted;\n\tsetp.ne.u32 wanted, %2, 0;\n\t"
      "@wanted cp.async.cg.shared.global [%0], [%1], 16;\n\t}" ::"r"(address),
      "l"(source), "r"(static_cast<unsigned>(wanted))
      : "memory");
}

// One load, whatever becomes of its parts.
__device__ inline uint4 read_shared(const uint4* source) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(source));
  uint4 out;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "r"(address)
               : "memory");
  return out;
}

__device__ inline void await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace rnnt_fastdecode::cuda
