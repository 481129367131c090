// The resident decoder in bf16 and fp16, on tensor cores.
#include "half_rounds.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

template <typename T, int RowTiles, int FrameTiles, int Columns>
struct HalfStages {
  // Of a thread, once the crews part.
  static constexpr int kMainRegisters = RowTiles == 1 ? 192 : 208;
  static constexpr int kSideRegisters = RowTiles == 1 ? 120 : 88;
  using Held = cuda::Held<T>;
  using Step = Predictor<T, RowTiles>;
  using Joint = JointStage<T, FrameTiles, Columns>;
  using Ahead = cuda::Ahead<T>;
  using Loader = FrameLoader<T>;
};

}  // namespace

template <typename T>
cudaError_t launch_resident(const ResidentProblem& problem, cudaStream_t stream) {
  const auto run = [&](auto kernel) { return launch(kernel, kCrewThreads, problem, stream); };
  switch (problem.plan.variant) {
    case HalfVariant::kOneTile:
      return run(crew_kernel<HalfStages<T, 1, 1, 1>>);
    case HalfVariant::kTwoTiles:
      return run(crew_kernel<HalfStages<T, 1, 2, 1>>);
    case HalfVariant::kFourTiles:
      return run(crew_kernel<HalfStages<T, 1, 4, 1>>);
    default:
      return run(crew_kernel<HalfStages<T, 4, 6, 2>>);
  }
}

template cudaError_t launch_resident<__nv_bfloat16>(const ResidentProblem&, cudaStream_t);
template cudaError_t launch_resident<__half>(const ResidentProblem&, cudaStream_t);

}  // namespace rnnt_fastdecode::cuda
