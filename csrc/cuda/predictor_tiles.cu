// The prediction network in large tiles: what predictor_step.cu does, for rows of whole 16-byte vectors. LSTM
// and GRU of 16-bit elements alone: without tensor cores the kernels there are as fast.
//
// A block owns 8 * kTiles of the rows that have a label, neighbours in their list, and 32 weight rows for
// each of its column groups. In a layer of an LSTM or a GRU these are what the four sums of eight units need,
// so that a lane ends with all of a unit and updates it; in a projection they are 32 columns.
//
// The operand rows of a layer, (input | hidden), are streamed; a stateless predictor's are computed, and lie
// in shared memory as a whole.

#include <algorithm>

#include "predictor_tiles.cuh"
#include "recurrent_cell.cuh"
#include "shared_memory.cuh"
#include "streamed_operand.cuh"
#include "tile_plan.cuh"
#include "weight_stream.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

using namespace product;

struct LabelledRow {
  int row;
  int label;
};

// The rows of this block among those with a label, at most 8 * kTiles of them. Returns how many.
template <int kTiles>
__device__ inline int labelled_rows(LabelledRow (&rows)[kTiles * kOctet], const int* labels, int batch) {
  constexpr int kRows = kTiles * kOctet;
  const int first = blockIdx.x * kRows;
  const int all = find_items<kRows>(
      batch, first, [&](int row) { return labels[row] >= 0 ? 1 : 0; },
      [&](int place, int row, int) { rows[place] = {row, labels[row]}; });
  __syncthreads();
  return min(all - first, kRows);
}

// The place among the block's rows of what sums[tile][.. + j] belongs to.
__device__ inline int own_row(int tile, int j, int lane) { return tile * kOctet + lane % 4 * 2 + j; }

// The weights of a unit's sums, from their rows for the input on: over the input, then over the hidden state.
template <typename Cell>
struct SumRows {
  int vectors;    // of either
  uint32_t jump;  // from the end of one to the beginning of the other

  __device__ bool has(int sum, int v) const {
    return v < vectors ? Cell::Input::has(sum) : v < 2 * vectors && Cell::Hidden::has(sum);
  }
  __device__ uint32_t place(int v) const { return v < vectors ? v : v + jump; }
};

template <typename T, int kTiles, typename Cell>
__global__ void __launch_bounds__(kThreads, 1) layer_tiles_kernel(RecurrentProblem p, int layer, int groups) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  __shared__ LabelledRow rows[kTiles * kOctet];
  __shared__ SourceRow sources[kTiles * kOctet];
  const int lane = threadIdx.x % kWarp;
  const int width = p.hidden_width;
  const int vectors = width / kVector<T>;
  const int64_t layer_offset = static_cast<int64_t>(layer) * p.batch * width;
  const CellRows cell_rows = Cell::rows(width);
  T* next_hidden = static_cast<T*>(p.next_hidden);

  const WarpShare share(groups, threadIdx.x / kWarp);
  const int unit = (static_cast<int>(blockIdx.y) * groups + share.column_group) * kOctet + lane / 4;
  int first[kCellSums];
  float bias[kCellSums];
