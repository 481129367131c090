// The resident decoder in bf16 and fp16, on tensor cores.
#include "joint.cuh"
#include "predictor.cuh"
#include "rounds.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

template <typename T, int RowTiles, int FrameTiles>
struct HalfStages {
  static constexpr int kRows = kResidentRows;
  static constexpr int kStaticBytes = kResidentStaticBytes;
  using Step = Predictor<T, RowTiles>;
  using Joint = JointStage<T, FrameTiles>;
};

}  // namespace

template <typename T>
cudaError_t launch_resident(const ResidentProblem& problem, cudaStream_t stream) {
  const int rows = problem.greedy.joint.batch;
  const int tiles = problem.plan.frame_tiles;
  if (rows <= 8 && tiles <= 1) return launch<HalfStages<T, 1, 1>>(problem, stream);
  if (rows <= 8 && tiles <= 3) return launch<HalfStages<T, 1, 3>>(problem, stream);
  return launch<HalfStages<T, 4, 6>>(problem, stream);
}

template cudaError_t launch_resident<__nv_bfloat16>(const ResidentProblem&, cudaStream_t);
template cudaError_t launch_resident<__half>(const ResidentProblem&, cudaStream_t);

}  // namespace rnnt_fastdecode::cuda
