// The whole greedy loop in one cooperative kernel: every block keeps its share of the weights in shared
// memory from the first round to the last, and the blocks exchange activations and decisions as messages.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "../greedy_rounds.cuh"

namespace rnnt_fastdecode::cuda {

constexpr int kPassRows = 32;        // rows that a stage takes at a time, of 16-bit types
constexpr int kResidentRows = 128;   // rows of one launch at most, of 16-bit types
constexpr int kResidentLayers = 2;   // layers of an LSTM at most
constexpr int kResidentWidth = 768;  // H and J at most
constexpr int kResidentHistory = 3;  // labels before the last one that a stateless predictor sees at most
constexpr int kResidentWindow = 48;  // W at most
constexpr int kGenerations = 4;      // of value messages

// In fp32: the same, H and J, units of every layer and outputs of a block at most.
constexpr int kFloatRows = 128;
constexpr int kFloatStaticBytes = 7168;
constexpr int kFloatWidth = 640;
constexpr int kFloatUnits = 5;
constexpr int kFloatOutputs = 6;
constexpr int kFloatBestBytes = 24;

// Of few rows: columns of a lane, and steps of 32 numbers that the joint stages at a time, where a product of
// the predictor has up to 4 rows and where it has 8. Of many: columns and tiles of 8 (row, frame) pairs of a
// task of the joint, where there are up to 8 rows and where more.
constexpr int kFewLaneColumns[] = {2, 8};
constexpr int kFewStaged[] = {3, 2};
constexpr int kManyColumns = 32;
constexpr int kManyTiles[] = {2, 4};

// Chunks of 32 recurrent weights that are multiplied at a time.
constexpr int kPartChunks = 4;

constexpr int resident_rows(bool half) { return half ? kResidentRows : kFloatRows; }

// What decides how the work is laid out.
struct ResidentShape {
  int layers;   // of the LSTM; 0 for a stateless predictor
  int context;  // labels that a stateless predictor sees; 0 for an LSTM
  int width;    // H
  int joint_width;
  int num_tokens;
  int num_durations;
  int batch;
  int window;
  bool half;  // weights and activations of 16 bits