#pragma unroll
  for (int sum = 0; sum < kCellSums; ++sum) {
    first[sum] = Cell::gate(sum) * cell_rows.gate + min(unit, width - 1) * cell_rows.unit;
    bias[sum] = Cell::bias(p, layer, sum, min(unit, width - 1));
  }
  WeightStream<kAhead<T, kTiles>, SumRows<Cell>> weights;
  weights.start(static_cast<const T*>(p.weight) + static_cast<int64_t>(layer) * cell_rows.layer * width,
                first, {vectors, static_cast<uint32_t>((cell_rows.side - 1) * vectors)}, share, lane);

  const int count = labelled_rows<kTiles>(rows, p.labels, p.batch);
  if (count <= 0) {
    return;
  }
  if (threadIdx.x < count) {
    const auto [row, label] = rows[threadIdx.x];
    const int64_t state = layer_offset + static_cast<int64_t>(row) * width;
    const T* input = layer == 0 ? static_cast<const T*>(p.embedding) +
                                      static_cast<int64_t>(label < p.vocab_size ? label : 0) * width
                                : next_hidden + state - static_cast<int64_t>(p.batch) * width;
    sources[threadIdx.x] = {reinterpret_cast<const uint4*>(input),
                            reinterpret_cast<const uint4*>(static_cast<const T*>(p.hidden) + state)};
  }
  __syncthreads();

  float sums[kTiles][kSums] = {};
  StreamedOperand<T, kTiles> operand(shared_bytes, sources, count, vectors, 2 * vectors, share, lane);
  multiply<T>(sums, weights, operand.chunks(), operand, lane);

  // All states before the first unit is updated: their loads do not wait for each other.
  const int own_count = unit < width ? count : 0;
  const auto place = [&](int row) { return layer_offset + static_cast<int64_t>(row) * width + unit; };
  float states[kTiles][2];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int r = own_row(tile, j, lane);
      states[tile][j] =
          owns_tile(share, tile) && r < own_count ? Cell::template state<T>(p, place(rows[r].row)) : 0.0f;
    }
  }
  add_k_groups(sums, reinterpret_cast<float*>(shared_bytes), share, lane);
  const auto update = [&](int tile, const float (&tile_sums)[kSums], const float (&old_states)[2]) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int r = own_row(tile, j, lane);
      if (r < own_count) {
        const auto [row, label] = rows[r];
        const float unknown = label < p.vocab_size ? 0.0f : NAN;
        const float unit_sums[kCellSums] = {tile_sums[j] + bias[0], tile_sums[2 + j] + bias[1] + unknown,
                                            tile_sums[4 + j] + bias[2], tile_sums[6 + j] + bias[3]};
        next_hidden[place(row)] =
            from_float<T>(Cell::template update<T>(p, place(row), old_states[j], unit_sums));
      }
    }
  };
  for_own_tiles(share, update, sums, states);
}

// A block's columns of a projection [J, H], 32 for each of its column groups.
template <typename T, int kTiles>
class ProjectionTile {
 public:
  // Begins to load the weights of the warp's columns.
  template <typename Problem>
  __device__ ProjectionTile(const Problem& p, int groups, int lane)
      : bias_(static_cast<const T*>(p.projection_bias)),
        output_(static_cast<T*>(p.output)),
        output_width_(p.output_width),
        share_(groups, threadIdx.x / kWarp),
        column_((static_cast<int>(blockIdx.y) * groups + share_.column_group) * kWarpColumns + lane / 4) {
    int columns[kOctets];
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      columns[octet] = min(column_ + octet * kOctet, output_width_ - 1);
    }
    weights_.start(p.projection, columns, {p.hidden_width / kVector<T>}, share_, lane);
  }

  __device__ const WarpShare& share() const { return share_; }

  // Projects the operand, of which `chunks` chunks are the warp's. The exchange may lie where it is: all
  // warps have passed a barrier by then.
  template <typename Operand>
  __device__ void project(Operand& operand, int chunks, float* exchange, const LabelledRow* rows, int count,
                          int lane) {
    float sums[kTiles][kSums] = {};
    multiply<T>(sums, weights_, chunks, operand, lane);
    add_k_groups(sums, exchange, share_, lane);
    const auto write = [&](int tile, const float (&column_sums)[kSums]) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int r = own_row(tile, j, lane);
        if (r < count) {
          T* output = output_ + static_cast<int64_t>(rows[r].row) * output_width_;
#pragma unroll
          for (int octet = 0; octet < kOctets; ++octet) {
            const int column = column_ + octet * kOctet;
            if (column < output_width_) {
              output[column] = from_float<T>(column_sums[2 * octet + j] + to_float(bias_[column]));
            }
          }
        }
      }
    };
    for_own_tiles(share_, write, sums);
  }

 private:
  const T* bias_;
  T* output_;
  int output_width_;
  WarpShare share_;
  int column_;
  WeightStream<kAhead<T, kTiles>> weights_;
};

// Makes the new hidden states of the block's rows the hidden states. The blocks of a row share its layers.
template <typename T>
__device__ inline void commit_hidden(const RecurrentProblem& p, const LabelledRow* rows, int count,
                                     int lane) {
  const auto* next_hidden = static_cast<const T*>(p.next_hidden);
  auto* hidden = static_cast<T*>(p.hidden);
  const int first = threadIdx.x / kWarp * gridDim.y + blockIdx.y;
  for (int item = first; item < count * p.layers; item += kWarps * gridDim.y) {
    const int64_t state =
        (static_cast<int64_t>(item % p.layers) * p.batch + rows[item / p.layers].row) * p.hidden_width;
    for (int k = lane * kVector<T>; k < p.hidden_width; k += kWarp * kVector<T>) {
      *reinterpret_cast<uint4*>(hidden + state + k) =
          *reinterpret_cast<const uint4*>(next_hidden + state + k);
    }
  }
}

