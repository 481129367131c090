// The resident decoder in fp32, with fp32 products.
#include "joint_float.cuh"
#include "predictor_float.cuh"
#include "rounds.cuh"

namespace rnnt_fastdecode::cuda {
namespace {

template <int Rows, int LaneColumns, int Staged>
struct FloatStages {
  static constexpr int kRows = kFloatRows;
  static constexpr int kStaticBytes = kFloatStaticBytes;
  using Step = FloatPredictor<Rows>;
  using Joint = FloatJoint<LaneColumns, Staged>;
};

}  // namespace

template <>
cudaError_t launch_resident<float>(const ResidentProblem& problem, cudaStream_t stream) {
  const int rows = problem.plan.single.product_rows;
  if (rows == 8) return launch(resident_kernel<FloatStages<8, 8, 2>>, kThreads, problem, stream);
  if (rows == 4) return launch(resident_kernel<FloatStages<4, 2, 3>>, kThreads, problem, stream);
  return launch(resident_kernel<FloatStages<1, 2, 3>>, kThreads, problem, stream);
}

}  // namespace rnnt_fastdecode::cuda
