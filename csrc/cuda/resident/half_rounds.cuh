// The resident decoder in 16-bit types. A round, as every block sees it:
//
//   main crew                                             side crew
//   judge     joint of the rows' next W frames and        decide    blocks without units: merge a row's partial
//             the block's columns -> partial results                results, walk to its first label -> decision
//                                                          empty     old messages; then tell the progress
//   gather    the decisions of all rows
//   step      blocks with units: the prediction           stage     the frames of the next round
//             network -> projected outputs                renew     recurrent halves for the next step
//
// The stages wait for messages (exchange.cuh), never for a barrier of the grid. Hidden values have four
// generations, round % 4, outputs too, by the number of labels of their row. A block publishes its progress r
// when it has judged round r and renewed what followed from round r - 1, and no decision of round r + 1
// appears before every block's progress is r. So whoever has gathered the decisions of round r - 1 knows that
// everybody has read the hidden values of round r - 3: these a block empties before it publishes progress r,
// and nobody looks for those of round r + 1 in their place before. A row's outputs after n labels have been
// read once label n + 1 is decided; when label n + 2 is known, they are emptied for label n + 4.

#pragma once

#include <cooperative_groups.h>

#include "ahead.cuh"
#include "decider.cuh"
#include "frames.cuh"
#include "joint.cuh"
#include "predictor.cuh"
#include "rounds.cuh"

namespace rnnt_fastdecode::cuda {

// Registers of a thread once the crews part. Compilers for one kind of device only know the instruction.
template <int kMainRegisters, int kSideRegisters>
__device__ __forceinline__ void share_registers(bool main) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if (main) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kMainRegisters));
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kSideRegisters));
  }
#endif
}

__device__ __forceinline__ bool gather_main(const Context& c, int round) {
  return any_of_main(threadIdx.x < c.batch && !read_decision(c, round, threadIdx.x));
}

template <typename Stages>
__device__ __forceinline__ void work_main(const Context& c, const FrameTiles& frames, bool live) {
  typename Stages::Step predictor{c};
  typename Stages::Joint joint{c, frames};
  predictor.load();
  joint.load();
  __syncthreads();
  cooperative_groups::this_grid().sync();
  for (int round = 0; live; ++round) {
    joint.judge(round);
    tell<Meeting::kJudged>();
    live = gather_main(c, round);
    tell<Meeting::kGathered>();
    predictor.step(round);
  }
  predictor.store();
  store_history(c);
}

template <typename Stages>
__device__ __forceinline__ void work_aside(const Context& c, const FrameTiles& frames, FrameResult* results,
                                           bool live) {
  typename Stages::Ahead ahead{c};
  typename Stages::Loader loader{c, frames};
  Decider<SideCrew> decider{.c = c, .results = results};
  loader.clear();
  for (int row = threadIdx.x - kThreads; row < c.batch; row += kSideThreads) ahead.prepare(row);
  empty_untagged(c, threadIdx.x - kThreads, kSideThreads);
  __syncthreads();
  ahead.load();
  cooperative_groups::this_grid().sync();
  tell_sums(0);
  if (live) loader.stage_first();
  for (int round = 0; live; ++round) {
    loader.stage_others();
    decider.decide(round);
    await<Meeting::kJudged>();
    ahead.empty_old(round);
    meet_side();
    if (threadIdx.x == kThreads) publish_progress(c.progress(c.block), round);
    await<Meeting::kGathered>();
    live = __any_sync(kFullMask, c.lane < c.batch && !c.rows.done[c.lane]);
    if (live) loader.stage_first();
    ahead.renew(round);
    tell_sums(round + 1);
  }
}

// Stages: what differs between the variants: Step and Joint, Ahead and Loader.
template <typename Stages>
__global__ void __launch_bounds__(kCrewThreads, 1) crew_kernel(const __grid_constant__ ResidentProblem p) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ int numbers[Rows::kNumbers * kResidentRows];
  __shared__ FrameResult results[kResidentWindow];
  static_assert(sizeof(numbers) + sizeof(results) <= kResidentStaticBytes);

  const Context context{p, p.plan, shared, Rows::in(numbers, kResidentRows)};
  const FrameTiles frames{context};
  load_rows(context);
  __syncthreads();
  const bool live = __any_sync(kFullMask, context.lane < context.batch && !context.rows.done[context.lane]);
  if (threadIdx.x < kThreads) {
    share_registers<208, 88>(true);
    work_main<Stages>(context, frames, live);
  } else {
    share_registers<208, 88>(false);
    work_aside<Stages>(context, frames, results, live);
  }
}

}  // namespace rnnt_fastdecode::cuda
