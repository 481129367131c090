// The encoder's frames in shared memory: of each of a block's groups of rows the next window, one tile for 8
// (row, frame) pairs. Where a block judges one group of 8 rows, frames stay from round to round, in a ring.
// Where not all groups find room, those that are judged make room for others.
#pragma once

#include "../fragments.cuh"
#include "crew.cuh"

namespace rnnt_fastdecode::cuda {

struct FrameTiles {
  const Context& c;
  const ResidentPlan& plan = c.plan;
  const JointProblem& joint = c.p.greedy.joint;
  const int chunks = (joint.width + kChunk - 1) / kChunk;

  __device__ bool exists(int group) const { return c.slot < plan.slots && group * plan.group_rows < c.batch; }
  // The row of this lane.
  __device__ int row_of(int group) const { return group * plan.group_rows + (c.g & (plan.group_rows - 1)); }
  __device__ bool is_live(int row) const { return row < c.batch && !c.rows.done[row]; }
  __device__ bool stay() const {
    return plan.group_rows == 8 && plan.frame_tiles > 1 && (c.slot + plan.slots) * plan.group_rows >= c.batch;
  }
  // Where the window of a row begins.
  __device__ int first_place(int time) const {
    return stay() ? time - plan.frame_tiles * __umulhi(time, plan.frame_tiles_inverse) : 0;
  }
  // The windows in shared memory are those of a block's groups in turn.
  __device__ int buffer_after(int buffer) const { return buffer + 1 < plan.frame_buffers ? buffer + 1 : 0; }
  __device__ __forceinline__ uint4* place(int buffer, int first, int tile, int chunk) const {
    const int place = first + tile;
    const int wrapped = place < plan.frame_tiles ? place : place - plan.frame_tiles;
    return c.fragments(plan.encoder_frames) +
           ((buffer * plan.frame_tiles + wrapped) * chunks + chunk) * kWarp + c.lane;
  }
};

// Fetches frames.
template <typename T, typename Crew>
struct FrameLoader {
  const Context& c;
  const FrameTiles tiles{c};
  const int warp = Crew::thread() / kWarp;

  // Beyond the joint width frames stay zero: whatever else lay there could be no number.
  __device__ void clear() const {
    for (int i = warp; i < tiles.plan.frame_buffers * tiles.plan.frame_tiles * tiles.chunks;
         i += Crew::kWarps) {
      c.fragments(tiles.plan.encoder_frames)[i * kWarp + c.lane] = {0, 0, 0, 0};
    }
  }

  // staged_end: of this lane's row, where frames stay; those before it are in shared memory.
  __device__ void stage(int group, int buffer, int& staged_end) const {
    const JointProblem& joint = tiles.joint;
    const int row = tiles.row_of(group), shift = 3 - tiles.plan.group_shift;
    const bool live = tiles.is_live(row);
    const int time = live ? c.rows.times[row] : 0;
    const int end = live ? min(c.rows.lengths[row], time + joint.window) : 0;
    const int begin = tiles.stay() ? max(time, staged_end) : time;
    const int first = tiles.first_place(time);
    staged_end = max(staged_end, end);
    const int first_frame = time + (c.g >> tiles.plan.group_shift);
    const T* encoder = static_cast<const T*>(joint.encoder) + row * joint.encoder_batch_stride +
                       warp * kChunk + c.t * kLaneElements;
    // This lane's parts of a frame.
    const int left = joint.width - warp * kChunk - c.t * kLaneElements;
    const int parts = (left + Crew::kWarps * kChunk - 1) / (Crew::kWarps * kChunk);
#pragma unroll 1
    for (int n = 0; n < tiles.plan.frame_tiles; ++n) {
      const int frame = first_frame + (n << shift);
      const int wanted = frame >= begin && frame < end ? parts : 0;
      const T* source = encoder + static_cast<int64_t>(frame) * joint.width;
      uint4* const place = tiles.place(buffer, first, n, warp);
#pragma unroll
      for (int i = 0; i < kResidentWidth / kChunk / Crew::kWarps; ++i) {
        copy_to_shared(place + i * Crew::kWarps * kWarp, source + i * Crew::kWarps * kChunk, i < wanted);
      }
    }
  }

  // Of a round, as many groups as find room.
  __device__ void stage_first(int& staged_end) const {
    const FrameTiles& t = tiles;
    int group = c.slot;
    for (int buffer = 0; buffer < t.plan.frame_buffers && t.exists(group); ++buffer) {
      stage(group, buffer, staged_end);
      group += t.plan.slots;
    }
    await_copies();
  }
};

}  // namespace rnnt_fastdecode::cuda
