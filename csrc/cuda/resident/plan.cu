// How the resident decoder lays a problem over the blocks of a device.
#include <algorithm>

#include "plan.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kFragmentBytes = 512;  // 8 rows of a chunk of 32 numbers
constexpr int kGates = 4;
constexpr int kMaxFrameTiles = 6;
constexpr int kSideWarps = 4;
constexpr int kSumBytes = 512;  // 16 bytes of every lane

HalfVariant choose_variant(int rows, int frame_tiles, int column_tiles) {
  if (rows > kPassRows) return HalfVariant::kPasses;
  if (rows > 8 || frame_tiles > 4 || column_tiles > 1) return HalfVariant::kWide;
  if (frame_tiles > 2) return HalfVariant::kFourTiles;
  return frame_tiles == 2 ? HalfVariant::kTwoTiles : HalfVariant::kOneTile;
}

// Of the parts of sums that warps leave to each other: those of the predictor, for each tile of 8 rows two
// gates, or those of the joint.
int main_sum_bytes(HalfVariant variant) {
  const auto larger = [](int row_tiles, int joint) {
    return static_cast<int>(aligned(std::max(2 * row_tiles * kWarps * kSumBytes, joint)));
  };
  switch (variant) {
    case HalfVariant::kOneTile:
      return larger(1, joint_sum_bytes(1, 1));
    case HalfVariant::kTwoTiles:
      return larger(1, joint_sum_bytes(2, 1));
    case HalfVariant::kFourTiles:
      return larger(1, joint_sum_bytes(4, 1));
    default:
      return larger(4, joint_sum_bytes(6, 2));
  }
}

bool plan_half(const ResidentShape& shape, int rows, int multiprocessors, int shared_limit,
               ResidentPlan* plan) {
  if (shape.width % 8 != 0 || shape.joint_width % 8 != 0 || shape.width > kResidentWidth ||
      shape.joint_width > kResidentWidth) {
    return false;
  }
  ResidentPlan out{};
  out.blocks = multiprocessors;
  out.unit_blocks = shape.width / 8;
  out.output_blocks = divide_up(shape.joint_width, 16);
  out.first_output_block = out.blocks - out.output_blocks;
  if (std::max(out.unit_blocks, out.output_blocks) > out.blocks) {
    return false;
  }
  // Blocks without units have time to walk rows while the others predict.
  const int free_blocks = out.blocks - out.unit_blocks;
  out.deciders = 2 * free_blocks >= rows ? free_blocks : out.blocks;

  out.group_rows = 1;
  // Four groups at most, or two that leave every block one tile of columns.
  while (out.group_rows < (rows <= 16 ? 4 : 8) && out.group_rows * 4 <= rows) {
    out.group_rows *= 2;
    ++out.group_shift;
  }
  const int frames_per_tile = 8 / out.group_rows;
  out.frame_tiles = divide_up(shape.window, frames_per_tile);
  if (out.frame_tiles > kMaxFrameTiles) {
    return false;
  }

  out.frame_tiles_inverse =
      static_cast<unsigned>(((int64_t{1} << 32) + out.frame_tiles - 1) / out.frame_tiles);

  const int chunks = divide_up(shape.width, 32), joint_chunks = divide_up(shape.joint_width, 32);
  int bytes = 0;
  const auto place = [&](int size) {
    const int offset = bytes;
    bytes += static_cast<int>(aligned(size));
    return offset;
  };
  const int recurrent_chunks = static_cast<int>(aligned_to(chunks, kPartChunks));
  out.recurrent_weights = place(shape.layers * recurrent_chunks * kGates * kFragmentBytes);
  // Where no block has both, recurrent weights and those of the projection have the same place.
  const bool apart = out.unit_blocks <= out.first_output_block && shape.layers > 0;
  out.projection_weights = apart ? out.recurrent_weights : place(chunks * 2 * kFragmentBytes);
  out.recurrent_sums = place(rows > kPassRows ? 0 : shape.layers * divide_up(rows, 8) * 2 * kSumBytes);
  out.side_sums = place(rows > 8 ? 0 : shape.layers * 2 * kSideWarps * kSumBytes);
  out.joint_weights = place(0);

  // The least work for the busiest block: for each of its groups the exchange of messages and sums, which
  // costs about as much as one and a half tiles of columns, and its tiles.
  const int tiles = divide_up(shape.num_tokens + shape.num_durations, kColumnsPerTile);
  const int groups = divide_up(rows, out.group_rows);
  int64_t best = -1;
  for (int slots = 1; slots <= std::min(groups, out.blocks); ++slots) {
    const int column_blocks = std::min(out.blocks / slots, tiles);
    const int column_tiles = divide_up(tiles, column_blocks);
    const int weights = column_tiles * joint_chunks * 2 * kFragmentBytes;
    const int biases = static_cast<int>(aligned(column_tiles * kColumnsPerTile * sizeof(float)));
    const HalfVariant variant = choose_variant(rows, out.frame_tiles, column_tiles);
    const int without_frames = bytes + weights + biases + main_sum_bytes(variant);
    const int window_bytes = out.frame_tiles * joint_chunks * kFragmentBytes;
    const int room = shared_limit - half_static_bytes(variant) - without_frames;
    const int slot_groups = divide_up(groups, slots), buffers = std::min(room / window_bytes, slot_groups);
    const bool makes_room = variant == HalfVariant::kWide || variant == HalfVariant::kPasses;
    if (room < 0 || buffers < (makes_room ? 1 : slot_groups)) {
      continue;
    }
    const int64_t cost = static_cast<int64_t>(2 * column_tiles + 3) * slot_groups;
    if (best < 0 || cost < best) {
      best = cost;
      out.slots = slots;
      out.column_tiles = column_tiles;
      out.column_blocks = divide_up(tiles, column_tiles);
      out.variant = variant;
      out.column_biases = out.joint_weights + weights;
      out.sums = out.column_biases + biases;
      out.encoder_frames = out.sums + main_sum_bytes(variant);
      out.frame_buffers = buffers;
      out.shared_bytes = without_frames + buffers * window_bytes;
    }
  }
  if (best < 0) {
    return false;
  }
  place_duration_blocks(shape, kColumnsPerTile, out);
  reserve_scratch(shape, rows, 2, out);
  if (out.variant == HalfVariant::kPasses) {
    const int block_sums = kResidentLayers * divide_up(rows, 8) * 2 * kSumBytes;
    out.recurrent_scratch = reserve(out, static_cast<int64_t>(out.blocks) * block_sums);
  }
  *plan = out;
  return true;
}

}  // namespace

