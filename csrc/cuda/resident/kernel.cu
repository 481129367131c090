// The resident decoder in bf16 and fp16, on tensor cores.
#include "joint.cuh"
#include "predictor.cuh"
#include "rounds.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

template <typename T, int Passes, int RowTiles, int FrameTiles>
struct HalfStages {
  using Step = Predictor<T, Passes, RowTiles>;
  using Joint = JointStage<T, FrameTiles>;
  using Memory = uint4[kMaxGroups][kChunksPerWarp];
  __device__ static Joint joint(const Context& c, Memory& memory) { return {.c = c, .predicted = memory}; }
};

}  // namespace

template <typename T>
cudaError_t launch_resident(const ResidentProblem& problem, cudaStream_t stream) {
  const int rows = problem.greedy.joint.batch;
  const int tiles = problem.plan.frame_tiles;
  if (rows <= 8 && tiles <= 1) return launch<HalfStages<T, 1, 1, 1>>(problem, stream);
  if (rows <= 8 && tiles <= 3) return launch<HalfStages<T, 1, 1, 3>>(problem, stream);
  if (rows <= 32) return launch<HalfStages<T, 1, 4, 6>>(problem, stream);
  if (rows <= 64) return launch<HalfStages<T, 2, 4, 6>>(problem, stream);
  return launch<HalfStages<T, 4, 4, 6>>(problem, stream);
}

template cudaError_t launch_resident<__nv_bfloat16>(const ResidentProblem&, cudaStream_t);
template cudaError_t launch_resident<__half>(const ResidentProblem&, cudaStream_t);

}  // namespace rnnt_fastdecode::cuda
