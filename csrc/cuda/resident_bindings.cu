// The resident kernel under the ops that run it: how a batch is cut into launches, and what a launch is
// given.

#include "../result_arguments.h"
#include "resident_bindings.h"

namespace rnnt_fastdecode {
namespace {

// With `most` rows in a launch; scratch_bytes is 0 where they do not fit.
Launches plan_launches(const cuda::ResidentShape& batch, int most, int device) {
  int shared_limit = 0, cooperative = 0;
  check_cuda("cudaDeviceGetAttribute",
             cudaDeviceGetAttribute(&shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check_cuda("cudaDeviceGetAttribute",
             cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device));
  Launches launches{.most = most, .full = {}, .last = {}, .scratch_bytes = 0};
  const auto plan = [&](int rows, cuda::ResidentPlan* part) {
    cuda::ResidentShape shape = batch;
    shape.batch = rows;
    return cooperative != 0 and cuda::plan_resident(shape, multiprocessors(device), shared_limit, part);
  };
  const int left = batch.batch % most;
  const bool fits =
      (batch.batch < most or plan(most, &launches.full)) and (left == 0 or plan(left, &launches.last));
  if (fits) launches.scratch_bytes = std::max(launches.full.scratch_bytes, launches.last.scratch_bytes);
  return launches;
}

// In as few launches as find room.
Launches plan_launches(const cuda::ResidentShape& batch, int device) {
  const Launches launches = plan_launches(batch, cuda::resident_rows(batch.half), device);
  const bool passes = batch.half and batch.batch > cuda::kPassRows;
  return passes and launches.scratch_bytes == 0 ? plan_launches(batch, cuda::kPassRows, device) : launches;
}

cuda::ResidentShape resident_shape(const PredictorSizes& predictor, int64_t num_tokens, int64_t num_durations,
                                   int64_t batch, int64_t window, ScalarType dtype) {
  return {.layers = static_cast<int>(predictor.layers),
          .context = static_cast<int>(predictor.context),
          .width = static_cast<int>(predictor.width),
          .joint_width = static_cast<int>(predictor.joint_width),
          .num_tokens = static_cast<int>(num_tokens),
          .num_durations = static_cast<int>(num_durations),
          .batch = static_cast<int>(std::min<int64_t>(batch, INT32_MAX)),
          .window = static_cast<int>(std::min<int64_t>(window, INT32_MAX)),
          .half = dtype != ScalarType::Float};
}

// The rows of a batch from `first` on.
cuda::ResidentProblem rows_from(const cuda::ResidentProblem& batch, int64_t first, int rows,
                                size_t element_bytes) {
  cuda::ResidentProblem part = batch;
  cuda::GreedyProblem& greedy = part.greedy;
  cuda::JointProblem& joint = greedy.joint;
  const auto moved = [&](const void* base, int64_t elements) -> unsigned char* {
    if (base == nullptr) return nullptr;
    return static_cast<unsigned char*>(const_cast<void*>(base)) + first * elements * element_bytes;
  };
  joint.batch = rows;
  joint.encoder = moved(joint.encoder, joint.encoder_batch_stride);
  joint.lengths += first;
  joint.times += first;
  greedy.times += first;
  greedy.symbols += first;
  greedy.counts += first;
  const int64_t entries = first * greedy.capacity;
  greedy.tokens += entries;
  greedy.frames += entries;
  greedy.token_durations += entries;
  greedy.log_probs += entries;
  part.output = moved(part.output, joint.width);
  part.hidden = moved(part.hidden, part.width);
  if (part.cell != nullptr) part.cell += first * part.width;
  if (part.context != nullptr) part.context += first * (part.context_size - 1);
  return part;
}

int64_t greedy_resident_bytes(Tensor weight, std::string predictor_kind,
                              std::vector<Tensor> predictor_weights, int64_t batch, int64_t num_durations,
                              int64_t window) {
  const PredictorSizes predictor =
      predictor_sizes("greedy_resident_bytes", predictor_kind, predictor_weights, weight.size(1));
  if (predictor.kind == PredictorKind::kGru) {
    return 0;
  }
  const cuda::ResidentShape shape = resident_shape(predictor, weight.size(0) - num_durations, num_durations,
                                                   batch, window, weight.scalar_type());
  return plan_launches(shape, weight.get_device_index()).scratch_bytes;
}

}  // namespace

const Launches& launches_for(const PredictorSizes& predictor, const cuda::JointProblem& joint, int device) {
  struct Planned {
    cuda::ResidentShape shape{};
    int device = -1;
    Launches launches{};
  };
  thread_local Planned last;
  const cuda::ResidentShape shape = resident_shape(predictor, joint.num_tokens, joint.num_durations,
                                                   joint.batch, joint.window, predictor.dtype);
  if (last.device != device or last.shape != shape) {
    last = {.shape = shape, .device = device, .launches = plan_launches(shape, device)};
  }
  return last.launches;
}

void check_alignment(const CallContext& call, const char* name, const void* pointer, int64_t row_bytes) {
  check(reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0 and row_bytes % 16 == 0, call.op, ": ", name,
        " must be aligned to 16 bytes for the resident kernel.");
}

cuda::ResidentProblem resident_problem(const PredictorSizes& predictor, const cuda::GreedyProblem& greedy,
                                       const ResidentConstants& constants, const std::vector<Tensor>& state,
                                       const Tensor& output) {
  const bool lstm = predictor.kind == PredictorKind::kLstm;
  return {.greedy = greedy,
          .gate_table = static_cast<const float*>(constants.gate_table),
          .tables = constants.tables,
          .weight = constants.weight,
          .bias = static_cast<const float*>(constants.bias),
          .projection = constants.projection,
          .projection_bias = constants.projection_bias,
          .hidden = lstm ? state[0].mutable_data_ptr() : nullptr,
          .cell = lstm ? mutable_floats(state[1]) : nullptr,
          .context = lstm ? nullptr : mutable_ints(state[0]),
          .output = output.mutable_data_ptr(),
          .state_rows = greedy.joint.batch,
          .layers = static_cast<int>(predictor.layers),
          .context_size = static_cast<int>(predictor.context),
          .width = static_cast<int>(predictor.width),
          .relu = predictor.kind == PredictorKind::kStatelessRelu,
          .plan = {},
          .scratch = nullptr};
}

void launch_rows(const CallContext& call, const Launches& launches, const cuda::ResidentProblem& batch,
                 ScalarType dtype, cudaStream_t stream) {
  const int rows = batch.greedy.joint.batch;
  const size_t element_bytes = dtype == ScalarType::Float ? sizeof(float) : sizeof(__half);
  for (int first = 0; first < rows; first += launches.most) {
    const int count = std::min(launches.most, rows - first);
    cuda::ResidentProblem part = rows_from(batch, first, count, element_bytes);
    part.plan = count == launches.most ? launches.full : launches.last;
    dispatch(dtype, [&]<typename T>(T) { check_cuda(call.op, cuda::launch_resident<T>(part, stream)); });
  }
}

void run_resident(const CallContext& call, const GreedySizes& sizes, const cuda::GreedyProblem& greedy,
                  const std::vector<Tensor>& weights, const std::vector<Tensor>& state, const Tensor& output,
                  const std::vector<Tensor>& workspace) {
  const PredictorSizes& predictor = sizes.predictor;
  check(predictor.kind != PredictorKind::kGru, call.op,
        ": rounds must be at least 1 on CUDA for predictor_kind 'gru', got -1.");
  check(workspace.size() == 2, call.op, ": workspace must hold 2 tensors (gate_table, scratch), got ",
        count_of(workspace), ".");
  const Tensor &gate_table = workspace[0], &scratch = workspace[1];
  const int64_t labels = predictor.kind == PredictorKind::kLstm ? predictor.vocab : 0;
  call.tensor("workspace[0]", gate_table, ScalarType::Float, {labels, predictor.width, 4});
  call.tensor("workspace[1]", scratch, ScalarType::Byte, {scratch.numel()});
  const int64_t row_bytes = greedy.joint.encoder_batch_stride * static_cast<int64_t>(output.element_size());
  check_alignment(call, "encoder", greedy.joint.encoder, row_bytes);
  check_alignment(call, "predictor_output", output.const_data_ptr());
  check_alignment(call, "workspace[1]", scratch.const_data_ptr());
  for (const Tensor& part : state) check_alignment(call, "predictor_state", part.const_data_ptr());
  check_alignment(call, "weight", greedy.joint.weight);
  check_alignment(call, "workspace[0]", gate_table.const_data_ptr());
  for (const Tensor& part : weights) check_alignment(call, "predictor_weights", part.const_data_ptr());
  const ResidentConstants constants = resident_constants(
      predictor.kind, gate_table.const_data_ptr(), [&](size_t i) { return weights[i].const_data_ptr(); });
  cuda::ResidentProblem problem = resident_problem(predictor, greedy, constants, state, output);
  problem.scratch = static_cast<unsigned char*>(scratch.mutable_data_ptr());
  const Launches& launches = launches_for(predictor, greedy.joint, output.get_device_index());
  check(greedy.joint.batch == 0 or launches.scratch_bytes > 0, call.op,
        ": these weights do not fit the resident kernel (rounds = -1); see greedy_resident_bytes.");
  check(scratch.numel() >= launches.scratch_bytes, call.op, ": workspace[1] must hold at least ",
        launches.scratch_bytes, " bytes, got ", scratch.numel(), ".");
  const Launch launch(output);
  check_cuda(call.op, cudaMemsetAsync(greedy.signal.active, 0, sizeof(int), launch.stream));
  launch_rows(call, launches, problem, sizes.joint.dtype, launch.stream);
}

}  // namespace rnnt_fastdecode

STABLE_TORCH_LIBRARY_IMPL(rnnt_fastdecode, CUDA, m) {
  m.impl("greedy_resident_bytes", TORCH_BOX(&rnnt_fastdecode::greedy_resident_bytes));
}