void place_duration_blocks(const ResidentShape& shape, int tile_columns, ResidentPlan& plan) {
  plan.first_duration_block = shape.num_tokens / (plan.column_tiles * tile_columns);
  plan.duration_blocks = shape.num_durations > 0 ? plan.column_blocks - plan.first_duration_block : 0;
}

void reserve_scratch(const ResidentShape& shape, int64_t rows, int element_bytes, ResidentPlan& plan) {
  constexpr int64_t kMessage = 16;
  // Whole tiles of 8 rows and chunks of 32 numbers.
  const int64_t values = kGenerations * aligned_to(rows, 8) * element_bytes;
  plan.hidden_messages = reserve(plan, values * std::max(shape.layers, 1) * aligned_to(shape.width, 32));
  plan.output_messages = reserve(plan, values * aligned_to(shape.joint_width, 32));
  plan.decisions = reserve(plan, 2 * plan.blocks * rows * kMessage);
  plan.partials = reserve(plan, 2 * rows * shape.window * plan.column_blocks * kMessage);
  plan.duration_partials = reserve(plan, 2 * rows * shape.window * plan.duration_blocks * kMessage);
  plan.partial_sums = reserve(plan, 2 * rows * shape.window * plan.column_blocks * kMessage);
  plan.progress = reserve(plan, plan.blocks * static_cast<int64_t>(sizeof(int)));
}

bool plan_resident(const ResidentShape& shape, int multiprocessors, int shared_limit, ResidentPlan* plan) {
  const int rows = std::min(shape.batch, resident_rows(shape.half));
  if (rows == 0 || shape.window > kResidentWindow || shape.layers > kResidentLayers ||
      shape.context > kResidentHistory + 1) {
    return false;
  }
  return (shape.half ? plan_half : plan_float)(shape, rows, multiprocessors, shared_limit, plan);
}

}  // namespace rnnt_fastdecode::cuda
