// The warps of a block in two crews. The main crew does what other blocks wait for: it judges, gathers and
// steps. The side crew does what has time: it fetches frames, works out recurrent halves ahead of the next
// step, empties messages and, in blocks that have nothing to work out, decides.
#pragma once

#include "context.cuh"

namespace rnnt_fastdecode::cuda {

constexpr int kSideWarps = 4;
constexpr int kSideThreads = kWarp * kSideWarps;
constexpr int kCrewThreads = kThreads + kSideThreads;

// Where threads of a block meet; barrier 0 is that of the whole block.
enum class Meeting : int {
  kMain = 1,
  kSide,
  kJudged,       // the main crew tells: this round is judged
  kGathered,     // the main crew tells: the decisions are in the table of rows
  kFramesReady,  // the side crew tells: a round's first frames are there
  kSumsReady,    // the side crew tells: recurrent sums for an even step
  kOddSumsReady,
};

template <Meeting kWhere, int kCount>
__device__ __forceinline__ void meet() {
  __syncwarp();
  asm volatile("bar.sync %0, %1;" ::"n"(static_cast<int>(kWhere)), "n"(kCount) : "memory");
}

// Does not wait.
template <Meeting kWhere>
__device__ __forceinline__ void tell() {
  __syncwarp();
  asm volatile("bar.arrive %0, %1;" ::"n"(static_cast<int>(kWhere)), "n"(kCrewThreads) : "memory");
}

// Waits for the other crew to tell.
template <Meeting kWhere>
__device__ __forceinline__ void await() {
  meet<kWhere, kCrewThreads>();
}

__device__ __forceinline__ void meet_main() { meet<Meeting::kMain, kThreads>(); }
__device__ __forceinline__ void meet_side() { meet<Meeting::kSide, kSideThreads>(); }

__device__ __forceinline__ bool any_of_main(bool value) {
  unsigned out;
  __syncwarp();
  asm volatile(
      "{\n\t.reg .pred mine, any;\n\t"
      "setp.ne.u32 mine, %1, 0;\n\t"
      "bar.red.or.pred any, %2, %3, mine;\n\t"
      "selp.u32 %0, 1, 0, any;\n\t}"
      : "=r"(out)
      : "r"(static_cast<unsigned>(value)), "n"(static_cast<int>(Meeting::kMain)), "n"(kThreads)
      : "memory");
  return out != 0;
}

// Sums for the step of a round. The side crew may tell before the main crew has come for those of the round
// before: hence two places.
__device__ __forceinline__ void tell_sums(int round) {
  if (round % 2 == 0) {
    tell<Meeting::kSumsReady>();
  } else {
    tell<Meeting::kOddSumsReady>();
  }
}

__device__ __forceinline__ void await_sums(int round) {
  if (round % 2 == 0) {
    await<Meeting::kSumsReady>();
  } else {
    await<Meeting::kOddSumsReady>();
  }
}

struct MainCrew {
  static constexpr int kWarps = cuda::kWarps;
  __device__ static int thread() { return threadIdx.x; }
};

struct SideCrew {
  static constexpr int kWarps = kSideWarps;
  __device__ static int thread() { return threadIdx.x - kThreads; }
  __device__ static void meet() { meet_side(); }
};

}  // namespace rnnt_fastdecode::cuda