template <typename T, int kTiles>
__global__ void __launch_bounds__(kThreads, 1)
    recurrent_projection_tiles_kernel(RecurrentProblem p, int groups) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  __shared__ LabelledRow rows[kTiles * kOctet];
  __shared__ SourceRow sources[kTiles * kOctet];
  const int lane = threadIdx.x % kWarp;
  const int vectors = p.hidden_width / kVector<T>;
  ProjectionTile<T, kTiles> tile(p, groups, lane);
  const int count = labelled_rows<kTiles>(rows, p.labels, p.batch);
  if (count <= 0) {
    return;
  }
  if (threadIdx.x < count) {
    const int64_t state = static_cast<int64_t>(p.layers - 1) * p.batch + rows[threadIdx.x].row;
    sources[threadIdx.x] = {static_cast<const uint4*>(p.next_hidden) + state * vectors, nullptr};
  }
  __syncthreads();
  StreamedOperand<T, kTiles> operand(shared_bytes, sources, count, vectors, vectors, tile.share(), lane);
  commit_hidden<T>(p, rows, count, lane);
  tile.project(operand, operand.chunks(), reinterpret_cast<float*>(shared_bytes), rows, count, lane);
}

// The sum of the embeddings of a row's context, rounded to T, and its positive part if `relu`.
template <typename T>
__device__ inline uint4 embedded_context(const StatelessProblem& p, const LabelledRow& row, int v) {
  const T* tables = static_cast<const T*>(p.tables);
  const int* context = p.context + static_cast<int64_t>(row.row) * (p.context_size - 1);
  float sums[kVector<T>] = {};
  for (int c = 0; c < p.context_size; ++c) {
    const int label = c == 0 ? row.label : context[c - 1];
    const bool known = label >= 0 && label < p.vocab_size;
    const int64_t entry = (static_cast<int64_t>(c) * p.vocab_size + (known ? label : 0)) * p.hidden_width;
    const uint4 pack = __ldg(reinterpret_cast<const uint4*>(tables + entry) + v);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      sums[i] += known ? to_float(reinterpret_cast<const T*>(&pack)[i]) : NAN;
    }
  }
  uint4 out;
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) {
    const T rounded = from_float<T>(sums[i]);
    reinterpret_cast<T*>(&out)[i] =
        p.relu ? from_float<T>(activate(to_float(rounded), Activation::kRelu)) : rounded;
  }
  return out;
}

template <typename T, int kTiles>
__global__ void __launch_bounds__(kThreads, 1) stateless_tiles_kernel(StatelessProblem p, int groups) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  __shared__ LabelledRow rows[kTiles * kOctet];
  const int lane = threadIdx.x % kWarp;
  const int vectors = p.hidden_width / kVector<T>;
  const int stride = row_stride(vectors);
  ProjectionTile<T, kTiles> tile(p, groups, lane);
  const int count = labelled_rows<kTiles>(rows, p.labels, p.batch);
  if (count <= 0) {
    return;
  }
  for (int r = threadIdx.x / kWarp; r < kTiles * kOctet; r += kWarps) {
    for (int v = lane; v < ceil_div(vectors, kChunkVectors) * kChunkVectors; v += kWarp) {
      *reinterpret_cast<uint4*>(shared_bytes + r * stride + v * kVectorBytes) =
          r < count && v < vectors ? embedded_context<T>(p, rows[r], v) : uint4{0, 0, 0, 0};
    }
  }
  __syncthreads();
  ResidentOperand<WarpProduct<T, kTiles>> operand(shared_bytes, vectors, tile.share(), lane);
  tile.project(operand, tile.share().chunks(vectors), reinterpret_cast<float*>(shared_bytes), rows, count,
               lane);
}

template <typename T>
int streamed_bytes(int tiles) {
  int bytes = 0;
  with_tiles<T>(tiles, [&]<int kTiles>() {
    bytes = kStreamBytes<kTiles>;
    return cudaSuccess;
  });
  return bytes;
}

template <typename T>
int stateless_bytes(int width, int tiles) {
  return std::max(tiles * kOctet * row_stride(width / kVector<T>), exchange_bytes(tiles));
}

// What a kernel declares itself.
int fixed_bytes(int tiles) {
  constexpr int kSearch = 128;
  return tiles * kOctet * static_cast<int>(sizeof(LabelledRow) + sizeof(SourceRow)) + kSearch;
}

