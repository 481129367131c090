// The resident kernel as torch ops: greedy_decode, which puts everything of a call on the stream at once, and
// what greedy_rounds_ and greedy_resident_bytes need of it.

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include "../decode_arguments.h"
#include "../projection.h"
#include "encoder_projection.cuh"
#include "pack_labels.cuh"
#include "resident/resident.cuh"
#include "resident_bindings.h"
#include "state_rows.cuh"

namespace rnnt_fastdecode {
namespace {

constexpr MatrixProducts kProducts{aoti_torch_cuda_mm_out, aoti_torch_cuda_addmm_out};
constexpr int64_t kRecord = sizeof(int4) / sizeof(int);

// How a batch is cut into launches: as many rows at a time as one takes, then those that are left.
struct Launches {
  int most;  // rows
  cuda::ResidentPlan full, last;
  int64_t scratch_bytes;  // 0 where the kernel cannot run
};

Launches plan_launches(const cuda::ResidentShape& batch, int device) {
  int shared_limit = 0, cooperative = 0;
  check_cuda("cudaDeviceGetAttribute",
             cudaDeviceGetAttribute(&shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check_cuda("cudaDeviceGetAttribute",
             cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device));
  Launches launches{.most = cuda::resident_rows(batch.half), .full = {}, .last = {}, .scratch_bytes = 0};
  const auto plan = [&](int rows, cuda::ResidentPlan* part) {
    cuda::ResidentShape shape = batch;
    shape.batch = rows;
    return cooperative != 0 and cuda::plan_resident(shape, multiprocessors(device), shared_limit, part);
  };
  const int left = batch.batch % launches.most;
  const bool fits = (batch.batch < launches.most or plan(launches.most, &launches.full)) and
                    (left == 0 or plan(left, &launches.last));
  if (fits) launches.scratch_bytes = std::max(launches.full.scratch_bytes, launches.last.scratch_bytes);
  return launches;
}

// The plan of the last call with these sizes in this thread, or a new one.
const Launches& launches_for(const cuda::ResidentShape& shape, int device) {
  struct Planned {
    cuda::ResidentShape shape{};
    int device = -1;
    Launches launches{};
  };
  thread_local Planned last;
  if (last.device != device or last.shape != shape) {
    last = {.shape = shape, .device = device, .launches = plan_launches(shape, device)};
  }
  return last.launches;
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

cuda::ResidentShape resident_shape(const PredictorSizes& predictor, const cuda::JointProblem& joint,
                                   ScalarType dtype) {
  return resident_shape(predictor, joint.num_tokens, joint.num_durations, joint.batch, joint.window, dtype);
}

void check_gate_table(const CallContext& call, const char* name, const Tensor& table,
                      const PredictorSizes& predictor) {
  const int64_t labels = predictor.kind == PredictorKind::kLstm ? predictor.vocab : 0;
  call.tensor(name, table, ScalarType::Float, {labels, predictor.width, 4});
}

void check_alignment(const CallContext& call, const char* name, const void* pointer, int64_t row_bytes = 0) {
  check(reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0 and row_bytes % 16 == 0, call.op, ": ", name,
        " must be aligned to 16 bytes for the resident kernel.");
}

// The problem of a whole batch. state: what the predictor carries, where the kernel updates it.
cuda::ResidentProblem resident_problem(const CallContext& call, const PredictorSizes& predictor,
                                       const cuda::GreedyProblem& greedy, const std::vector<Tensor>& weights,
                                       const Tensor& gate_table, const std::vector<Tensor>& state,
                                       const Tensor& output) {
  const bool lstm = predictor.kind == PredictorKind::kLstm;
  check_alignment(call, "weight", greedy.joint.weight);
  check_alignment(call, "gate_table", gate_table.const_data_ptr());
  for (const Tensor& part : weights) check_alignment(call, "predictor_weights", part.const_data_ptr());
  return {.greedy = greedy,
          .gate_table = static_cast<const float*>(gate_table.const_data_ptr()),
          .tables = weights[0].const_data_ptr(),
          .weight = lstm ? weights[1].const_data_ptr() : nullptr,
          .bias = lstm ? static_cast<const float*>(weights[2].const_data_ptr()) : nullptr,
          .projection = weights[lstm ? 3 : 1].const_data_ptr(),
          .projection_bias = weights[lstm ? 4 : 2].const_data_ptr(),
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

// What the kernels of one call share, in one piece of memory.
struct CallMemory {
  CallMemory(const Tensor& next_to, int64_t batch, int64_t room, int64_t scratch_bytes) {
    const auto aligned = [](int64_t bytes) { return (bytes + 255) / 256 * 256; };
    const int64_t counter_bytes = aligned(4 * batch * sizeof(int)),
                  table_bytes = aligned(4 * room * sizeof(int));
    bytes = new_tensor(next_to, {counter_bytes + table_bytes + scratch_bytes}, ScalarType::Byte);
    auto* const base = static_cast<unsigned char*>(bytes.mutable_data_ptr());
    int* const counters = reinterpret_cast<int*>(base);
    row_lengths = counters, times = counters + batch, symbols = counters + 2 * batch,
    counts = counters + 3 * batch;
    int* const tables = reinterpret_cast<int*>(base + counter_bytes);
    tokens = tables, frames = tables + room, token_durations = tables + 2 * room;
    log_probs = reinterpret_cast<float*>(tables + 3 * room);
    scratch = base + counter_bytes + table_bytes;
  }

  Tensor bytes;
  int *row_lengths, *times, *symbols, *counts;  // [B]
  int *tokens, *frames, *token_durations;       // [B, C]
  float* log_probs;                             // [B, C]
  unsigned char* scratch;
};

cuda::LoadProblem load_problem(const DecodeSizes& sizes, const Tensor& lengths,
                               const std::vector<Tensor>& state, const std::vector<Tensor>& carried,
                               const CallMemory& memory) {
  const int batch = static_cast<int>(sizes.joint.batch);
  const Tensor& time_jumps = state[carried.size()];
  cuda::LoadProblem problem{.state = {.part = {}, .count = static_cast<int>(carried.size()), .batch = batch},
                            .lengths = lengths.const_data_ptr(),
                            .wide_lengths = lengths.scalar_type() == ScalarType::Long,
                            .time_jumps = ints(time_jumps),
                            .one_time_jump = time_jumps.size(0) == 1,
                            .frames = static_cast<int>(sizes.joint.frames),
                            .rows = batch,
                            .row_lengths = memory.row_lengths,
                            .times = memory.times,
                            .symbols = memory.symbols,
                            .counts = memory.counts};
  for (size_t i = 0; i < carried.size(); ++i) {
    problem.state.part[i] = state_part(state[i], carried[i], sizes.carried[i].batch_dim);
  }
  return problem;
}

// Loads the rows and projects their frames: the result, [B * T, J].
Tensor load_and_project(const CallContext& call, const cuda::LoadProblem& load, const Tensor& encoder_output,
                        const Tensor& weight, const std::optional<Tensor>& bias, cudaStream_t stream) {
  cuda::EncoderProjection projection{.frames = encoder_output.const_data_ptr(),
                                     .weight = weight.const_data_ptr(),
                                     .bias = bias ? bias->const_data_ptr() : nullptr,
                                     .output = nullptr,
                                     .rows = encoder_output.size(0) * encoder_output.size(1),
                                     .width = static_cast<int>(weight.size(1)),
                                     .output_width = static_cast<int>(weight.size(0))};
  bool own = false;
  dispatch(encoder_output.scalar_type(),
           [&]<typename T>(T) { own = cuda::projection_supports<T>(projection); });
  if (not own) {
    check_cuda(call.op, cuda::launch_load_rows(load, stream));
    return project_frames(kProducts, encoder_output, weight, bias);
  }
  Tensor output = new_tensor(encoder_output, {projection.rows, weight.size(0)}, encoder_output.scalar_type());
  projection.output = output.mutable_data_ptr();
  dispatch(encoder_output.scalar_type(), [&]<typename T>(T) {
    check_cuda(call.op, cuda::launch_load_and_project<T>(load, projection, stream));
  });
  return output;
}

// Ends the new state with time_jumps and decoded_lengths.
Tensor pack(const DecodeSizes& sizes, const Tensor& lengths, const Tensor& decoded_lengths,
            const CallMemory& memory, std::vector<Tensor>& new_state, cudaStream_t stream) {
  const int64_t batch = sizes.joint.batch;
  const Tensor labels = new_tensor(lengths, {batch + sizes.room, kRecord}, ScalarType::Int);
  new_state.push_back(new_tensor(lengths, {batch}, ScalarType::Int));
  new_state.push_back(new_tensor(lengths, {batch}, ScalarType::Long));
  if (batch > 0) {
    const cuda::PackProblem problem{
        .tokens = memory.tokens,
        .frames = memory.frames,
        .token_durations = memory.token_durations,
        .log_probs = memory.log_probs,
        .counts = memory.counts,
        .lengths = lengths.const_data_ptr(),
        .wide_lengths = lengths.scalar_type() == ScalarType::Long,
        .decoded_lengths = static_cast<const int64_t*>(decoded_lengths.const_data_ptr()),
        .one_decoded_length = decoded_lengths.size(0) == 1,
        .batch = static_cast<int>(batch),
        .capacity = static_cast<int>(sizes.capacity),
        .room = static_cast<int>(sizes.room),
        .packed = reinterpret_cast<int4*>(mutable_ints(labels)),
        .ends = {.times = memory.times,
                 .row_lengths = memory.row_lengths,
                 .time_jumps = mutable_ints(new_state[new_state.size() - 2]),
                 .decoded = static_cast<int64_t*>(new_state.back().mutable_data_ptr())}};
    check_cuda("greedy_decode", cuda::launch_pack_labels(problem, stream));
  }
  return labels;
}

std::tuple<Tensor, std::vector<Tensor>> greedy_decode(
    const Tensor& encoder_output, const Tensor& lengths, const std::vector<Tensor>& state, int64_t window,
    const Tensor& encoder_weight, const std::optional<Tensor>& encoder_bias, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::string& activation, int64_t blank_id,
    const std::vector<int64_t>& durations, int64_t max_symbols, const std::string& predictor_kind,
    const std::vector<Tensor>& predictor_weights, const std::optional<Tensor>& gate_table) {
  const CallContext call{"greedy_decode", encoder_output.device()};
  const DecodeSizes sizes =
      check_greedy_decode(encoder_output, lengths, state, window, encoder_weight, encoder_bias, weight, bias,
                          activation, blank_id, durations, max_symbols, predictor_kind, predictor_weights);
  const PredictorSizes& predictor = sizes.predictor;
  check(predictor.kind != PredictorKind::kGru, call.op,
        ": predictor_kind 'gru' has no resident kernel on CUDA.");
  check(gate_table.has_value(), call.op, ": gate_table must be given on CUDA.");
  check_gate_table(call, "gate_table", *gate_table, predictor);

  // The memory is this call's alone and goes back in the order of the stream, whatever happens here.
  const Launch launch(encoder_output);
  std::vector<Tensor> new_state = new_carried(sizes, encoder_output);
  cuda::JointProblem joint = joint_problem(sizes.joint, nullptr, new_state.back().const_data_ptr(), weight,
                                           bias, nullptr, nullptr, window);
  const bool runs = joint.batch > 0 and joint.frames > 0;
  const Launches& launches =
      launches_for(resident_shape(predictor, joint, sizes.joint.dtype), encoder_output.get_device_index());
  check(not runs or launches.scratch_bytes > 0, call.op,
        ": these weights do not fit the resident kernel; see greedy_resident_bytes.");
  const CallMemory memory(encoder_output, sizes.joint.batch, sizes.room, launches.scratch_bytes);
  const cuda::LoadProblem load = load_problem(sizes, lengths, state, new_state, memory);
  if (joint.batch > 0 and not runs) check_cuda(call.op, cuda::launch_load_rows(load, launch.stream));
  if (runs) {
    const Tensor encoder =
        load_and_project(call, load, encoder_output, encoder_weight, encoder_bias, launch.stream);
    joint.encoder = encoder.const_data_ptr();
    joint.times = memory.times;
    joint.lengths = memory.row_lengths;
    cuda::GreedyProblem greedy =
        greedy_problem(call, joint, sizes.capacity, blank_id, durations, max_symbols);
    greedy.times = memory.times;
    greedy.symbols = memory.symbols;
    greedy.tokens = memory.tokens;
    greedy.frames = memory.frames;
    greedy.token_durations = memory.token_durations;
    greedy.log_probs = memory.log_probs;
    greedy.counts = memory.counts;
    cuda::ResidentProblem problem = resident_problem(call, predictor, greedy, predictor_weights, *gate_table,
                                                     new_state, new_state.back());
    problem.scratch = memory.scratch;
    launch_rows(call, launches, problem, sizes.joint.dtype, launch.stream);
  }
  const Tensor labels = pack(sizes, lengths, state.back(), memory, new_state, launch.stream);
  return {labels, new_state};
}

}  // namespace

void run_resident(const CallContext& call, const GreedySizes& sizes, const cuda::GreedyProblem& greedy,
                  const std::vector<Tensor>& weights, const std::vector<Tensor>& state, const Tensor& output,
                  const std::vector<Tensor>& workspace) {
  const PredictorSizes& predictor = sizes.predictor;
  check(predictor.kind != PredictorKind::kGru, call.op,
        ": rounds must be at least 1 on CUDA for predictor_kind 'gru', got -1.");
  check(workspace.size() == 2, call.op, ": workspace must hold 2 tensors (gate_table, scratch), got ",
        count_of(workspace), ".");
  const Tensor &gate_table = workspace[0], &scratch = workspace[1];
  check_gate_table(call, "workspace[0]", gate_table, predictor);
  call.tensor("workspace[1]", scratch, ScalarType::Byte, {scratch.numel()});
  const int64_t row_bytes = greedy.joint.encoder_batch_stride * static_cast<int64_t>(output.element_size());
  check_alignment(call, "encoder", greedy.joint.encoder, row_bytes);
  check_alignment(call, "predictor_output", output.const_data_ptr());
  check_alignment(call, "workspace[1]", scratch.const_data_ptr());
  for (const Tensor& part : state) check_alignment(call, "predictor_state", part.const_data_ptr());
  cuda::ResidentProblem problem =
      resident_problem(call, predictor, greedy, weights, gate_table, state, output);
  problem.scratch = static_cast<unsigned char*>(scratch.mutable_data_ptr());
  const Launches& launches =
      launches_for(resident_shape(predictor, greedy.joint, sizes.joint.dtype), output.get_device_index());
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
  m.impl("greedy_decode", TORCH_BOX(&rnnt_fastdecode::greedy_decode));
  m.impl("greedy_resident_bytes", TORCH_BOX(&rnnt_fastdecode::greedy_resident_bytes));
}