  bool operator==(const ResidentShape&) const = default;
};

// The share of a block in fp32 and byte offsets into dynamic shared memory.
struct FloatPlan {
  int units;    // of every layer
  int outputs;  // of the projection
  int joint_weights;
  int column_biases;
  int sums;
  int row_lists;
};

// Of a few rows, whose products are chains of fp32 additions. Weights that found no room (-1) are read from
// device memory in every round.
struct FewPlan {
  int product_rows;  // of a product of the predictor: 1, 4 or 8; 0 where there are many rows
  int part_shift;    // logarithm of the number of warps that share a tile of pairs
  int input_weights;
  int recurrent_weights[kResidentLayers];
  int projection_weights;
  int slices;
  int cells;
  int recurrent_sums;
};

// Of many rows, whose products are made on tensor cores: see split.cuh.
struct ManyPlan {
  int row_tiles;       // of 8 rows, in a pass of the predictor: 1 or 4
  int hidden_steps;    // of 16 numbers, in a warp's eighth of the hidden values
  int joint_steps;     // likewise of the joint
  bool keeps_columns;  // of the joint; else 32 of them at a time find room
  int weights;         // of the predictor
  int biases;
  int best_bytes;  // of a block, where it has several tiles of columns
  int64_t best;    // into the scratch memory
  int64_t recurrent_sums;
};

// Floats of a warp in each of the four arrays of sums: gates of as many rows. The joint has 64, or of 32
// columns 256, in the first two.
constexpr int float_warp_sums(int product_rows) {
  return product_rows * kFloatUnits * 4 < 32 ? 32 : product_rows * kFloatUnits * 4;
}

// Of the kernel in 16-bit types: up to 8 rows, one tile of columns and 1, 2 or 4 tiles of (row, frame) pairs;
// anything of up to kPassRows rows that fits; or more rows, in passes.
enum class HalfVariant { kOneTile, kTwoTiles, kFourTiles, kWide, kPasses };

// Shared memory beside what the plan lays out, at most.
constexpr int half_static_bytes(HalfVariant variant) { return variant == HalfVariant::kPasses ? 7040 : 2048; }

// The joint's sums as the warps leave them to each other, in 16-bit types: of each part of the depth the
// (row, frame) pairs, of each pair the columns. The spaces between keep lanes off each other's banks.
constexpr int kFewTiles = 4;
constexpr int joint_depths(int tiles) { return tiles > kFewTiles ? 4 : 8; }
constexpr int kColumnsPerTile = 16;
constexpr int joint_pair_floats(int column_tiles) { return column_tiles * kColumnsPerTile + 4; }
constexpr int joint_depth_floats(int tiles, int column_tiles) {
  return tiles * 8 * joint_pair_floats(column_tiles) + 32 / joint_depths(tiles);
}
constexpr int joint_sum_bytes(int tiles, int column_tiles) {
  return joint_depths(tiles) * joint_depth_floats(tiles, column_tiles) * 4;
}

// Who does what. Blocks 0 .. unit_blocks - 1 own 8 units of every layer, output_blocks blocks from
// first_output_block on own 16 outputs of the projection. In the joint, block = slot * column_blocks +
// column: it owns `column_tiles` tiles of 16 columns, for the groups of `group_rows` batch rows slot, slot +
// slots, ... The last `deciders` blocks walk the rows.
// In fp32 a block has other numbers of units, outputs and columns, and groups are groups of live rows.
struct ResidentPlan {
  HalfVariant variant;
  int blocks;
  int unit_blocks;
  int first_output_block;
  int output_blocks;
  int deciders;
  int column_blocks;
  int column_tiles;
  int slots;
  int group_rows;                // 1, 2, 4 or 8
  int group_shift;               // its logarithm
  int frame_tiles;               // tiles of 8 (row, frame) pairs that a group's window fills
  unsigned frame_tiles_inverse;  // 2^32 / frame_tiles, rounded up: its product's upper half is a quotient
  int frame_buffers;             // windows of groups that are in shared memory at once
  int duration_blocks;           // column blocks that hold duration columns, from first_duration_block on
  int first_duration_block;
  // Byte offsets into dynamic shared memory.
  int recurrent_weights;
  int projection_weights;
  int recurrent_sums;  // of up to kPassRows rows
  int side_sums;
  int encoder_frames;
  int joint_weights;
  int column_biases;
  int sums;
  int shared_bytes;
  // Byte offsets into the scratch memory.
  int64_t hidden_messages;
  int64_t output_messages;
  int64_t decisions;
  int64_t partials;
  int64_t duration_partials;
  int64_t partial_sums;
  int64_t progress;
  int64_t recurrent_scratch;  // sums of more rows than that
  int64_t scratch_bytes;
  FloatPlan single;
  FewPlan few;
  ManyPlan many;
};

// False where the shape does not fit this device.
bool plan_resident(const ResidentShape& shape, int multiprocessors, int shared_limit, ResidentPlan* plan);

struct ResidentProblem {
  GreedyProblem greedy;  // labels, partials and splits are not used
  const float*
      gate_table;      // LSTM: [V, H, 4] input gates i, f, g, o of layer 0 for every label, with both biases
  const void* tables;  // stateless: [C, V, H]
  const void* weight;  // LSTM: [L, 4H, 2H]
  const float* bias;   // LSTM: [L, 4H]
  const void* projection;  // [J, H]
  const void* projection_bias;
  void* hidden;    // [L, B, H]
  float* cell;     // [L, B, H]
  int* context;    // stateless: [B, C - 1], most recent first
  void* output;    // [B, J]
  int state_rows;  // B of the state tensors; this launch has greedy.joint.batch of them
  int layers;
  int context_size;
  int width;
  bool relu;
  ResidentPlan plan;
  unsigned char* scratch;
};

template <typename T>
cudaError_t launch_resident(const ResidentProblem& problem, cudaStream_t stream);

}  // namespace rnnt_fastdecode::cuda
