// Joint + argmax in large tiles: what joint_argmax.cu does, for rows of whole 16-byte vectors.
//
// A block owns 8 * kTiles joint rows and a slice of the columns. Its rows are neighbours in the list of the
// rows that have a frame: rows beyond the end of their utterance cost nothing. The block builds its
// activations once in shared memory, the sum and the activation each rounded to T. Then its warps walk the
// slice, 32 columns at a time, with the weights coming from the L2 cache through registers while the
// previous ones are multiplied; where fewer than eight groups of 32 are left, several warps share the depth
// of one. Each warp reduces its columns to a maximum, its first index and the sum of exponentials for each
// row; what a column group has found stays in shared memory until the block merges its groups into one
// JointPartial for each row.

#include "joint_activation.cuh"
#include "joint_tiles.cuh"
#include "shared_memory.cuh"
#include "tile_plan.cuh"
#include "weight_stream.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

using namespace product;

struct FrameRow {
  int row;  // batch * window + place in the window
  int batch;
  int frame;
};

// Row r of the operand belongs to warp r % kWarps; rows from `count` on and the depth beyond `width` are 0.
template <typename T, int kTiles, typename Function>
__device__ inline void build_activations(unsigned char* operand, const JointProblem& p, const FrameRow* rows,
                                         int count, Function function) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int vectors = p.width / kVector<T>;
  const int stride = row_stride(vectors);
  const auto* encoder = static_cast<const uint4*>(p.encoder);
  const auto* predictor = static_cast<const uint4*>(p.predictor);
  const int64_t batch_stride = p.encoder_batch_stride / kVector<T>;
  for (int v = lane; v < ceil_div(vectors, kChunkVectors) * kChunkVectors; v += kWarp) {
#pragma unroll 4
    for (int i = 0; i < kTiles; ++i) {
      const int r = i * kWarps + warp;
      uint4 out{0, 0, 0, 0};
      if (r < count && v < vectors) {
        const FrameRow row = rows[r];
        const int64_t frame = row.batch * batch_stride + static_cast<int64_t>(row.frame) * vectors;
        const int64_t label = static_cast<int64_t>(row.batch) * vectors;
        out = activated<T>(__ldg(encoder + frame + v), __ldg(predictor + label + v), function);
      }
      *reinterpret_cast<uint4*>(operand + r * stride + v * kVectorBytes) = out;
    }
  }
}

struct Best {
  float max;
  int index;
  float sum;  // of exp(logit - max)
};

// The best of the columns `first` + 8 * octet + (lane's row of the octet) whose bit is set in `wanted`, by
// the eight lanes that hold them; logits as the sums of `multiply`. Lanes with an even row return the result
// for the tile's row 2t, the others that for row 2t + 1. NaN is the greatest, of equal ones the first wins.
__device__ inline Best best_of_columns(const float (&logits)[kSums], unsigned wanted, int first, int lane) {
  constexpr int kFirstOffset = 4;  // from a lane to the one with the next row of its octets
  float top[2];
  int index[2] = {INT32_MAX, INT32_MAX};
  float sum[2] = {0.0f, 0.0f};
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    float values[kOctets];
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      values[octet] = (wanted >> octet & 1) != 0 ? logits[2 * octet + j] : -INFINITY;
    }
    top[j] = ptx::max_nan(ptx::max_nan(values[0], values[1]), ptx::max_nan(values[2], values[3]));
#pragma unroll
    for (int offset = kFirstOffset; offset < kWarp; offset *= 2) {
      top[j] = ptx::max_nan(top[j], __shfl_xor_sync(kFullMask, top[j], offset));
    }
    // exp(-inf - -inf) must count as nothing, not as NaN.
    const float base = top[j] == -INFINITY ? 0.0f : top[j];
#pragma unroll
    for (int octet = kOctets - 1; octet >= 0; --octet) {
      const bool best = values[octet] == top[j] || isnan(values[octet]);
      index[j] = best && (wanted >> octet & 1) != 0 ? first + octet * kOctet + lane / 4 : index[j];
      sum[j] += __expf(values[octet] - base);
    }
  }
  const bool odd = (lane & kFirstOffset) != 0;
  Best best{odd ? top[1] : top[0], odd ? index[1] : index[0], odd ? sum[1] : sum[0]};
  best.index = min(best.index, __shfl_xor_sync(kFullMask, odd ? index[0] : index[1], kFirstOffset));
  best.sum += __shfl_xor_sync(kFullMask, odd ? sum[0] : sum[1], kFirstOffset);
