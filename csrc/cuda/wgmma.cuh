// Warpgroup matrix products (sm_90a): four warps multiply operands that lie in shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace rnnt_fastdecode::cuda::wgmma {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool kExists = true;
#else
constexpr bool kExists = false;
#endif

// An operand in shared memory: rows of 128 bytes, the 16-byte vector v of row r at v ^ (r % 8), from an
// address that is a multiple of 1024 on. The next 16 elements of the depth: 2 more.
__device__ inline uint64_t descriptor(const void* rows) {
  constexpr uint64_t kSwizzle128 = 1ull << 62, kEightRows = static_cast<uint64_t>(1024 >> 4) << 32;
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(rows));
  return kSwizzle128 | kEightRows | (1ull << 16) | (address & 0x3ffff) >> 4;
}

// What threads have written to shared memory becomes visible to products, after the next barrier.
__device__ inline void publish() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Before the first product: sums that other instructions have written may be added to.
__device__ inline void begin() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// Waits for all products of the warpgroup.
__device__ inline void finish() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.commit_group.sync.aligned;\n\twgmma.wait_group.sync.aligned 0;" ::: "memory");
#endif
}

// Begins d [64, 8 * kTiles] += a [64, 16] b [8 * kTiles, 16]^T. Lane 4 g + t of warp w holds in d[tile][0 ..
// 3], beginning with `half` * 4: rows 16 w + g and 16 w + g + 8, of each columns 8 tile + 2 t and 8 tile + 2
// t + 1.
template <typename T, int kHalf, int kTiles>
struct Product;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define TILE(d, tile) "+f"(d[tile][h]), "+f"(d[tile][h + 1]), "+f"(d[tile][h + 2]), "+f"(d[tile][h + 3])

#define DEFINE_PRODUCTS(T, type)                                                                         \
  template <int kHalf>                                                                                   \
  struct Product<T, kHalf, 4> {                                                                          \
    __device__ static void add(float (&d)[4][8], uint64_t a, uint64_t b) {                               \
      constexpr int h = 4 * kHalf;                                                                       \
      asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type                           \
                   " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "           \
                   "%16, %17, 1, 1, 1, 0, 0;"                                                            \
                   : TILE(d, 0), TILE(d, 1), TILE(d, 2), TILE(d, 3)                                      \
                   : "l"(a), "l"(b));                                                                    \
    }                                                                                                    \
  };                                                                                                     \
  template <int kHalf>                                                                                   \
  struct Product<T, kHalf, 8> {                                                                          \
    __device__ static void add(float (&d)[8][8], uint64_t a, uint64_t b) {                               \
      constexpr int h = 4 * kHalf;                                                                       \
      asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                           \
                   " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "            \
                   "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "   \
                   "%32, %33, 1, 1, 1, 0, 0;"                                                            \
                   : TILE(d, 0), TILE(d, 1), TILE(d, 2), TILE(d, 3), TILE(d, 4), TILE(d, 5), TILE(d, 6), \
                     TILE(d, 7)                                                                          \
                   : "l"(a), "l"(b));                                                                    \
    }                                                                                                    \
  };
DEFINE_PRODUCTS(__nv_bfloat16, "bf16")
DEFINE_PRODUCTS(__half, "f16")
#undef DEFINE_PRODUCTS
#undef TILE
#endif

}  // namespace rnnt_fastdecode::cuda::wgmma
