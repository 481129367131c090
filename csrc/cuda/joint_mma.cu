// Joint + argmax on tensor cores: what joint_argmax.cu does, for bf16 and fp16 rows of whole 16-byte vectors.
//
// A block owns 8 * kTiles joint rows and a slice of the columns. Its rows are neighbours in the list of the
// rows that have a frame: rows beyond the end of their utterance cost nothing. The block builds its
// activations once in shared memory, the sum and the activation each rounded to T. Then its warps walk the
// slice, 32 columns at a time, with the weights coming from the L2 cache through registers while the
// previous ones are multiplied; where fewer than eight groups of 32 are left, several warps share the depth
// of one. Each warp reduces its columns to a maximum, its first index and the sum of exponentials for each
// row; what a column group has found stays in shared memory until the block merges its groups into one
// JointPartial for each row.

#include <type_traits>

#include "joint_mma.cuh"
#include "tile_plan.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

using namespace mma;

struct FrameRow {
  int row;  // batch * window + place in the window
  int batch;
  int frame;
};

template <typename T>
using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;

// activation(a + b) of eight elements, the sum and the result rounded to T. The packed sum is rounded once,
// the float sum twice, and both give the same number: a float has more than twice the digits of T.
template <typename T, typename Function>
__device__ inline uint4 activated(const uint4& a, const uint4& b, Function function) {
  constexpr int kPairs = 4;
  uint4 out;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const auto sum =
        __hadd2(reinterpret_cast<const Pair<T>*>(&a)[i], reinterpret_cast<const Pair<T>*>(&b)[i]);
    reinterpret_cast<Pair<T>*>(&out)[i] = function(sum);
  }
  return out;
}