#pragma unroll
  for (int offset = 2 * kFirstOffset; offset < kWarp; offset *= 2) {
    best.index = min(best.index, __shfl_xor_sync(kFullMask, best.index, offset));
    best.sum += __shfl_xor_sync(kFullMask, best.sum, offset);
  }
  return best;
}

// Bits of the lane's columns `first` + 8 * octet + (row of the octet) that lie in [low, high).
__device__ inline unsigned columns_between(int first, int low, int high, int lane) {
  unsigned wanted = 0;
#pragma unroll
  for (int octet = 0; octet < kOctets; ++octet) {
    const int column = first + octet * kOctet + lane / 4;
    wanted |= column >= low && column < high ? 1u << octet : 0u;
  }
  return wanted;
}

// What the warp's columns say of its tile's eight rows, in the lanes that best_of_columns names.
__device__ inline JointPartial tile_partial(const float (&logits)[kSums], const JointProblem& p, int first,
                                            int end, int lane) {
  JointPartial partial = empty_partial();
  const int last_kind = min(first + kWarpColumns, end) > p.num_tokens ? 1 : 0;
#pragma unroll 1
  for (int kind = 0; kind <= last_kind; ++kind) {
    const int low = kind == 0 ? 0 : p.num_tokens;
    const int high = kind == 0 ? min(end, p.num_tokens) : end;
    const Best best = best_of_columns(logits, columns_between(first, low, high, lane), first, lane);
    if (kind == 0) {
      partial.token_max = best.max;
      partial.token = best.index;
      partial.token_sum = best.sum;
    } else {
      partial.duration_max = best.max;
      partial.duration = best.index == INT32_MAX ? INT32_MAX : best.index - low;
    }
  }
  return partial;
}

template <typename T, int kTiles>
__global__ void __launch_bounds__(kThreads, 1)
    joint_tiles_kernel(JointProblem p, JointPartial* partials, int splits, int columns_per_split,
                       LoopSignal signal) {
  constexpr int kRows = kTiles * kOctet;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  __shared__ JointPartial found[kWarps][kRows];  // by column group
  __shared__ FrameRow rows[kRows];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const T* bias = static_cast<const T*>(p.bias);
  const int begin = blockIdx.y * columns_per_split;
  const int end = min(begin + columns_per_split, p.columns());

  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) {
    signal.clear();
  }

  WeightStream<kAhead<T, kTiles>> weights;
  const int vectors = p.width / kVector<T>;
  float biases[kOctets];
  const auto start = [&](int column, const WarpShare& share) {
    int columns[kOctets];
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      columns[octet] = min(column + octet * kOctet + lane / 4, p.columns() - 1);
      biases[octet] = bias == nullptr ? 0.0f : to_float(bias[columns[octet]]);
    }
    weights.start(p.weight, columns, {vectors}, share, lane);
  };
  WarpShare share(ceil_div(max(end - begin, 0), kWarpColumns), warp);
  int column = begin + share.column_group * kWarpColumns;
  start(column, share);

  const int first_row = blockIdx.x * kRows;
  const auto frames = [&](int batch) {
    return max(0, min(min(p.lengths[batch], p.frames) - p.times[batch], p.window));
  };
  const int found_rows = find_items<kRows>(p.batch, first_row, frames, [&](int place, int batch, int frame) {
    rows[place] = {batch * p.window + frame, batch, p.times[batch] + frame};
  });
  const int count = min(found_rows - first_row, kRows);
  if (count <= 0) {
    return;
  }
  __syncthreads();
  with_activation<T>(p.activation, [&](auto function) {
    build_activations<T, kTiles>(shared_bytes, p, rows, count, function);
  });
  __syncthreads();

  float* exchange = reinterpret_cast<float*>(shared_bytes + kRows * row_stride(vectors));
  for (int first = begin; first < end;) {
    float sums[kTiles][kSums] = {};
    if (column < end) {
      ResidentOperand<WarpProduct<T, kTiles>> operand(shared_bytes, vectors, share, lane);
      multiply<T>(sums, weights, share.chunks(vectors), operand, lane);
    }
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const float own = share.k_group == 0 ? biases[octet] : 0.0f;
        sums[tile][2 * octet] += own;
        sums[tile][2 * octet + 1] += own;
      }
    }
    const WarpShare now = share;
    const int now_column = column;
    const bool is_first = first == begin;
    first += kWarps / now.k_groups * kWarpColumns;
    if (first < end) {
      share = WarpShare(ceil_div(end - first, kWarpColumns), warp);
      column = first + share.column_group * kWarpColumns;
      start(column, share);
    }
    add_k_groups(sums, exchange, now, lane);
    if (now_column >= end) {
      continue;
    }
    const auto reduce = [&](int tile, const float (&logits)[kSums]) {
      const JointPartial partial = tile_partial(logits, p, now_column, end, lane);
      if (lane < kOctet) {
        JointPartial& own = found[now.column_group][tile * kOctet + lane % 4 * 2 + lane / 4];
        own = is_first ? partial : merge(own, partial);
      }
    };
    for_own_tiles(now, reduce, sums);
  }
  __syncthreads();

  if (threadIdx.x < count) {
    const int groups = min(ceil_div(max(end - begin, 0), kWarpColumns), kWarps);
    JointPartial total = empty_partial();
    for (int group = 0; group < groups; ++group) {
      total = merge(total, found[group][threadIdx.x]);
    }
    partials[static_cast<int64_t>(rows[threadIdx.x].row) * splits + blockIdx.y] = total;
  }
}

