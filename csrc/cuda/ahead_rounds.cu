// A round in L + 2 kernels: the joint with the recurrent halves of the gates; the walk with the first layer's
// units; the other layers; the projection.

#include <algorithm>
#include <utility>

#include "advance.cuh"
#include "ahead_rounds.cuh"
#include "dependent_launch.cuh"
#include "joint_blocks.cuh"
#include "shared_memory.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

using namespace product;

// Of a multiprocessor, as registers allow: products of single warps keep their operands there.
constexpr int kBlocks = wgmma::kExists ? 2 : 1;

template <typename T, typename Product, typename Function>
__global__ void __launch_bounds__(kThreads, kBlocks)
    joint_and_gates_kernel(JointProblem joint, Function activation, JointPartial* partials, int splits,
                           int joint_tiles, AheadProblem ahead, int batch_tiles) {
  extern __shared__ __align__(1024) unsigned char shared[];
  int block = blockIdx.x;
  if (block < joint_tiles * splits) {
    JointBlock<T, Product, Function>::run(joint, activation, shared, block / splits, block % splits, partials,
                                          splits);
    return;
  }
  block -= joint_tiles * splits;
  const int unit_tiles = ceil_div(ahead.predictor.hidden_width, GateBlock<T, Product>::kUnits);
  GateBlock<T, Product>::run_recurrent(ahead, joint, shared, block % batch_tiles,
                                       block / batch_tiles / unit_tiles, block / batch_tiles % unit_tiles);
}

template <typename T, typename Product, typename Cell>
__global__ void __launch_bounds__(kThreads, kBlocks) layer_kernel(AheadProblem ahead, int layer) {
  extern __shared__ __align__(1024) unsigned char shared[];
  GateBlock<T, Product>::template run_layer<Cell>(ahead, shared, blockIdx.x, layer, blockIdx.y);
}

template <typename T, typename Product>
__global__ void __launch_bounds__(kThreads, kBlocks) projection_kernel(RecurrentProblem p) {
  extern __shared__ __align__(1024) unsigned char shared[];
  ProjectionBlock<T, Product>::run(p, shared, blockIdx.x, blockIdx.y);
}

template <typename Kernel, typename... Args>
cudaError_t launch(Kernel kernel, dim3 grid, int bytes, int rows, cudaStream_t stream, Args... args) {
  const cudaError_t error = allow_shared_memory(kernel);
  if (error != cudaSuccess) {
    return error;
  }
  return launch_dependent(kernel, grid, kThreads, bytes, starts_early(rows), stream, args...);
}

constexpr int kJointColumns = 128;

int joint_splits(const JointProblem& p) { return ceil_div(p.columns(), kJointColumns); }

template <typename T, int kTiles, int kRowGroups>
cudaError_t launch_joint(const GreedyProblem& p, const AheadProblem& ahead, cudaStream_t stream) {
  using Product = BlockProduct<T, kTiles, kRowGroups>;
  const RecurrentProblem& predictor = ahead.predictor;
  static_assert(Product::kColumns == kJointColumns);
  const int joint_tiles = ceil_div(p.joint.rows(), Product::kRows);
  const int batch_tiles = ceil_div(predictor.batch, Product::kRows);
  const int unit_tiles = ceil_div(predictor.hidden_width, GateBlock<T, Product>::kUnits);
  const int blocks = joint_tiles * p.splits + batch_tiles * unit_tiles * predictor.layers;
  return with_activation<T>(p.joint.activation, [&]<typename Function>(Function activation) {
    return launch(joint_and_gates_kernel<T, Product, Function>, blocks,
                  std::max(Product::kBytes, JointBlock<T, Product, Function>::kBytes), predictor.batch,
                  stream, p.joint, activation, p.partials, p.splits, joint_tiles, ahead, batch_tiles);
  });
}

