// The resident decoder in bf16 and fp16, on tensor cores.
#include "half_rounds.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

template <typename T, HalfVariant kVariant, int RowTiles, int FrameTiles, int Columns>
struct HalfStages {
  static constexpr bool kPasses = kVariant == HalfVariant::kPasses;
  static constexpr bool kFew = RowTiles == 1;
  static constexpr int kRows = kPasses ? kResidentRows : kPassRows;
  static constexpr int kMostPasses = kRows / kPassRows;
  static constexpr int kStaticBytes = half_static_bytes(kVariant);
  // Of a thread, once the crews part.
  static constexpr int kMainRegisters = 192;
  static constexpr int kSideRegisters = 120;
  static constexpr bool kSettled = kFew;
  using Held = cuda::Held<T>;
  using Step = Predictor<T, RowTiles, kPasses>;
  using Joint = JointStage<T, FrameTiles, Columns>;
  using Ahead = cuda::Ahead<T, std::conditional_t<kFew, AheadOfFew<T>, AheadOfMany<T, kPasses>>, kMostPasses>;
  using Loader = FrameLoader<T, SideCrew>;
};

}  // namespace

template <typename T>
cudaError_t launch_resident(const ResidentProblem& problem, cudaStream_t stream) {
  const auto run = [&](auto kernel) { return launch(kernel, kCrewThreads, problem, stream); };
  using enum HalfVariant;
  switch (problem.plan.variant) {
    case kOneTile:
      return run(crew_kernel<HalfStages<T, kOneTile, 1, 1, 1>>);
    case kTwoTiles:
      return run(crew_kernel<HalfStages<T, kTwoTiles, 1, 2, 1>>);
    case kFourTiles:
      return run(crew_kernel<HalfStages<T, kFourTiles, 1, 4, 1>>);
    case kWide:
      return run(crew_kernel<HalfStages<T, kWide, 4, 6, 2>>);
    default:
      return run(crew_kernel<HalfStages<T, kPasses, 4, 6, 2>>);
  }
}

template cudaError_t launch_resident<__nv_bfloat16>(const ResidentProblem&, cudaStream_t);
template cudaError_t launch_resident<__half>(const ResidentProblem&, cudaStream_t);

}  // namespace rnnt_fastdecode::cuda