template <typename T>
int dynamic_bytes(int width, int tiles) {
  return tiles * kOctet * row_stride(width / kVector<T>) + exchange_bytes(tiles);
}

// A block's shared memory with what the kernel declares itself.
template <typename T>
int all_shared_bytes(int width, int tiles) {
  constexpr int kSearch = 128;
  constexpr int kRowBytes = kWarps * sizeof(JointPartial) + sizeof(FrameRow);
  return dynamic_bytes<T>(width, tiles) + tiles * kOctet * kRowBytes + kSearch;
}

template <typename T>
TilePlan plan_for(const JointProblem& p, int splits, const DeviceLimits& limits) {
  const Product product{p.rows(), p.columns(), p.width};
  const int groups = ceil_div(ceil_div(p.columns(), kWarpColumns), splits);
  return plan_for_groups<T>(product, groups, limits,
                            [&](int tiles) { return all_shared_bytes<T>(p.width, tiles); });
}

}  // namespace

template <typename T>
bool joint_tiles_supports(const JointProblem& p) {
  const auto pointers = reinterpret_cast<std::uintptr_t>(p.encoder) |
                        reinterpret_cast<std::uintptr_t>(p.predictor) |
                        reinterpret_cast<std::uintptr_t>(p.weight);
  return pointers % kVectorBytes == 0 && p.width % kVector<T> == 0 &&
         p.encoder_batch_stride % kVector<T> == 0 &&
         all_shared_bytes<T>(p.width, kTileChoices[0]) <= DeviceLimits::query().shared_bytes;
}

template <typename T>
int joint_tiles_column_splits(const JointProblem& p) {
  const DeviceLimits limits = DeviceLimits::query();
  const Product product{p.rows(), p.columns(), p.width};
  const int groups = ceil_div(p.columns(), kWarpColumns);
  TilePlan best;
  for (const int tiles : kTileChoices) {
    // One block or two for each multiprocessor.
    for (int waves = 1; waves <= 2; ++waves) {
      const int blocks = waves * limits.multiprocessors / ceil_div(p.rows(), kOctet * tiles);
      const TilePlan plan = plan_for<T>(p, std::clamp(blocks, 1, groups), limits);
      best = plan.cycles < best.cycles ? plan : best;
    }
  }
  return best.column_blocks(product);
}

template <typename T>
cudaError_t launch_joint_tiles(const JointProblem& p, JointPartial* partials, int splits,
                               const LoopSignal& signal, cudaStream_t stream) {
  const TilePlan plan = plan_for<T>(p, splits, DeviceLimits::query());
  const dim3 grid(plan.row_blocks({p.rows(), p.columns(), p.width}), splits);
  return with_tiles<T>(plan.tiles, [&]<int kTiles>() {
    const auto kernel = joint_tiles_kernel<T, kTiles>;
    const int shared = dynamic_bytes<T>(p.width, kTiles);
    const cudaError_t error = allow_shared_memory(kernel);
    if (error != cudaSuccess) {
      return error;
    }
    kernel<<<grid, kThreads, shared, stream>>>(p, partials, splits, plan.groups * kWarpColumns, signal);
    return cudaGetLastError();
  });
}

#define INSTANTIATE(T)                                                                                   \
  template bool joint_tiles_supports<T>(const JointProblem&);                                            \
  template int joint_tiles_column_splits<T>(const JointProblem&);                                        \
  template cudaError_t launch_joint_tiles<T>(const JointProblem&, JointPartial*, int, const LoopSignal&, \
                                             cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(__nv_bfloat16)
INSTANTIATE(__half)
#undef INSTANTIATE

}  // namespace rnnt_fastdecode::cuda
