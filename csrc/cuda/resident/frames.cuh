// The encoder's frames in shared memory: of a group of rows the next window, one tile for 8 (row, frame)
// pairs. Where a block judges one group of 8 rows, frames stay from round to round, in a ring.
#pragma once

#include "../fragments.cuh"
#include "crew.cuh"

namespace rnnt_fastdecode::cuda {

struct FrameTiles {
  const Context& c;
  const ResidentPlan& plan = c.plan;
  const JointProblem& joint = c.p.greedy.joint;
  const int chunks = (joint.width + kChunk - 1) / kChunk;

  // The row of this lane.
  __device__ int row_of(int group) const { return group * plan.group_rows + (c.g & (plan.group_rows - 1)); }
  __device__ bool is_live(int row) const { return row < c.batch && !c.rows.done[row]; }
  __device__ bool stay() const {
    return plan.group_rows == 8 && (c.slot + plan.slots) * plan.group_rows >= c.batch;
  }
  // Where the window of a row begins.
  __device__ int first_place(int time) const { return stay() ? time % plan.frame_tiles : 0; }
  __device__ __forceinline__ uint4* place(int first, int tile, int chunk) const {
    const int place = first + tile;
    const int wrapped = place < plan.frame_tiles ? place : place - plan.frame_tiles;
    return c.fragments(plan.encoder_frames) + (wrapped * chunks + chunk) * kWarp + c.lane;
  }
};

// Fetches frames, for the side crew.
template <typename T>
struct FrameLoader {
  const Context& c;
  const FrameTiles tiles{c};
  const int warp = c.warp - kWarps;

  // Beyond the joint width frames stay zero: whatever else lay there could be no number.
  __device__ void clear() const {
    for (int i = warp; i < tiles.plan.frame_tiles * tiles.chunks; i += kSideWarps) {
      c.fragments(tiles.plan.encoder_frames)[i * kWarp + c.lane] = {0, 0, 0, 0};
    }
  }

  // staged_end: of this lane's row, where frames stay; those before it are in shared memory.
  __device__ void stage(int group, int& staged_end) const {
    const JointProblem& joint = tiles.joint;
    const int row = tiles.row_of(group), shift = 3 - tiles.plan.group_shift;
    const bool live = tiles.is_live(row);
    const int time = live ? c.rows.times[row] : 0;
    const int end = live ? min(c.rows.lengths[row], time + joint.window) : 0;
    const int begin = tiles.stay() ? max(time, staged_end) : time;
    const int first = tiles.first_place(time);
    staged_end = max(staged_end, end);
    const int first_frame = time + (c.g >> tiles.plan.group_shift);
    const T* encoder = static_cast<const T*>(joint.encoder) + row * joint.encoder_batch_stride;
    for (int n = 0; n < tiles.plan.frame_tiles; ++n) {
      const int frame = first_frame + (n << shift);
      const bool wanted = frame >= begin && frame < end;
      const T* source = encoder + static_cast<int64_t>(frame) * joint.width + c.t * kLaneElements;
      for (int chunk = warp; chunk < tiles.chunks; chunk += kSideWarps) {
        copy_to_shared(tiles.place(first, n, chunk), source + chunk * kChunk,
                       wanted && chunk * kChunk + c.t * kLaneElements < joint.width);
      }
    }
  }

  __device__ void stage_first(int& staged_end) const {
    if (c.slot < tiles.plan.slots) stage(c.slot, staged_end);
  }

  // Where there was nothing to fetch too: neither crew gets a round ahead of the other.
  __device__ void finish() const {
    await_copies();
    tell<Meeting::kFramesReady>();
  }

  // Whenever the group before is judged.
  __device__ void stage_others(int& staged_end) const {
    if (c.slot >= tiles.plan.slots) return;
    for (int group = c.slot + tiles.plan.slots; group * tiles.plan.group_rows < c.batch;
         group += tiles.plan.slots) {
      await<Meeting::kFramesFree>();
      stage(group, staged_end);
      finish();
    }
  }
};

}  // namespace rnnt_fastdecode::cuda
