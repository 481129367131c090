// How the resident decoder lays an fp32 problem over the blocks of a device.
#include <algorithm>

#include "../split.cuh"
#include "plan.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = 8;
constexpr int kFloat = 4;
constexpr int kGates = 4;
constexpr int kTilePairs = 8;
constexpr int kFewRows = 8;
constexpr int kLaneBytes = 40;  // of few rows: of a lane's part of a column
constexpr int kTileStepBytes = 16 * kStepDepth * kFloat;
constexpr int kPartBytes = 512;  // 16 bytes of every lane
constexpr int kMaxColumnTiles = 16;

// Dynamic shared memory, from its beginning on.
struct Room {
  int limit;
  int used = 0;

  int place(int size) {
    const int offset = used;
    used += static_cast<int>(aligned(size));
    return offset;
  }
  int place_if_free(int size) { return used + aligned(size) <= limit ? place(size) : -1; }
};

void place_columns(const ResidentShape& shape, int rows, int tile_columns, ResidentPlan& plan) {
  const int column_tiles = divide_up(shape.num_tokens + shape.num_durations, tile_columns);
  plan.column_tiles = divide_up(column_tiles, plan.blocks);
  plan.column_blocks = divide_up(column_tiles, plan.column_tiles);
  plan.slots = std::min(plan.blocks / plan.column_blocks, rows);
  place_duration_blocks(shape, tile_columns, plan);
}

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
        plan.few.part_shift = part_shift;
      }
    }
  }
}

// Rows are few where every block has one tile of columns: a small one for up to 4.
bool plan_few(const ResidentShape& shape, int rows, Room& room, ResidentPlan& plan) {
  FloatPlan& single = plan.single;
  FewPlan& few = plan.few;
  const int columns = shape.num_tokens + shape.num_durations;
  const bool wide = rows > 4 || columns > 4 * kFewLaneColumns[0] * plan.blocks;
  const int tile_columns = 4 * kFewLaneColumns[wide];
  few.product_rows = wide ? 8 : rows > 1 ? 4 : 1;
  place_columns(shape, rows, tile_columns, plan);
  choose_tiles(shape, rows, wide ? 2 : 3, plan);

  const int layer_units = shape.layers * rows * kFloatUnits;
  few.slices = room.place(
      std::max(few.product_rows * kFloatWidth, kWarps * kTilePairs * kFewStaged[wide] * 32) * kFloat);
  single.sums = room.place(4 * kWarps * float_warp_sums(few.product_rows) * kFloat);
  few.cells = room.place(layer_units * kFloat);
  few.recurrent_sums = room.place(layer_units * kGates * kFloat);
  single.row_lists = room.place(2 * kWarps * kFloatRows);
  single.column_biases = room.place(tile_columns * kFloat);
  single.joint_weights = room.place(tile_columns * kFloatWidth * kFloat);
  if (room.used > room.limit) {
    return false;
  }
  // The longer a round waits for weights from device memory, the earlier they find room.
  const int gates = kThreads * kFloatUnits * kLaneBytes;
  few.input_weights = shape.layers > 1 ? room.place_if_free(gates) : -1;
  few.projection_weights = room.place_if_free(kThreads / 2 * kFloatOutputs / 2 * kLaneBytes);
  for (int layer = kResidentLayers - 1; layer >= 0; --layer) {
    few.recurrent_weights[layer] = layer < shape.layers ? room.place_if_free(gates) : -1;
  }
  return true;
}

bool plan_many(const ResidentShape& shape, int rows, Room& room, ResidentPlan& plan) {
  FloatPlan& single = plan.single;
  ManyPlan& many = plan.many;
  many.row_tiles = rows <= 8 ? 1 : 4;
  place_columns(shape, rows, kManyColumns, plan);
  if (plan.column_tiles > kMaxColumnTiles) {
    return false;
  }
  many.hidden_steps = divide_up(divide_up(shape.width, kStepDepth), kWarps);
  many.joint_steps = divide_up(divide_up(shape.joint_width, kStepDepth), kWarps);

  const int joint_tiles = kManyTiles[rows > 8];
  const int groups = divide_up(divide_up(rows, 8), plan.slots);
  const int tasks = groups * divide_up(shape.window, joint_tiles);
  // Tiles of columns that are kept of a stage that another layer follows, and of the last.
  const int kept = shape.layers > 1 ? 2 + 1 : 1;
  const int joint_bytes = kManyColumns / 16 * kWarps * many.joint_steps * kTileStepBytes;
  many.weights = room.place(kept * kWarps * many.hidden_steps * kTileStepBytes);
  single.sums = room.place(kWarps * 4 * kPartBytes);
  single.row_lists = room.place(2 * kWarps * kFloatRows);
  many.biases = room.place((8 + kFloatUnits * kGates) * kFloat);
  single.column_biases = room.place(plan.column_tiles * kManyColumns * kFloat);
  many.best_bytes = plan.column_tiles > 1 ? tasks * joint_tiles * kTilePairs * kFloatBestBytes : 0;
  single.joint_weights = room.place_if_free(plan.column_tiles * joint_bytes);
  many.keeps_columns = single.joint_weights >= 0;
  if (!many.keeps_columns) single.joint_weights = room.place(joint_bytes);
  return room.used <= room.limit;
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

  Room room{.limit = shared_limit - kFloatStaticBytes};
  const int most_columns = 4 * kFewLaneColumns[1] * out.blocks;
  const bool few = rows <= kFewRows && shape.num_tokens + shape.num_durations <= most_columns;
  if (!(few ? plan_few : plan_many)(shape, rows, room, out)) {
    return false;
  }
  out.shared_bytes = room.used;
  reserve_scratch(shape, rows, kFloat, out);
  if (!few) {
    out.many.best = reserve(out, static_cast<int64_t>(out.blocks) * out.many.best_bytes);
    out.many.recurrent_sums =
        reserve(out, static_cast<int64_t>(shape.layers) * rows * shape.width * kGates * kFloat);
  }
  *plan = out;
  return true;
}

}  // namespace rnnt_fastdecode::cuda