template <typename T, typename Shared>
TilePlan plan_projection(const Product& product, Shared shared) {
  const DeviceLimits limits = DeviceLimits::query();
  TilePlan best;
  for (int groups = 1; groups <= kWarps; groups *= 2) {
    const TilePlan plan = plan_for_groups<T>(product, groups, limits,
                                             [&](int tiles) { return shared(tiles) + fixed_bytes(tiles); });
    best = plan.cycles < best.cycles ? plan : best;
  }
  return best;
}

template <typename Kernel, typename... Args>
cudaError_t launch(Kernel kernel, const TilePlan& plan, const Product& product, int shared,
                   cudaStream_t stream, Args... args) {
  const cudaError_t error = allow_shared_memory(kernel);
  if (error != cudaSuccess) {
    return error;
  }
  const dim3 grid(plan.row_blocks(product), plan.column_blocks(product));
  kernel<<<grid, kThreads, shared, stream>>>(args..., plan.groups);
  return cudaGetLastError();
}

}  // namespace

template <typename T>
bool recurrent_tiles_support(const RecurrentProblem& p) {
  return are_vectors(p.embedding) && are_vectors(p.weight) && are_vectors(p.projection) &&
         are_vectors(p.hidden) && are_vectors(p.next_hidden) && p.hidden_width % kVector<T> == 0 &&
         streamed_bytes<T>(kTileChoices[0]) + fixed_bytes(kTileChoices[0]) <=
             DeviceLimits::query().shared_bytes;
}

template <typename T>
bool stateless_tiles_support(const StatelessProblem& p) {
  const int shared = stateless_bytes<T>(p.hidden_width, kTileChoices[0]) + fixed_bytes(kTileChoices[0]);
  return are_vectors(p.tables) && are_vectors(p.projection) && p.hidden_width % kVector<T> == 0 &&
         shared <= DeviceLimits::query().shared_bytes;
}

template <typename T>
cudaError_t launch_recurrent_tiles(const RecurrentProblem& p, cudaStream_t stream) {
  const Product gates{p.batch, kCellSums * p.hidden_width, 2 * p.hidden_width};
  const TilePlan gates_plan = plan_projection<T>(gates, streamed_bytes<T>);
  for (int layer = 0; layer < p.layers; ++layer) {
    const cudaError_t error = with_tiles<T>(gates_plan.tiles, [&]<int kTiles>() {
      const auto kernel = [](auto cell) { return layer_tiles_kernel<T, kTiles, decltype(cell)>; };
      return launch(with_cell(p, kernel), gates_plan, gates, kStreamBytes<kTiles>, stream, p, layer);
    });
    if (error != cudaSuccess) {
      return error;
    }
  }
  const Product projection{p.batch, p.output_width, p.hidden_width};
  const TilePlan plan = plan_projection<T>(projection, streamed_bytes<T>);
  return with_tiles<T>(plan.tiles, [&]<int kTiles>() {
    return launch(recurrent_projection_tiles_kernel<T, kTiles>, plan, projection, kStreamBytes<kTiles>,
                  stream, p);
  });
}

template <typename T>
cudaError_t launch_stateless_tiles(const StatelessProblem& p, cudaStream_t stream) {
  const Product product{p.batch, p.output_width, p.hidden_width};
  const TilePlan plan =
      plan_projection<T>(product, [&](int tiles) { return stateless_bytes<T>(p.hidden_width, tiles); });
  return with_tiles<T>(plan.tiles, [&]<int kTiles>() {
    return launch(stateless_tiles_kernel<T, kTiles>, plan, product,
                  stateless_bytes<T>(p.hidden_width, kTiles), stream, p);
  });
}

#define INSTANTIATE_RECURRENT(T)                                     \
  template bool recurrent_tiles_support<T>(const RecurrentProblem&); \
  template cudaError_t launch_recurrent_tiles<T>(const RecurrentProblem&, cudaStream_t);
INSTANTIATE_RECURRENT(__nv_bfloat16)
INSTANTIATE_RECURRENT(__half)
#undef INSTANTIATE_RECURRENT

#define INSTANTIATE_STATELESS(T)                                     \
  template bool stateless_tiles_support<T>(const StatelessProblem&); \
  template cudaError_t launch_stateless_tiles<T>(const StatelessProblem&, cudaStream_t);
INSTANTIATE_STATELESS(float)
INSTANTIATE_STATELESS(__nv_bfloat16)
INSTANTIATE_STATELESS(__half)
#undef INSTANTIATE_STATELESS

}  // namespace rnnt_fastdecode::cuda
