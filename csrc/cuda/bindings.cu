// The CUDA kernels as torch ops: checks, output tensors, dtype dispatch, the current stream; no arithmetic.

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../arguments.h"
#include "greedy_rounds.cuh"
#include "joint_argmax.cuh"
#include "kv_cache_update.cuh"
#include "launch.h"
#include "predictor_step.cuh"
#include "resident/resident.cuh"

namespace rnnt_fastdecode {
namespace {

constexpr int kPartialWords = sizeof(cuda::JointPartial) / sizeof(int);

int multiprocessors(int device) {
  int count = 0;
  check_cuda("cudaDeviceGetAttribute",
             cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

template <typename Function>
void dispatch(ScalarType dtype, Function function) {
  switch (dtype) {
    case ScalarType::Float:
      return function(float{});
    case ScalarType::BFloat16:
      return function(__nv_bfloat16{});
    default:
      return function(__half{});
  }
}

cuda::JointProblem joint_problem(const JointSizes& sizes, const Tensor& encoder, const Tensor& predictor,
                                 const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& times,
                                 const Tensor& lengths, int64_t window) {
  return {.encoder = encoder.const_data_ptr(),
          .predictor = predictor.const_data_ptr(),
          .weight = weight.const_data_ptr(),
          .bias = bias ? bias->const_data_ptr() : nullptr,
          .times = ints(times),
          .lengths = ints(lengths),
          .encoder_batch_stride = sizes.encoder_batch_stride,
          .batch = static_cast<int>(sizes.batch),
          .frames = static_cast<int>(sizes.frames),
          .width = static_cast<int>(sizes.joint_width),
          .num_tokens = static_cast<int>(sizes.vocab),
          .num_durations = static_cast<int>(sizes.num_durations),
          .window = static_cast<int>(window),
          .activation = static_cast<cuda::Activation>(sizes.activation)};
}
static_assert(static_cast<int>(Activation::kTanh) == static_cast<int>(cuda::Activation::kTanh));
static_assert(static_cast<int>(Activation::kSigmoid) == static_cast<int>(cuda::Activation::kSigmoid));

std::tuple<Tensor, Tensor, Tensor> joint_argmax(Tensor encoder, Tensor predictor, Tensor weight,
                                                std::optional<Tensor> bias, Tensor times, Tensor lengths,
                                                int64_t window, int64_t num_durations,
                                                std::string activation) {
  const JointSizes sizes =
      check_joint_argmax(encoder, predictor, weight, bias, times, lengths, window, num_durations, activation);
  Tensor tokens = torch::stable::new_empty(times, {sizes.batch, window});
  Tensor durations = torch::stable::new_empty(times, {sizes.batch, window});
  Tensor log_probs = torch::stable::new_empty(times, {sizes.batch, window}, ScalarType::Float);
  const cuda::JointProblem problem =
      joint_problem(sizes, encoder, predictor, weight, bias, times, lengths, window);
  if (problem.rows() > 0) {
    const Launch launch(encoder);
    int splits = 0;
    dispatch(sizes.dtype, [&]<typename T>(T) {
      splits = cuda::joint_column_splits<T>(problem, multiprocessors(encoder.get_device_index()));
    });
    const Tensor scratch =
        torch::stable::new_empty(times, {static_cast<int64_t>(problem.rows()) * splits * kPartialWords});
    auto* partials = reinterpret_cast<cuda::JointPartial*>(mutable_ints(scratch));
    dispatch(sizes.dtype, [&]<typename T>(T) {
      check_cuda("joint_argmax",
                 cuda::launch_joint_partials<T>(problem, partials, splits, {}, launch.stream));
    });
    check_cuda("joint_argmax",
               cuda::launch_joint_finish(problem, partials, splits, mutable_ints(tokens),
                                         mutable_ints(durations), mutable_floats(log_probs), launch.stream));
  }
  return {tokens, durations, log_probs};
}

template <typename T>
cudaError_t launch_predictor(const PredictorSizes& sizes, const std::vector<Tensor>& weights,
                             const int* labels, const std::vector<Tensor>& state, const Tensor& output,
                             cudaStream_t stream) {
  const bool lstm = sizes.kind == PredictorKind::kLstm;
  if (lstm || sizes.kind == PredictorKind::kGru) {
    const cuda::RecurrentProblem problem{.labels = labels,
                                         .embedding = weights[0].const_data_ptr(),
                                         .weight = weights[1].const_data_ptr(),
                                         .bias = static_cast<const float*>(weights[2].const_data_ptr()),
                                         .projection = weights[3].const_data_ptr(),
                                         .projection_bias = weights[4].const_data_ptr(),
                                         .hidden = state[0].mutable_data_ptr(),
                                         .cell = lstm ? mutable_floats(state[1]) : nullptr,
                                         .next_hidden = state.back().mutable_data_ptr(),
                                         .output = output.mutable_data_ptr(),
                                         .batch = static_cast<int>(sizes.batch),
                                         .layers = static_cast<int>(sizes.layers),
                                         .vocab_size = static_cast<int>(sizes.vocab),
                                         .hidden_width = static_cast<int>(sizes.width),
                                         .output_width = static_cast<int>(sizes.joint_width)};
    return (lstm ? cuda::launch_lstm_step<T> : cuda::launch_gru_step<T>)(problem, stream);
  }
  return cuda::launch_stateless_step<T>({.labels = labels,
                                         .tables = weights[0].const_data_ptr(),
                                         .projection = weights[1].const_data_ptr(),
                                         .projection_bias = weights[2].const_data_ptr(),
                                         .context = mutable_ints(state[0]),
                                         .output = output.mutable_data_ptr(),
                                         .batch = static_cast<int>(sizes.batch),
                                         .context_size = static_cast<int>(sizes.context),
                                         .vocab_size = static_cast<int>(sizes.vocab),
                                         .hidden_width = static_cast<int>(sizes.width),
                                         .output_width = static_cast<int>(sizes.joint_width),
                                         .relu = sizes.kind == PredictorKind::kStatelessRelu},
                                        stream);
}

void predictor_step(std::string kind, std::vector<Tensor> weights, Tensor labels, std::vector<Tensor> state,
                    Tensor output) {
  const PredictorSizes sizes = check_predictor_step(kind, weights, labels, state, output);
  if (sizes.batch == 0) {
    return;
  }
  const Launch launch(output);
  dispatch(sizes.dtype, [&]<typename T>(T) {
    check_cuda("predictor_step_",
               launch_predictor<T>(sizes, weights, ints(labels), state, output, launch.stream));
  });
}

void kv_cache_update(Tensor keys, Tensor values, Tensor lengths, Tensor slots, Tensor positions,
                     Tensor key_cache, Tensor value_cache) {
  const CacheSizes sizes =
      check_kv_cache_update(keys, values, lengths, slots, positions, key_cache, value_cache);
  if (sizes.batch == 0 || sizes.frames == 0) {
    return;
  }
  const Launch launch(keys);
  const cuda::KvCacheProblem problem{.keys = keys.const_data_ptr(),
                                     .values = values.const_data_ptr(),
                                     .lengths = ints(lengths),
                                     .slots = ints(slots),
                                     .positions = ints(positions),
                                     .key_cache = key_cache.mutable_data_ptr(),
                                     .value_cache = value_cache.mutable_data_ptr(),
                                     .batch = static_cast<int>(sizes.batch),
                                     .frames = static_cast<int>(sizes.frames),
                                     .heads = static_cast<int>(sizes.heads),
                                     .head_width = static_cast<int>(sizes.head_width),
                                     .num_slots = static_cast<int>(sizes.slots),
                                     .capacity = static_cast<int>(sizes.capacity)};
  dispatch(keys.scalar_type(), [&]<typename T>(T) {
    check_cuda("kv_cache_update_", cuda::launch_kv_cache_update<T>(problem, launch.stream));
  });
}

// The scratch memory of the loop: [labels int32 [B], partials int32 [K]] with room for at least one partial a
// row.
int check_workspace(const CallContext& call, const std::vector<Tensor>& workspace,
                    const cuda::JointProblem& joint) {
  check(workspace.size() == 2, call.op, ": workspace must hold 2 tensors (labels, partials) on CUDA, got ",
        workspace.size(), ".");
  call.tensor("workspace[0]", workspace[0], ScalarType::Int, {joint.batch});
  const int64_t words = workspace[1].numel();
  call.tensor("workspace[1]", workspace[1], ScalarType::Int, {words});
  const int64_t needed = static_cast<int64_t>(joint.rows()) * kPartialWords;
  check(words >= needed, call.op, ": workspace[1] must hold at least ", needed, " elements, got ", words,
        ".");
  return needed == 0 ? 0 : static_cast<int>(std::min<int64_t>(words / needed, INT32_MAX));
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
          .window = static_cast<int>(window),
          .half = dtype != ScalarType::Float};
}

bool plan_resident(const cuda::ResidentShape& shape, int device, cuda::ResidentPlan* plan) {
  int shared_limit = 0, cooperative = 0;
  check_cuda("cudaDeviceGetAttribute",
             cudaDeviceGetAttribute(&shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check_cuda("cudaDeviceGetAttribute",
             cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device));
  return cooperative != 0 && cuda::plan_resident(shape, multiprocessors(device), shared_limit, plan);
}

int64_t greedy_resident_bytes(Tensor weight, std::string predictor_kind,
                              std::vector<Tensor> predictor_weights, int64_t batch, int64_t num_durations,
                              int64_t window) {
  const PredictorSizes predictor =
      predictor_sizes("greedy_resident_bytes", predictor_kind, predictor_weights, weight.size(1));
  if (predictor.kind == PredictorKind::kGru) {
    return 0;
  }
  // Full launches, and a last one of the rows that are left.
  const int64_t most = cuda::resident_rows(weight.scalar_type() != ScalarType::Float);
  int64_t bytes = 0;
  for (const int64_t rows : {std::min(batch, most), batch % most}) {
    if (rows == 0 && bytes > 0) {
      continue;
    }
    cuda::ResidentPlan plan;
    const cuda::ResidentShape shape = resident_shape(predictor, weight.size(0) - num_durations, num_durations,
                                                     rows, window, weight.scalar_type());
    if (!plan_resident(shape, weight.get_device_index(), &plan)) {
      return 0;
    }
    bytes = std::max(bytes, plan.scratch_bytes);
  }
  return bytes;
}

// The whole loop, as many rows at a time as one launch takes.
void run_resident(const CallContext& call, const GreedySizes& sizes, const cuda::GreedyProblem& greedy,
                  const std::vector<Tensor>& weights, const std::vector<Tensor>& state, const Tensor& output,
                  const std::vector<Tensor>& workspace, int rows) {
  const bool lstm = sizes.predictor.kind == PredictorKind::kLstm;
  check(sizes.predictor.kind != PredictorKind::kGru, call.op,
        ": rounds must be at least 1 on CUDA for predictor_kind 'gru', got -1.");
  check(workspace.size() == 2, call.op, ": workspace must hold 2 tensors (gate_table, scratch), got ",
        workspace.size(), ".");
  const int64_t table = lstm ? sizes.predictor.vocab : 0;
  call.tensor("workspace[0]", workspace[0], ScalarType::Float, {table, sizes.predictor.width, 4});
  call.tensor("workspace[1]", workspace[1], ScalarType::Byte, {workspace[1].numel()});
  const auto check_alignment = [&](const char* name, const void* pointer, int64_t row_bytes) {
    check(reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0 && row_bytes % 16 == 0, call.op, ": ", name,
          " must be aligned to 16 bytes for the resident kernel.");
  };
  check_alignment("encoder", greedy.joint.encoder, greedy.joint.encoder_batch_stride * output.element_size());
  check_alignment("weight", greedy.joint.weight, 0);
  check_alignment("predictor_output", output.const_data_ptr(), 0);
  for (const Tensor& part : weights) check_alignment("predictor_weights", part.const_data_ptr(), 0);
  for (const Tensor& part : state) check_alignment("predictor_state", part.const_data_ptr(), 0);
  for (const Tensor& part : workspace) check_alignment("workspace", part.const_data_ptr(), 0);
  const Launch launch(output);
  check_cuda(call.op, cudaMemsetAsync(greedy.signal.active, 0, sizeof(int), launch.stream));
  const size_t element = output.element_size();
  const int most = cuda::resident_rows(sizes.joint.dtype != ScalarType::Float);
  for (int first = 0; first < rows; first += most) {
    cuda::ResidentProblem problem{
        .greedy = greedy,
        .gate_table = static_cast<const float*>(workspace[0].const_data_ptr()),
        .tables = weights[0].const_data_ptr(),
        .weight = lstm ? weights[1].const_data_ptr() : nullptr,
        .bias = lstm ? static_cast<const float*>(weights[2].const_data_ptr()) : nullptr,
        .projection = weights[lstm ? 3 : 1].const_data_ptr(),
        .projection_bias = weights[lstm ? 4 : 2].const_data_ptr(),
        .hidden = nullptr,
        .cell = nullptr,
        .context = nullptr,
        .output = nullptr,
        .state_rows = greedy.joint.batch,
        .layers = static_cast<int>(sizes.predictor.layers),
        .context_size = static_cast<int>(sizes.predictor.context),
        .width = static_cast<int>(sizes.predictor.width),
        .relu = sizes.predictor.kind == PredictorKind::kStatelessRelu,
        .plan = {},
        .scratch = static_cast<unsigned char*>(workspace[1].mutable_data_ptr())};
    cuda::GreedyProblem& part = problem.greedy;
    cuda::JointProblem& joint = part.joint;
    joint.batch = std::min(most, rows - first);
    const auto moved = [&](const void* base, int64_t elements) {
      return static_cast<unsigned char*>(const_cast<void*>(base)) + first * elements * element;
    };
    joint.encoder = moved(joint.encoder, joint.encoder_batch_stride);
    joint.lengths += first;
    joint.times += first;
    part.times += first;
    part.symbols += first;
    part.counts += first;
    const int64_t entries = static_cast<int64_t>(first) * part.capacity;
    part.tokens += entries;
    part.frames += entries;
    part.token_durations += entries;
    part.log_probs += entries;
    problem.output = moved(output.mutable_data_ptr(), sizes.predictor.joint_width);
    if (lstm) {
      problem.hidden = moved(state[0].mutable_data_ptr(), sizes.predictor.width);
      problem.cell = mutable_floats(state[1]) + first * sizes.predictor.width;
    } else {
      problem.context = mutable_ints(state[0]) + first * (sizes.predictor.context - 1);
    }
    const cuda::ResidentShape shape =
        resident_shape(sizes.predictor, sizes.joint.vocab, sizes.joint.num_durations, joint.batch,
                       joint.window, sizes.joint.dtype);
    check(plan_resident(shape, output.get_device_index(), &problem.plan), call.op,
          ": these weights do not fit the resident kernel (rounds = -1); see greedy_resident_bytes.");
    check(workspace[1].numel() >= problem.plan.scratch_bytes, call.op, ": workspace[1] must hold at least ",
          problem.plan.scratch_bytes, " bytes, got ", workspace[1].numel(), ".");
    dispatch(sizes.joint.dtype,
             [&]<typename T>(T) { check_cuda(call.op, cuda::launch_resident<T>(problem, launch.stream)); });
  }
}

void greedy_rounds(Tensor encoder, Tensor lengths, Tensor weight, std::optional<Tensor> bias,
                   std::string activation, int64_t blank_id, std::vector<int64_t> durations,
                   int64_t max_symbols, int64_t window, int64_t rounds, std::string predictor_kind,
                   std::vector<Tensor> predictor_weights, std::vector<Tensor> predictor_state,
                   Tensor predictor_output, Tensor times, Tensor symbols, Tensor tokens, Tensor frames,
                   Tensor token_durations, Tensor log_probs, Tensor counts, Tensor active,
                   std::vector<Tensor> workspace, int64_t condition, int64_t rows) {
  const GreedySizes sizes = check_greedy_rounds(
      encoder, lengths, weight, bias, activation, blank_id, durations, max_symbols, window, rounds,
      predictor_kind, predictor_weights, predictor_state, predictor_output, times, symbols, tokens, frames,
      token_durations, log_probs, counts, active);
  const CallContext call{"greedy_rounds_", encoder.device()};
  check(rounds >= 1 || rounds == -1, call.op, ": rounds must be -1 or at least 1 on CUDA, got ", rounds, ".");
  check(durations.size() <= cuda::kMaxDurations, call.op, ": at most ", cuda::kMaxDurations,
        " durations are supported on CUDA, got ", durations.size(), ".");
  cuda::GreedyProblem problem{
      .joint = joint_problem(sizes.joint, encoder, predictor_output, weight, bias, times, lengths, window),
      .blank_id = static_cast<int>(blank_id),
      .max_symbols = static_cast<int>(std::min<int64_t>(max_symbols, INT32_MAX)),
      .capacity = static_cast<int>(sizes.capacity),
      .durations = {},
      .times = mutable_ints(times),
      .symbols = mutable_ints(symbols),
      .tokens = mutable_ints(tokens),
      .frames = mutable_ints(frames),
      .token_durations = mutable_ints(token_durations),
      .log_probs = mutable_floats(log_probs),
      .counts = mutable_ints(counts),
      .labels = nullptr,
      .partials = nullptr,
      .splits = 0,
      .signal = {mutable_ints(active), static_cast<unsigned long long>(condition)}};
  std::copy(durations.begin(), durations.end(), problem.durations);
  if (rounds == -1) {
    check(rows >= -1 && rows <= problem.joint.batch, call.op, ": rows must be between -1 and ",
          problem.joint.batch, ", got ", rows, ".");
    run_resident(call, sizes, problem, predictor_weights, predictor_state, predictor_output, workspace,
                 rows == -1 ? problem.joint.batch : static_cast<int>(rows));
    return;
  }
  check(rows == -1, call.op, ": rows must be -1 where rounds is not, got ", rows, ".");
  const int room = check_workspace(call, workspace, problem.joint);
  problem.labels = mutable_ints(workspace[0]);
  problem.partials = reinterpret_cast<cuda::JointPartial*>(mutable_ints(workspace[1]));

  const Launch launch(encoder);
  if (problem.joint.batch == 0) {
    check_cuda(call.op, cuda::launch_clear_signal(problem.signal, launch.stream));
  } else {
    dispatch(sizes.joint.dtype, [&]<typename T>(T) {
      const int wanted =
          cuda::joint_column_splits<T>(problem.joint, multiprocessors(encoder.get_device_index()));
      problem.splits = std::min(wanted, room);
      const auto step = [&](cudaStream_t stream) {
        return launch_predictor<T>(sizes.predictor, predictor_weights, problem.labels, predictor_state,
                                   predictor_output, stream);
      };
      check_cuda(call.op,
                 cuda::launch_greedy_rounds<T>(problem, static_cast<int>(rounds), step, launch.stream));
    });
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(rnnt_fastdecode, CUDA, m) {
  m.impl("joint_argmax", TORCH_BOX(&joint_argmax));
  m.impl("predictor_step_", TORCH_BOX(&predictor_step));
  m.impl("kv_cache_update_", TORCH_BOX(&kv_cache_update));
  m.impl("greedy_rounds_", TORCH_BOX(&greedy_rounds));
  m.impl("greedy_resident_bytes", TORCH_BOX(&greedy_resident_bytes));
}

}  // namespace rnnt_fastdecode
