// The CUDA kernels as torch ops: checks, output tensors, dtype dispatch, the current stream; no arithmetic.

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../arguments.h"
#include "ahead_rounds.cuh"
#include "kv_cache_update.cuh"
#include "problems.h"
#include "resident_bindings.h"

namespace rnnt_fastdecode {
namespace {

constexpr int kPartialWords = sizeof(cuda::JointPartial) / sizeof(int);

std::tuple<Tensor, Tensor, Tensor> joint_argmax(Tensor encoder, Tensor predictor, Tensor weight,
                                                std::optional<Tensor> bias, Tensor times, Tensor lengths,
                                                int64_t window, int64_t num_durations,
                                                std::string activation) {
  const JointSizes sizes =
      check_joint_argmax(encoder, predictor, weight, bias, times, lengths, window, num_durations, activation);
  Tensor tokens = new_tensor(times, {sizes.batch, window}, ScalarType::Int);
  Tensor durations = new_tensor(times, {sizes.batch, window}, ScalarType::Int);
  Tensor log_probs = new_tensor(times, {sizes.batch, window}, ScalarType::Float);
  const cuda::JointProblem problem =
      joint_problem(sizes, encoder.const_data_ptr(), predictor.const_data_ptr(), weight.const_data_ptr(),
                    pointer_or_null(bias), ints(times), ints(lengths), window);
  if (problem.rows() > 0) {
    const Launch launch(encoder);
    int splits = 0;
    dispatch(sizes.dtype, [&]<typename T>(T) {
      splits = cuda::joint_column_splits<T>(problem, multiprocessors(encoder.get_device_index()));
    });
    const Tensor scratch =
        new_tensor(times, {static_cast<int64_t>(problem.rows()) * splits * kPartialWords}, ScalarType::Int);
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

cuda::RecurrentProblem recurrent_problem(const PredictorSizes& sizes, const std::vector<Tensor>& weights,
                                         const int* labels, const std::vector<Tensor>& state,
                                         const Tensor& output) {
  return {.labels = labels,
          .embedding = weights[0].const_data_ptr(),
          .weight = weights[1].const_data_ptr(),
          .bias = static_cast<const float*>(weights[2].const_data_ptr()),
          .projection = weights[3].const_data_ptr(),
          .projection_bias = weights[4].const_data_ptr(),
          .hidden = state[0].mutable_data_ptr(),
          .cell = sizes.kind == PredictorKind::kLstm ? mutable_floats(state[1]) : nullptr,
          .next_hidden = state.back().mutable_data_ptr(),
          .output = output.mutable_data_ptr(),
          .batch = static_cast<int>(sizes.batch),
          .layers = static_cast<int>(sizes.layers),
          .vocab_size = static_cast<int>(sizes.vocab),
          .hidden_width = static_cast<int>(sizes.width),
          .output_width = static_cast<int>(sizes.joint_width),
          .gru = sizes.kind == PredictorKind::kGru};
}

bool is_recurrent(const PredictorSizes& sizes) {
  return sizes.kind == PredictorKind::kLstm || sizes.kind == PredictorKind::kGru;
}

template <typename T>
cudaError_t launch_predictor(const PredictorSizes& sizes, const std::vector<Tensor>& weights,
                             const int* labels, const std::vector<Tensor>& state, const Tensor& output,
                             cudaStream_t stream) {
  if (is_recurrent(sizes)) {
    return cuda::launch_recurrent_step<T>(recurrent_problem(sizes, weights, labels, state, output), stream);
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
// row. For an LSTM or a GRU of 16-bit elements also the table of its input gates and memory for those of the
// state.
int check_workspace(const CallContext& call, const std::vector<Tensor>& workspace,
                    const cuda::JointProblem& joint, const PredictorSizes& predictor) {
  const bool ahead = is_recurrent(predictor) && predictor.dtype != ScalarType::Float;
  const size_t wanted = ahead ? 4 : 2;
  check(workspace.size() == wanted, call.op, ": workspace must hold ", wanted, " tensors (labels, partials",
        ahead ? ", gate_table, gates" : "", ") on CUDA, got ", workspace.size(), ".");
  call.tensor("workspace[0]", workspace[0], ScalarType::Int, {joint.batch});
  const int64_t words = workspace[1].numel();
  call.tensor("workspace[1]", workspace[1], ScalarType::Int, {words});
  const int64_t needed = static_cast<int64_t>(joint.rows()) * kPartialWords;
  check(words >= needed, call.op, ": workspace[1] must hold at least ", needed, " elements, got ", words,
        ".");
  if (ahead) {
    const int64_t width = predictor.width;
    call.tensor("workspace[2]", workspace[2], ScalarType::Float, {predictor.vocab, width, 4});
    call.tensor("workspace[3]", workspace[3], ScalarType::Float, {predictor.layers, joint.batch, width, 4});
  }
  return needed == 0 ? 0 : static_cast<int>(std::min<int64_t>(words / needed, INT32_MAX));
}

void greedy_rounds(Tensor encoder, Tensor lengths, Tensor weight, std::optional<Tensor> bias,
                   std::string activation, int64_t blank_id, std::vector<int64_t> durations,
                   int64_t max_symbols, int64_t window, int64_t rounds, std::string predictor_kind,
                   std::vector<Tensor> predictor_weights, std::vector<Tensor> predictor_state,
                   Tensor predictor_output, Tensor times, Tensor symbols, Tensor tokens, Tensor frames,
                   Tensor token_durations, Tensor log_probs, Tensor counts, Tensor active,
                   std::vector<Tensor> workspace, int64_t condition) {
  const GreedySizes sizes = check_greedy_rounds(
      encoder, lengths, weight, bias, activation, blank_id, durations, max_symbols, window, rounds,
      predictor_kind, predictor_weights, predictor_state, predictor_output, times, symbols, tokens, frames,
      token_durations, log_probs, counts, active);
  const CallContext call{"greedy_rounds_", encoder.device()};
  cuda::GreedyProblem problem = greedy_problem(
      call,
      joint_problem(sizes.joint, encoder.const_data_ptr(), predictor_output.const_data_ptr(),
                    weight.const_data_ptr(), pointer_or_null(bias), ints(times), ints(lengths), window),
      sizes.capacity, blank_id, durations, max_symbols);
  problem.times = mutable_ints(times);
  problem.symbols = mutable_ints(symbols);
  problem.tokens = mutable_ints(tokens);
  problem.frames = mutable_ints(frames);
  problem.token_durations = mutable_ints(token_durations);
  problem.log_probs = mutable_floats(log_probs);
  problem.counts = mutable_ints(counts);
  problem.signal = {mutable_ints(active), static_cast<unsigned long long>(condition)};
  if (rounds == -1) {
    check(condition == 0, call.op, ": condition must be 0 with rounds = -1, got ", condition, ".");
    run_resident(call, sizes, problem, predictor_weights, predictor_state, predictor_output, workspace);
    return;
  }
  const int room = check_workspace(call, workspace, problem.joint, sizes.predictor);
  problem.labels = mutable_ints(workspace[0]);
  problem.partials = reinterpret_cast<cuda::JointPartial*>(mutable_ints(workspace[1]));

  const Launch launch(encoder);
  if (problem.joint.batch == 0) {
    check_cuda(call.op, cuda::launch_clear_signal(problem.signal, launch.stream));
  } else {
    dispatch(sizes.joint.dtype, [&]<typename T>(T) {
      if constexpr (!std::is_same_v<T, float>) {
        if (workspace.size() == 4) {
          const cuda::AheadProblem ahead{recurrent_problem(sizes.predictor, predictor_weights, problem.labels,
                                                           predictor_state, predictor_output),
                                         static_cast<const float4*>(workspace[2].const_data_ptr()),
                                         static_cast<float4*>(workspace[3].mutable_data_ptr())};
          if (cuda::ahead_rounds_support<T>(problem, ahead, room)) {
            check_cuda(call.op,
                       cuda::launch_ahead_rounds<T>(problem, ahead, static_cast<int>(rounds), launch.stream));
            return;
          }
        }
      }
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
}

}  // namespace rnnt_fastdecode
