// The resident decoder in 16-bit types. A round, as the two crews of every block see it:
//
//   main crew
//     judge     joint of the rows' next W frames and the block's columns -> partial results
//     gather    the decisions of all rows
//     step      blocks with units, blocks with outputs: the prediction network -> projected outputs
//   side crew
//     decide    blocks without units: merge a row's partial results, walk to its first label -> decision
//     empty     old messages; then tell the block's progress
//     stage     the frames of the next round
//     renew     blocks with units: recurrent halves for the next step
//
// More than kPassRows rows are taken in passes, by each stage in turn: while one pass is on its way to the
// next stage, another is worked out.
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

// The main crew takes registers that the side crew gives up. Only code for one kind of device may do that.
template <typename Stages>
__device__ __forceinline__ void share_registers(bool main) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if (main) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Stages::kMainRegisters));
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Stages::kSideRegisters));
  }
#endif
}

__device__ __forceinline__ bool gather_main(const Context& c, int round) {
  return any_of_main(threadIdx.x < c.batch && !read_decision(c, round, threadIdx.x));
}

template <typename Stages>
__device__ __forceinline__ void work_main(const Context& c, bool live) {
  typename Stages::Held held;
  typename Stages::Step{c, held}.load();
  typename Stages::Joint{c}.load();
  __syncthreads();
  cooperative_groups::this_grid().sync();
  for (int round = 0; live; ++round) {
    const Context fresh = c.anew();
    typename Stages::Joint{fresh}.judge(round);
    tell<Meeting::kJudged>();
    typename Stages::Step step{fresh, held};
    uint4* const first_message = step.first_message(round);
    live = gather_main(fresh, round);
    tell<Meeting::kGathered>();
    step.step(round, first_message);
  }
  typename Stages::Step{c, held}.store();
  store_history(c);
}

template <typename Stages>
__device__ __forceinline__ void prepare_aside(const Context& c) {
  typename Stages::Ahead ahead{c};
  typename Stages::Loader{c}.clear();
  for (int row = c.thread - kThreads; row < c.batch; row += kSideThreads) ahead.prepare(row);
  empty_untagged(c, c.thread - kThreads, kSideThreads);
  __syncthreads();
  for (int layer = 0; layer < kResidentLayers; ++layer) ahead.load(layer);
}

template <typename Stages>
__device__ __forceinline__ void work_aside(const Context& context, FrameResult* results, bool live) {
  int staged_end = 0, labels[Stages::kMostPasses] = {};
  prepare_aside<Stages>(context);
  cooperative_groups::this_grid().sync();
  tell_sums(0);
  typename Stages::Loader{context}.stage_first(staged_end);
  tell<Meeting::kFramesReady>();
  for (int round = 0; live; ++round) {
    const Context c = context.anew();
    typename Stages::Ahead ahead{c};
    const typename Stages::Loader loader{c};
    const Decider<SideCrew> decider{.c = c, .results = results};
    decider.decide(round);
    await<Meeting::kJudged>();
    ahead.empty_old(round, labels);
    meet_side();
    if (c.thread == kThreads) publish_progress(c.progress(c.block), round);
    await<Meeting::kGathered>();
    live = c.goes_on();
    loader.stage_first(staged_end);
    tell<Meeting::kFramesReady>();
    ahead.renew(0, round);
    ahead.renew(1, round);
    tell_sums(round + 1);
  }
}

// Stages: what differs between the variants: Step and Joint, Ahead and Loader.
template <typename Stages>
__global__ void __launch_bounds__(kCrewThreads, 1) crew_kernel(const __grid_constant__ ResidentProblem p) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ int numbers[Rows::kNumbers * Stages::kRows];
  __shared__ FrameResult results[kResidentWindow];
  static_assert(sizeof(numbers) + sizeof(results) <= Stages::kStaticBytes);

  const int slot = opaque(blockIdx.x / p.plan.column_blocks);
  const Context context{p,
                        p.plan,
                        address_of<Stages::kSettled>(shared),
                        Rows::in(numbers, Stages::kRows),
                        slot,
                        static_cast<int>(threadIdx.x)};
  load_rows(context);
  __syncthreads();
  const bool live = context.goes_on();
  if (threadIdx.x < kThreads) {
    share_registers<Stages>(true);
    work_main<Stages>(context, live);
  } else {
    share_registers<Stages>(false);
    work_aside<Stages>(context, results, live);
  }
}

}  // namespace rnnt_fastdecode::cuda
