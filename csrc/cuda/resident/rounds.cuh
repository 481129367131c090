// The resident decoder in fp32, and what half_rounds.cuh has in common with it. A round, as every block sees
// it:
//
//   judge     joint of the rows' next W frames and the block's columns -> partial results
//   decide    a few blocks: merge a row's partial results, walk to its first label -> decision
//   gather    all blocks: the decisions of all rows
//   step      blocks with units: the prediction network -> projected outputs
//
// The stages wait for messages (exchange.cuh), never for a barrier of the grid. Value messages have four
// generations, round % 4. A block publishes its progress r when it has judged round r, and no decision of
// round r + 1 appears before every block's progress is r. So whoever has gathered the decisions of round r -
// 1 knows that everybody has judged round r - 2 and has read the messages of round r - 3: these a block
// empties before it publishes progress r, and nobody looks for messages of round r + 1 in their place before.

#pragma once

#include <cooperative_groups.h>

#include "../shared_memory.cuh"
#include "context.cuh"
#include "decider.cuh"

namespace rnnt_fastdecode::cuda {

__device__ inline void load_rows(const Context& c) {
  const GreedyProblem& greedy = c.p.greedy;
  for (int row = threadIdx.x; row < c.batch; row += kThreads) {
    const int time = greedy.times[row], count = greedy.counts[row];
    const int length = min(greedy.joint.lengths[row], greedy.joint.frames);
    c.rows.times[row] = time;
    c.rows.lengths[row] = length;
    c.rows.symbols[row] = greedy.symbols[row];
    c.rows.counts[row] = count;
    c.rows.labelled[row] = 0;
    c.rows.done[row] = !(time < length && count < greedy.capacity);
    for (int i = 0; i < kGenerations; ++i) c.rows.labels[i][row] = -1;
    for (int i = 0; i + 1 < c.p.context_size; ++i) {
      c.rows.history[i][row] = c.p.context[static_cast<int64_t>(row) * (c.p.context_size - 1) + i];
    }
  }
}

__device__ inline void store_history(const Context& c) {
  for (int row = threadIdx.x; c.block == 0 && row < c.batch; row += kThreads) {
    for (int i = 0; i + 1 < c.p.context_size; ++i) {
      c.p.context[static_cast<int64_t>(row) * (c.p.context_size - 1) + i] = c.rows.history[i][row];
    }
  }
}

// What is known by its tag, by threads of one crew.
__device__ inline void empty_untagged(const Context& c, int thread, int threads) {
  const uint4 untagged{0, 0, 0, 0};
  for (int row = thread; row < c.batch; row += threads) {
    for (int i = 0; i < 2; ++i) write_message(c.decision(i, c.block, row), untagged);
  }
  const int window = c.p.greedy.joint.window;
  for (int i = thread; c.slot == 0 && i < c.batch * window; i += threads) {
    const int row = i / window, frame = i % window;
    for (int j = 0; j < 2; ++j) {
      write_message(c.partial(c.frame_index(j, row, frame), c.column_block), untagged);
      write_message(c.partial_sum(c.frame_index(j, row, frame), c.column_block), untagged);
      if (c.duration_block >= 0)
        write_message(c.duration_partial(c.frame_index(j, row, frame), c.duration_block), untagged);
    }
  }
  if (thread == 0) publish_progress(c.progress(c.block), -1);
}

template <typename Predictor>
__device__ void empty_old(const Context& c, const Predictor& predictor, int round) {
  for (int row = threadIdx.x; row < c.batch; row += kThreads) predictor.empty_old(round, row);
  __syncthreads();
  // Not a thread of the first warp, which has decisions to gather.
  if (threadIdx.x == kThreads - 1) publish_progress(c.progress(c.block), round);
}

// Waits for the decision of a row that is not done; whether it is done then.
__device__ inline bool read_decision(const Context& c, int round, int row) {
  int label = -1;
  int done = c.rows.done[row];
  if (!done) {
    const uint4 message = await_tag(c.decision(round, c.block, row), static_cast<unsigned>(round + 1));
    label = static_cast<int>(message.x);
    done = static_cast<int>(message.z);
    c.rows.times[row] = static_cast<int>(message.y);
    c.rows.done[row] = done;
    c.rows.labelled[row] += label >= 0 ? 1 : 0;
  }
  c.labels(round)[row] = label;
  return done != 0;
}

// Whether any row goes on.
__device__ inline bool gather(const Context& c, int round) {
  return __syncthreads_or(threadIdx.x < c.batch && !read_decision(c, round, threadIdx.x));
}

// Stages: what differs between the element types, Step and Joint, and the rows and memory they need.
template <typename Stages>
__global__ void __launch_bounds__(kThreads, 1) resident_kernel(const __grid_constant__ ResidentProblem p) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ int numbers[Rows::kNumbers * Stages::kRows];
  __shared__ FrameResult results[kResidentWindow];
  static_assert(sizeof(numbers) + sizeof(results) <= Stages::kStaticBytes);

  const int slot = opaque(blockIdx.x / p.plan.column_blocks);
  const Context context{
      p, p.plan, address_of(shared), Rows::in(numbers, Stages::kRows), slot, static_cast<int>(threadIdx.x)};
  load_rows(context);
  const typename Stages::Step first{context};
  for (int row = threadIdx.x; row < context.batch; row += kThreads) first.prepare_messages(row);
  empty_untagged(context, threadIdx.x, kThreads);
  first.load_weights();
  typename Stages::Joint{context}.load_weights();
  __syncthreads();

  // Before round 0 comes what follows from the state.
  bool live = true;
  for (int round = -1; live; ++round) {
    if (round < 0) {
      live = false;
      for (int row = 0; row < context.batch; ++row) live = live || !context.rows.done[row];
    } else {
      const Context judging = context.anew();
      typename Stages::Joint{judging}.judge(round);
      const Context c = context.anew();
      Decider<WholeBlock>{.c = c, .results = results}.decide(round);
      empty_old(c, typename Stages::Step{c}, round);
      live = gather(c, round);
    }
    const Context stepping = context.anew();
    typename Stages::Step{stepping}.step(round);
    if (round < 0) cooperative_groups::this_grid().sync();
  }
  store_history(context);
}

template <typename Kernel>
cudaError_t launch(Kernel kernel, int threads, const ResidentProblem& problem, cudaStream_t stream) {
  const cudaError_t error = allow_shared_memory(kernel);
  if (error != cudaSuccess) {
    return error;
  }
  void* arguments[] = {const_cast<ResidentProblem*>(&problem)};
  return cudaLaunchCooperativeKernel(kernel, dim3(problem.plan.blocks), dim3(threads), arguments,
                                     problem.plan.shared_bytes, stream);
}

}  // namespace rnnt_fastdecode::cuda
