// Messages between the blocks of one running grid, 16 bytes each: written whole and read whole, so that a
// message is its own flag. No fence and no barrier stands between a writer and its readers.
//
// A value message is known by its first word: empty until the data is there. A tagged message carries a
// sequence number in its last word.
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

// `message` as it was read first; reads again until it is there.
__device__ inline void await_value(uint4& message, const uint4* address) {
  for (int polls = 0; message.x == kEmpty; ++polls) {
    if (polls == kPatience) __trap();
    message = read_message(address);
  }
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

__device__ inline void await_progress(const int* address, int least) {
  int value;
  int polls = 0;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    if (polls++ == kPatience) __trap();
  } while (value < least);
}

}  // namespace rnnt_fastdecode::cuda
