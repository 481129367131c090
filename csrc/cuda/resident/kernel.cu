// The resident decoder. A round, as every block sees it:
//
//   judge     joint of the rows' next W frames and the block's columns -> partial results
//   decide    a few blocks: merge a row's partial results, walk to its first label -> decision
//   gather    all blocks: the decisions of all rows
//   step      blocks with units: the prediction network -> projected outputs
//
// The stages wait for messages (exchange.cuh), never for a barrier of the grid. Value messages have three
// generations, round % 3. A block empties the messages of round r - 2 after it judged round r: the decisions
// of round r - 1, which it has gathered, prove that everybody has read them. It then publishes its progress,
// and no decision of round r + 1 appears before every block's progress is r, so that no reader can meet the
// remains of an earlier round. Rows that are done keep their last messages.

#include <cooperative_groups.h>

#include "context.cuh"
#include "decider.cuh"
#include "joint.cuh"
#include "predictor.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

__device__ void load_rows(const Context& c) {
  const GreedyProblem& greedy = c.p.greedy;
  for (int row = threadIdx.x; row < c.batch; row += kThreads) {
    const int time = greedy.times[row], count = greedy.counts[row];
    const int length = min(greedy.joint.lengths[row], greedy.joint.frames);
    c.rows.times[row] = time;
    c.rows.lengths[row] = length;
    c.rows.symbols[row] = greedy.symbols[row];
    c.rows.counts[row] = count;
    c.rows.done[row] = !(time < length && count < greedy.capacity);
    for (int i = 0; i < kGenerations; ++i) c.rows.labels[i][row] = -1;
    for (int i = 0; i + 1 < c.p.context_size; ++i) {
      c.rows.history[i][row] = c.p.context[static_cast<int64_t>(row) * (c.p.context_size - 1) + i];
    }
  }
}

__device__ void store_history(const Context& c) {
  for (int row = threadIdx.x; c.block == 0 && row < c.batch; row += kThreads) {
    for (int i = 0; i + 1 < c.p.context_size; ++i) {
      c.p.context[static_cast<int64_t>(row) * (c.p.context_size - 1) + i] = c.rows.history[i][row];
    }
  }
}

// The block's own value messages of a row.
__device__ void empty_values(const Context& c, int round, int row) {
  for (int stage = 0; c.has_units && stage < c.stages(); ++stage) {
    write_message(c.hidden_message(stage, round, row, c.block), empty_message());
  }
  if (c.has_outputs) write_message(c.output_message(round, row, c.block), empty_message());
}

__device__ void empty_all(const Context& c) {
  const uint4 untagged{0, 0, 0, 0};
  for (int row = threadIdx.x; row < c.batch; row += kThreads) {
    for (int i = 0; i < kGenerations; ++i) empty_values(c, i, row);
    for (int i = 0; i < 2; ++i) write_message(c.decision(i, c.block, row), untagged);
  }
  const int window = c.p.greedy.joint.window;
  for (int i = threadIdx.x; c.slot == 0 && i < c.batch * window; i += kThreads) {
    const int row = i / window, frame = i % window;
    write_message(c.partial(row, frame, c.column_block), untagged);
    if (c.duration_block >= 0) write_message(c.duration_partial(row, frame, c.duration_block), untagged);
    for (int j = 0; j < 2; ++j) write_message(c.partial_sum(j, row, frame, c.column_block), untagged);
  }
  if (threadIdx.x == 0) publish_progress(c.progress(c.block), -1);
}

__device__ void empty_old(const Context& c, int round) {
  for (int row = threadIdx.x; round >= 2 && row < c.batch; row += kThreads) {
    if (c.labels(round - 2)[row] >= 0 && !c.rows.done[row]) empty_values(c, round - 2, row);
  }
  __syncthreads();
  // Not a thread of the first warp, which has decisions to gather.
  if (threadIdx.x == kThreads - 1) publish_progress(c.progress(c.block), round);
}

// Whether any row goes on.
__device__ bool gather(const Context& c, int round) {
  int label = -1, done = 1;
  if (threadIdx.x < c.batch) {
    const int row = threadIdx.x;
    done = c.rows.done[row];
    if (!done) {
      const uint4 message = await_tag(c.decision(round, c.block, row), static_cast<unsigned>(round + 1));
      label = static_cast<int>(message.x);
      done = static_cast<int>(message.z);
      c.rows.times[row] = static_cast<int>(message.y);
      c.rows.done[row] = done;
    }
    c.labels(round)[row] = label;
  }
  return __syncthreads_or(!done);
}

template <typename T, int RowTiles, int FrameTiles>
__global__ void __launch_bounds__(kThreads, 1) resident_kernel(const __grid_constant__ ResidentProblem p) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ Rows rows;
  __shared__ FrameResult results[kMaxWindow];
  static_assert(sizeof(rows) + sizeof(results) <= kResidentStaticBytes);

  const Context context{p, p.plan, shared, rows};
  Predictor<T, RowTiles> predictor{context};
  JointStage<T, FrameTiles> joint{context};
  Decider decider{.c = context, .results = results};

  load_rows(context);
  empty_all(context);
  predictor.load_weights();
  joint.load_weights();
  __syncthreads();
  predictor.load_state();
  joint.load_state();
  joint.stage_first();
  cooperative_groups::this_grid().sync();

  bool live = false;
  for (int row = 0; row < context.batch; ++row) live = live || !rows.done[row];
  for (int round = 0; live; ++round) {
    joint.judge(round);
    decider.decide(round);
    empty_old(context, round);
    live = gather(context, round);
    predictor.step(round, [&] { joint.stage_first(); });
  }
  store_history(context);
}

template <typename T, int RowTiles, int FrameTiles>
cudaError_t launch(const ResidentProblem& problem, cudaStream_t stream) {
  const auto kernel = resident_kernel<T, RowTiles, FrameTiles>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, problem.plan.shared_bytes);
  if (error != cudaSuccess) {
    return error;
  }
  void* arguments[] = {const_cast<ResidentProblem*>(&problem)};
  return cudaLaunchCooperativeKernel(kernel, dim3(problem.plan.blocks), dim3(kThreads), arguments,
                                     problem.plan.shared_bytes, stream);
}

}  // namespace

template <typename T>
cudaError_t launch_resident(const ResidentProblem& problem, cudaStream_t stream) {
  const int rows = problem.greedy.joint.batch;
  const int tiles = problem.plan.frame_tiles;
  if (rows <= 8 && tiles <= 1) return launch<T, 1, 1>(problem, stream);
  if (rows <= 8 && tiles <= 3) return launch<T, 1, 3>(problem, stream);
  return launch<T, 4, 6>(problem, stream);
}

template cudaError_t launch_resident<__nv_bfloat16>(const ResidentProblem&, cudaStream_t);
template cudaError_t launch_resident<__half>(const ResidentProblem&, cudaStream_t);

}  // namespace rnnt_fastdecode::cuda