// Row r of the operand belongs to warp r % kWarps; rows from `count` on and the depth beyond `width` are 0.
template <typename T, int kTiles, typename Function>
__device__ inline void build_activations(unsigned char* operand, const JointProblem& p, const FrameRow* rows,
                                         int count, Function function) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int stride = row_stride(p.width);
  const T* encoder = static_cast<const T*>(p.encoder);
  const T* predictor = static_cast<const T*>(p.predictor);
  for (int k = lane * kLaneDepth; k < ceil_div(p.width, kChunk) * kChunk; k += kWarp * kLaneDepth) {
#pragma unroll 4
    for (int i = 0; i < kTiles; ++i) {
      const int r = i * kWarps + warp;
      uint4 out{0, 0, 0, 0};
      if (r < count && k < p.width) {
        const FrameRow row = rows[r];
        const int64_t frame = row.batch * p.encoder_batch_stride + static_cast<int64_t>(row.frame) * p.width;
        const int64_t label = static_cast<int64_t>(row.batch) * p.width;
        out = activated<T>(__ldg(reinterpret_cast<const uint4*>(encoder + frame + k)),
                           __ldg(reinterpret_cast<const uint4*>(predictor + label + k)), function);
      }
      *reinterpret_cast<uint4*>(operand + r * stride + k * static_cast<int>(sizeof(T))) = out;
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
__device__ inline Best best_of_columns(const float (&logits)[2 * kOctets], unsigned wanted, int first,
                                       int lane) {
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
__device__ inline JointPartial tile_partial(const float (&logits)[2 * kOctets], const JointProblem& p,
                                            int first, int end, int lane) {
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

template <int kTiles>
constexpr int kAhead = kTiles <= 4   ? 4
                       : kTiles <= 8 ? 3
                                     : 2;

template <typename T, int kTiles>
__global__ void __launch_bounds__(kThreads)
    joint_mma_kernel(JointProblem p, JointPartial* partials, int splits, int columns_per_split,
                     LoopSignal signal) {
  constexpr int kRows = kTiles * kOctet;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  __shared__ JointPartial found[kWarps][kRows];  // by column group
  __shared__ FrameRow rows[kRows];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const T* weight = static_cast<const T*>(p.weight);
  const T* bias = static_cast<const T*>(p.bias);
  const int begin = blockIdx.y * columns_per_split;
  const int end = min(begin + columns_per_split, p.columns());

  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) {
    signal.clear();
  }

  WeightStream<T, kAhead<kTiles>> weights;
  float biases[kOctets];
  const auto start = [&](int column, const WarpShare& share) {
    const T* octets[kOctets];
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      const int own = min(column + octet * kOctet + lane / 4, p.columns() - 1);
      octets[octet] = weight + static_cast<int64_t>(own) * p.width;
      biases[octet] = bias == nullptr ? 0.0f : to_float(bias[own]);
    }
    weights.start(octets, p.width, share.k_group, share.k_groups, lane);
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
  if (p.activation == Activation::kRelu) {
    build_activations<T, kTiles>(shared_bytes, p, rows, count, [](Pair<T> sum) {
      return __hmax2_nan(sum, Pair<T>{from_float<T>(0.0f), from_float<T>(0.0f)});
    });
  } else {
    build_activations<T, kTiles>(shared_bytes, p, rows, count, [&](Pair<T> sum) {
      return Pair<T>{from_float<T>(activate(to_float(sum.x), p.activation)),
                     from_float<T>(activate(to_float(sum.y), p.activation))};
    });
  }
  __syncthreads();

  float* exchange = reinterpret_cast<float*>(shared_bytes + kRows * row_stride(p.width));
  for (int first = begin; first < end;) {
    float sums[kTiles][2 * kOctets] = {};
    if (column < end) {
      ResidentOperand operand(shared_bytes, p.width, share, lane);
      multiply(sums, weights, share.chunks(p.width), operand);
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
    const auto reduce = [&](int tile, const float (&logits)[2 * kOctets]) {
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

int dynamic_bytes(int width, int tiles) { return tiles * kOctet * row_stride(width) + exchange_bytes(tiles); }

// A block's shared memory with what the kernel declares itself.
int all_shared_bytes(int width, int tiles) {
  constexpr int kSearch = 128;
  const int rows = tiles * kOctet;
  return dynamic_bytes(width, tiles) +
         rows * static_cast<int>(kWarps * sizeof(JointPartial) + sizeof(FrameRow)) + kSearch;
}

TilePlan plan_for(const JointProblem& p, int splits, const DeviceLimits& limits) {
  const Product product{p.rows(), p.columns(), p.width};
  const int groups = ceil_div(ceil_div(p.columns(), kWarpColumns), splits);
  return plan_for_groups(product, groups, limits,
                         [&](int tiles) { return all_shared_bytes(p.width, tiles); });
}

}  // namespace

template <typename T>
bool joint_mma_supports(const JointProblem& p) {
  const auto pointers = reinterpret_cast<std::uintptr_t>(p.encoder) |
                        reinterpret_cast<std::uintptr_t>(p.predictor) |
                        reinterpret_cast<std::uintptr_t>(p.weight);
  return pointers % 16 == 0 && p.width % kLaneDepth == 0 && p.encoder_batch_stride % kLaneDepth == 0 &&
         all_shared_bytes(p.width, kTileChoices[0]) <= DeviceLimits::query().shared_bytes;
}

template <typename T>
int joint_mma_column_splits(const JointProblem& p) {
  const DeviceLimits limits = DeviceLimits::query();
  const Product product{p.rows(), p.columns(), p.width};
  const int groups = ceil_div(p.columns(), kWarpColumns);
  TilePlan best;
  for (const int tiles : kTileChoices) {
    // One block or two for each multiprocessor.
    for (int waves = 1; waves <= 2; ++waves) {
      const int blocks = waves * limits.multiprocessors / ceil_div(p.rows(), kOctet * tiles);
      const TilePlan plan = plan_for(p, std::clamp(blocks, 1, groups), limits);
      best = plan.cycles < best.cycles ? plan : best;
    }
  }
  return best.column_blocks(product);
}

template <typename T>
cudaError_t launch_joint_mma(const JointProblem& p, JointPartial* partials, int splits,
                             const LoopSignal& signal, cudaStream_t stream) {
  const TilePlan plan = plan_for(p, splits, DeviceLimits::query());
  const dim3 grid(plan.row_blocks({p.rows(), p.columns(), p.width}), splits);
  return with_tiles(plan.tiles, [&]<int kTiles>() {
    const auto kernel = joint_mma_kernel<T, kTiles>;
    const int shared = dynamic_bytes(p.width, kTiles);
    const cudaError_t error = allow_shared(kernel, shared);
    if (error != cudaSuccess) {
      return error;
    }
    kernel<<<grid, kThreads, shared, stream>>>(p, partials, splits, plan.groups * kWarpColumns, signal);
    return cudaGetLastError();
  });
}

#define INSTANTIATE(T)                                                                                 \
  template bool joint_mma_supports<T>(const JointProblem&);                                            \
  template int joint_mma_column_splits<T>(const JointProblem&);                                        \
  template cudaError_t launch_joint_mma<T>(const JointProblem&, JointPartial*, int, const LoopSignal&, \
                                           cudaStream_t);
INSTANTIATE(__nv_bfloat16)
INSTANTIATE(__half)
#undef INSTANTIATE

}  // namespace rnnt_fastdecode::cuda
