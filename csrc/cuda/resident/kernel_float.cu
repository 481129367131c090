// The resident decoder in fp32, with fp32 products.
#include "joint_float.cuh"
#include "joint_split.cuh"
#include "predictor_float.cuh"
#include "predictor_split.cuh"
#include "rounds.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

struct FloatStages {
  static constexpr int kRows = kFloatRows;
  static constexpr int kStaticBytes = kFloatStaticBytes;
};

template <int ProductRows>
struct FewStages : FloatStages {
  static constexpr bool kWide = ProductRows == 8;
  using Step = FloatPredictor<ProductRows>;
  using Joint = FloatJoint<kFewLaneColumns[kWide], kFewStaged[kWide]>;
};

template <int RowTiles, int JointTiles>
struct ManyStages : FloatStages {
  using Step = SplitPredictor<RowTiles>;
  using Joint = SplitJoint<JointTiles>;
};

}  // namespace

template <>
cudaError_t launch_resident<float>(const ResidentProblem& problem, cudaStream_t stream) {
  const auto run = [&](auto kernel) { return launch(kernel, kThreads, problem, stream); };
  if (problem.plan.many.row_tiles == 4) return run(resident_kernel<ManyStages<4, kManyTiles[1]>>);
  if (problem.plan.many.row_tiles == 1) return run(resident_kernel<ManyStages<1, kManyTiles[0]>>);
  if (problem.plan.few.product_rows == 8) return run(resident_kernel<FewStages<8>>);
  if (problem.plan.few.product_rows == 4) return run(resident_kernel<FewStages<4>>);
  return run(resident_kernel<FewStages<1>>);
}

}  // namespace rnnt_fastdecode::cuda