template <typename T, typename Cell, int kTiles, int kRowGroups>
cudaError_t launch_layer(const AheadProblem& ahead, int layer, cudaStream_t stream) {
  using Product = BlockProduct<T, kTiles, kRowGroups>;
  const dim3 grid(ceil_div(ahead.predictor.batch, Product::kRows),
                  ceil_div(ahead.predictor.hidden_width, GateBlock<T, Product>::kUnits));
  return launch(layer_kernel<T, Product, Cell>, grid, Product::kBytes, ahead.predictor.batch, stream, ahead,
                layer);
}

template <typename T, int kTiles, int kRowGroups>
cudaError_t launch_projection(const RecurrentProblem& p, cudaStream_t stream) {
  using Product = BlockProduct<T, kTiles, kRowGroups>;
  const dim3 grid(ceil_div(p.batch, Product::kRows), ceil_div(p.output_width, Product::kColumns));
  return launch(projection_kernel<T, Product>, grid, Product::kBytes, p.batch, stream, p);
}

// Tiles as measured on an H200: as large as leaves no multiprocessor without work.
template <typename T, typename Cell>
cudaError_t launch_round(const GreedyProblem& p, const AheadProblem& ahead, cudaStream_t stream) {
  const int batch = ahead.predictor.batch;
  const auto joint = batch <= 48    ? launch_joint<T, 2, 2>
                     : batch <= 160 ? launch_joint<T, 4, 2>
                                    : launch_joint<T, 8, 2>;
  const auto layer = batch <= 128   ? launch_layer<T, Cell, 2, 4>
                     : batch <= 256 ? launch_layer<T, Cell, 4, 2>
                                    : launch_layer<T, Cell, 8, 2>;
  const auto projection = batch <= 128   ? launch_projection<T, 1, 4>
                          : batch <= 256 ? launch_projection<T, 1, 8>
                                         : launch_projection<T, 2, 4>;
  cudaError_t error = joint(p, ahead, stream);
  if (error == cudaSuccess) {
    error = launch_advance(p, FirstLayer<T, Cell>{ahead}, stream);
  }
  for (int i = 1; i < ahead.predictor.layers && error == cudaSuccess; ++i) {
    error = layer(ahead, i, stream);
  }
  return error == cudaSuccess ? projection(ahead.predictor, stream) : error;
}

}  // namespace

template <typename T>
bool ahead_rounds_support(const GreedyProblem& problem, const AheadProblem& ahead, int room) {
  const JointProblem& joint = problem.joint;
  const RecurrentProblem& predictor = ahead.predictor;
  const void* const pointers[] = {joint.encoder,        joint.predictor,  joint.weight, predictor.weight,
                                  predictor.projection, predictor.hidden, ahead.table,  ahead.gates};
  return joint_splits(joint) <= room && joint.width % kVector<T> == 0 &&
         joint.encoder_batch_stride % kVector<T> == 0 && predictor.hidden_width % kVector<T> == 0 &&
         std::all_of(std::begin(pointers), std::end(pointers), are_vectors);
}

template <typename T>
cudaError_t launch_ahead_rounds(GreedyProblem problem, const AheadProblem& ahead, int rounds,
                                cudaStream_t stream) {
  problem.splits = joint_splits(problem.joint);
  cudaError_t error = launch_clear_signal(problem.signal, stream);
  // The last round alone says how many rows are active.
  const LoopSignal signal = std::exchange(problem.signal, {});
  for (int i = 0; i < rounds && error == cudaSuccess; ++i) {
    problem.signal = i + 1 < rounds ? LoopSignal{} : signal;
    error = with_cell(ahead.predictor,
                      [&](auto cell) { return launch_round<T, decltype(cell)>(problem, ahead, stream); });
  }
  return error;
}

#define INSTANTIATE(T)                                                                   \
  template bool ahead_rounds_support<T>(const GreedyProblem&, const AheadProblem&, int); \
  template cudaError_t launch_ahead_rounds<T>(GreedyProblem, const AheadProblem&, int, cudaStream_t);
INSTANTIATE(__nv_bfloat16)
INSTANTIATE(__half)
#undef INSTANTIATE

}  // namespace rnnt_fastdecode::cuda
