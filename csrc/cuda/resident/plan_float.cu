// How the resident decoder lays an fp32 problem over the blocks of a device.
#include <algorithm>

#include "plan.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = 8;
constexpr int kLaneBytes = 40;  // of a lane's part of a column
constexpr int kFloat = 4;
constexpr int kGates = 4;
constexpr int kTilePairs = 8;
constexpr int kMaxColumnTiles = 16;

// How many rows a tile of pairs has, and how many warps share it, for which the busiest slot is done first.
void choose_tiles(const ResidentShape& shape, int rows, int most_part_shift, ResidentPlan& plan) {
  constexpr int kProducts = 20, kOverhead = 5;  // time that a warp alone takes for a tile
  int best = 0;
  for (int shift = 0; shift < 3; ++shift) {
    const int group_rows = 1 << shift;
    const int frame_tiles = divide_up(shape.window, kTilePairs / group_rows);
    const int tiles = divide_up(divide_up(rows, group_rows), plan.slots) * frame_tiles;
    for (int part_shift = 0; part_shift <= most_part_shift; ++part_shift) {
      const int cost = divide_up(tiles, kWarps >> part_shift) * ((kProducts >> part_shift) + kOverhead);
      if (plan.group_rows == 0 || cost < best) {
        best = cost;
        plan.group_rows = group_rows;
        plan.group_shift = shift;
        plan.frame_tiles = frame_tiles;
        plan.single.part_shift = part_shift;
      }
    }
  }
}

}  // namespace

bool plan_float(const ResidentShape& shape, int rows, int multiprocessors, int shared_limit,
                ResidentPlan* plan) {
  ResidentPlan out{};
  FloatPlan& single = out.single;
  out.blocks = multiprocessors;
  single.units = divide_up(shape.width, out.blocks);
  single.outputs = divide_up(shape.joint_width, out.blocks);
  if (shape.width % 4 != 0 || shape.joint_width % 4 != 0 || shape.width > kFloatWidth ||
      shape.joint_width > kFloatWidth || single.units > kFloatUnits || single.outputs > kFloatOutputs) {
    return false;
  }
  out.unit_blocks = divide_up(shape.width, single.units);
  out.output_blocks = divide_up(shape.joint_width, single.outputs);
  // A block without units has time for one row while the others predict, the others are many.
  const int free_blocks = out.blocks - std::max(out.unit_blocks, out.output_blocks);
  out.deciders = rows <= free_blocks ? free_blocks : out.blocks;

  // Few rows leave no time to a block with many columns.
  const int columns = shape.num_tokens + shape.num_durations;
  single.lane_columns = rows <= 4 && columns <= 8 * out.blocks ? 2 : 8;
  single.product_rows = single.lane_columns == 8 ? 8 : rows > 1 ? 4 : 1;
  const int tile_columns = 4 * single.lane_columns;
  const int column_tiles = divide_up(columns, tile_columns);
  out.column_tiles = divide_up(column_tiles, out.blocks);
  out.column_blocks = divide_up(column_tiles, out.column_tiles);
  out.slots = std::min(out.blocks / out.column_blocks, rows);
  const bool few = single.lane_columns == 2;
  choose_tiles(shape, rows, few ? 3 : 2, out);
  if (out.column_tiles > kMaxColumnTiles) {
    return false;
  }
  place_duration_blocks(shape, tile_columns, out);

  int bytes = 0;
  const auto place = [&](int size) {
    const int offset = bytes;
    bytes += static_cast<int>(aligned(size));
    return offset;
  };
  const int layer_units = shape.layers * rows * kFloatUnits;
  // The joint's warps stage 3 or 2 times 32 numbers of eight pairs at a time: see joint_float.cuh.
  const int staged = kWarps * kTilePairs * (few ? 3 : 2) * 32;
  single.slices = place(std::max(single.product_rows * kFloatWidth, staged) * kFloat);
  single.sums = place(4 * kWarps * float_warp_sums(single.product_rows) * kFloat);
  single.cells = place(layer_units * kFloat);
  single.recurrent_sums = place(layer_units * kGates * kFloat);
  single.row_lists = place(2 * kWarps * kFloatRows);
  single.column_biases = place(out.column_tiles * tile_columns * kFloat);
  const int slot_tiles = divide_up(divide_up(rows, out.group_rows), out.slots) * out.frame_tiles;
  single.best = place(out.column_tiles > 1 ? slot_tiles * kTilePairs * kFloatBestBytes : 0);
  const int limit = shared_limit - kFloatStaticBytes;
  // The longer a round waits for weights from device memory, the earlier they find room.
  const auto place_if_room = [&](int size) { return bytes + aligned(size) <= limit ? place(size) : -1; };
  const int gates = kThreads * kFloatUnits * kLaneBytes;
  const int tile_bytes = tile_columns * kFloatWidth * kFloat;
  single.joint_weights = place_if_room(out.column_tiles * tile_bytes);
  single.keeps_columns = single.joint_weights >= 0;
  if (!single.keeps_columns) single.joint_weights = place(tile_bytes);
  if (bytes > limit) {
    return false;
  }
  single.input_weights = shape.layers > 1 ? place_if_room(gates) : -1;
  single.projection_weights = place_if_room(kThreads / 2 * kFloatOutputs / 2 * kLaneBytes);
  for (int layer = kResidentLayers - 1; layer >= 0; --layer) {
    single.recurrent_weights[layer] = layer < shape.layers ? place_if_room(gates) : -1;
  }
  out.shared_bytes = bytes;
  reserve_scratch(shape, rows, kFloat, out);
  *plan = out;
  return true;
}

}  // namespace rnnt_fastdecode::cuda
