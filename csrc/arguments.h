// The arguments of each op, checked before any work and turned into sizes: one function for an op, used by
// its CPU and its CUDA kernel alike. Values inside tensors (times, labels, slots) are not looked at here: on
// a GPU that would wait for it.
#pragma once

#include "checks.h"

namespace rnnt_fastdecode {

enum class Activation { kRelu, kTanh, kSigmoid };

inline Activation parse_activation(const char* op, const std::string& name) {
  if (name == "relu") return Activation::kRelu;
  if (name == "tanh") return Activation::kTanh;
  if (name == "sigmoid") return Activation::kSigmoid;
  fail(op, ": activation must be 'relu', 'tanh' or 'sigmoid', got '", name, "'.");
}

inline const char* name_of(Activation activation) {
  constexpr const char* kNames[] = {"relu", "tanh", "sigmoid"};
  return kNames[static_cast<int>(activation)];
}

struct JointSizes {
  int64_t batch, frames, joint_width, vocab, num_durations;
  int64_t encoder_batch_stride;  // in elements
  ScalarType dtype;
  Activation activation;
};

// Sizes of a joint for an encoder projection [B, T, J] whose rows follow one another.
inline JointSizes check_joint_weights(const CallContext& call, ScalarType dtype, int64_t batch,
                                      int64_t frames, int64_t joint_width, const Tensor& weight,
                                      const std::optional<Tensor>& bias, int64_t window,
                                      int64_t num_durations, const std::string& activation) {
  call.dims("weight", weight, 2, "[V + N, J]");
  const int64_t rows = weight.size(0);
  check(num_durations >= 0 and num_durations < rows, call.op,
        ": the number of durations must be between 0 and the rows of weight less one, got ", num_durations,
        " with ", rows, " rows.");
  check(window >= 1, call.op, ": window must be at least 1, got ", window, ".");
  call.tensor("weight", weight, dtype, {rows, joint_width});
  if (bias) call.tensor("bias", *bias, dtype, {rows});
  return {.batch = batch,
          .frames = frames,
          .joint_width = joint_width,
          .vocab = rows - num_durations,
          .num_durations = num_durations,
          .encoder_batch_stride = frames * joint_width,
          .dtype = dtype,
          .activation = parse_activation(call.op, activation)};
}

inline JointSizes check_joint(const CallContext& call, const Tensor& encoder, const char* predictor_name,
                              const Tensor& predictor, const Tensor& weight,
                              const std::optional<Tensor>& bias, int64_t window, int64_t num_durations,
                              const std::string& activation) {
  call.dims("encoder", encoder, 3, "[B, T, J]");
  call.floating("encoder", encoder);
  const ScalarType dtype = encoder.scalar_type();
  const int64_t batch = encoder.size(0), frames = encoder.size(1), joint_width = encoder.size(2);
  check(joint_width > 0, call.op, ": encoder must have a joint width of at least 1, got shape ",
        shape_of(encoder), ".");
  const bool dense = encoder.numel() == 0 or ((encoder.stride(2) == 1 or joint_width == 1) and
                                              (encoder.stride(1) == joint_width or frames == 1));
  check(dense, call.op, ": encoder must be contiguous in its last two dimensions, got strides ",
        Extents{encoder.strides().data(), 3}, ".");
  call.tensor(predictor_name, predictor, dtype, {batch, joint_width});
  JointSizes sizes = check_joint_weights(call, dtype, batch, frames, joint_width, weight, bias, window,
                                         num_durations, activation);
  sizes.encoder_batch_stride = encoder.stride(0);
  return sizes;
}

inline JointSizes check_joint_argmax(const Tensor& encoder, const Tensor& predictor, const Tensor& weight,
                                     const std::optional<Tensor>& bias, const Tensor& times,
                                     const Tensor& lengths, int64_t window, int64_t num_durations,
                                     const std::string& activation) {
  const CallContext call{"joint_argmax", encoder.device()};
  const JointSizes sizes =
      check_joint(call, encoder, "predictor", predictor, weight, bias, window, num_durations, activation);
  call.tensor("times", times, ScalarType::Int, {sizes.batch});
  call.tensor("lengths", lengths, ScalarType::Int, {sizes.batch});
  return sizes;
}

enum class PredictorKind { kLstm, kGru, kStateless, kStatelessRelu };

inline const char* name_of(PredictorKind kind) {
  constexpr const char* kNames[] = {"lstm", "gru", "stateless", "stateless_relu"};
  return kNames[static_cast<int>(kind)];
}

struct PredictorSizes {
  PredictorKind kind;
  int64_t batch, vocab, width, joint_width;
  int64_t layers;   // of an LSTM or a GRU; 0 for a stateless predictor
  int64_t context;  // labels that a stateless predictor sees; 0 for an LSTM or a GRU
  ScalarType dtype;
};

inline PredictorKind parse_predictor_kind(const char* op, const char* prefix, const std::string& kind) {
  if (kind == "lstm") return PredictorKind::kLstm;
  if (kind == "gru") return PredictorKind::kGru;
  if (kind == "stateless") return PredictorKind::kStateless;
  if (kind == "stateless_relu") return PredictorKind::kStatelessRelu;
  fail(op, ": ", prefix, "kind must be 'lstm', 'gru', 'stateless' or 'stateless_relu', got '", kind, "'.");
}

// Sizes as the weights have them; check_predictor is what makes sure of them.
inline PredictorSizes predictor_sizes(const char* op, const std::string& kind,
                                      const std::vector<Tensor>& weights, int64_t joint_width) {
  const PredictorKind parsed = parse_predictor_kind(op, "predictor_", kind);
  const bool recurrent = parsed == PredictorKind::kLstm or parsed == PredictorKind::kGru;
  check(weights.size() == (recurrent ? 5u : 3u), op, ": predictor_weights must hold ", recurrent ? 5 : 3,
        " tensors for kind '", kind, "', got ", weights.size(), ".");
  return {.kind = parsed,
          .batch = 0,
          .vocab = weights[0].size(recurrent ? 0 : 1),
          .width = weights[0].size(recurrent ? 1 : 2),
          .joint_width = joint_width,
          .layers = recurrent ? weights[1].size(0) : 0,
          .context = recurrent ? 0 : weights[0].size(0),
          .dtype = weights[0].scalar_type()};
}

// `prefix` is "" or "predictor_": the argument names of predictor_step_ and of the ops of the greedy loop.
inline PredictorSizes check_predictor_weights(const CallContext& call, const char* prefix,
                                              const std::string& kind, const std::vector<Tensor>& weights,
                                              ScalarType dtype, int64_t batch, int64_t joint_width) {
  const auto weight = [&](size_t i) { return Item{prefix, "weights", static_cast<int64_t>(i)}; };
  const PredictorKind parsed = parse_predictor_kind(call.op, prefix, kind);
  const bool lstm = parsed == PredictorKind::kLstm, gru = parsed == PredictorKind::kGru;
  const size_t num_weights = lstm or gru ? 5 : 3;
  check(weights.size() == num_weights, call.op, ": ", prefix, "weights must hold ", num_weights,
        " tensors for kind '", kind, "', got ", weights.size(), ".");
  PredictorSizes sizes{.kind = parsed,
                       .batch = batch,
                       .vocab = 0,
                       .width = 0,
                       .joint_width = joint_width,
                       .layers = 0,
                       .context = 0,
                       .dtype = dtype};
  if (lstm or gru) {
    call.dims(weight(0), weights[0], 2, "[V, H]");
    call.dims(weight(1), weights[1], lstm ? 3 : 4, lstm ? "[L, 4H, 2H]" : "[L, 2, 3H, H]");
    const int64_t width = sizes.width = weights[0].size(1);
    const int64_t layers = sizes.layers = weights[1].size(0);
    sizes.vocab = weights[0].size(0);
    check(layers >= 1, call.op, ": ", weight(1), " must have at least one layer.");
    call.tensor(weight(0), weights[0], dtype, {sizes.vocab, width});
    if (lstm) {
      call.tensor(weight(1), weights[1], dtype, {layers, 4 * width, 2 * width});
      call.tensor(weight(2), weights[2], ScalarType::Float, {layers, 4 * width});
    } else {
      call.tensor(weight(1), weights[1], dtype, {layers, 2, 3 * width, width});
      call.tensor(weight(2), weights[2], ScalarType::Float, {layers, 2, 3 * width});
    }
  } else {
    call.dims(weight(0), weights[0], 3, "[C, V, H]");
    sizes.context = weights[0].size(0);
    sizes.vocab = weights[0].size(1);
    sizes.width = weights[0].size(2);
    check(sizes.context >= 1, call.op, ": ", weight(0), " must have a context of at least one label.");
    call.tensor(weight(0), weights[0], dtype, {sizes.context, sizes.vocab, sizes.width});
  }
  check(sizes.vocab >= 1 and sizes.width >= 1, call.op, ": ", weight(0), " must not be empty, got shape ",
        shape_of(weights[0]), ".");
  call.tensor(weight(num_weights - 2), weights[num_weights - 2], dtype, {joint_width, sizes.width});
  call.tensor(weight(num_weights - 1), weights[num_weights - 1], dtype, {joint_width});
  return sizes;
}

inline PredictorSizes check_predictor(const CallContext& call, const char* prefix, const std::string& kind,
                                      const std::vector<Tensor>& weights, const std::vector<Tensor>& state,
                                      const Tensor& output) {
  const std::string output_name = std::string(prefix) + "output";
  const auto part = [&](size_t i) { return Item{prefix, "state", static_cast<int64_t>(i)}; };
  call.dims(output_name, output, 2, "[B, J]");
  call.floating(output_name, output);
  const ScalarType dtype = output.scalar_type();
  const int64_t batch = output.size(0), joint_width = output.size(1);
  call.tensor(output_name, output, dtype, {batch, joint_width});
  const PredictorKind parsed = parse_predictor_kind(call.op, prefix, kind);
  const bool lstm = parsed == PredictorKind::kLstm, gru = parsed == PredictorKind::kGru;
  const size_t num_state = lstm ? 3 : gru ? 2 : 1;
  check(state.size() == num_state, call.op, ": ", prefix, "state must hold ", num_state,
        " tensors for kind '", kind, "', got ", state.size(), ".");
  const PredictorSizes sizes =
      check_predictor_weights(call, prefix, kind, weights, dtype, batch, joint_width);
  if (lstm or gru) {
    const int64_t layers = sizes.layers, width = sizes.width;
    call.tensor(part(0), state[0], dtype, {layers, batch, width});
    if (lstm) call.tensor(part(1), state[1], ScalarType::Float, {layers, batch, width});
    call.tensor(part(num_state - 1), state[num_state - 1], dtype, {layers, batch, width});
  } else {
    call.tensor(part(0), state[0], ScalarType::Int, {batch, sizes.context - 1});
  }
  return sizes;
}

inline PredictorSizes check_predictor_step(const std::string& kind, const std::vector<Tensor>& weights,
                                           const Tensor& labels, const std::vector<Tensor>& state,
                                           const Tensor& output) {
  const CallContext call{"predictor_step_", output.device()};
  const PredictorSizes sizes = check_predictor(call, "", kind, weights, state, output);
  call.tensor("labels", labels, ScalarType::Int, {sizes.batch});
  return sizes;
}

struct CacheSizes {
  int64_t batch, frames, heads, head_width, slots, capacity;
  int64_t element_bytes;
};

inline CacheSizes check_kv_cache_update(const Tensor& keys, const Tensor& values, const Tensor& lengths,
                                        const Tensor& slots, const Tensor& positions, const Tensor& key_cache,
                                        const Tensor& value_cache) {
  const CallContext call{"kv_cache_update_", keys.device()};
  call.dims("keys", keys, 4, "[B, T, heads, dk]");
  call.floating("keys", keys);
  call.dims("key_cache", key_cache, 4, "[S, heads, C, dk]");
  const ScalarType dtype = keys.scalar_type();
  const CacheSizes sizes{.batch = keys.size(0),
                         .frames = keys.size(1),
                         .heads = keys.size(2),
                         .head_width = keys.size(3),
                         .slots = key_cache.size(0),
                         .capacity = key_cache.size(2),
                         .element_bytes = static_cast<int64_t>(keys.element_size())};
  check(sizes.capacity >= 1, call.op, ": key_cache must have room for at least one frame, got shape ",
        shape_of(key_cache), ".");
  call.tensor("keys", keys, dtype, {sizes.batch, sizes.frames, sizes.heads, sizes.head_width});
  call.tensor("values", values, dtype, {sizes.batch, sizes.frames, sizes.heads, sizes.head_width});
  call.tensor("lengths", lengths, ScalarType::Int, {sizes.batch});
  call.tensor("slots", slots, ScalarType::Int, {sizes.batch});
  call.tensor("positions", positions, ScalarType::Int, {sizes.slots});
  call.tensor("key_cache", key_cache, dtype, {sizes.slots, sizes.heads, sizes.capacity, sizes.head_width});
  call.tensor("value_cache", value_cache, dtype,
              {sizes.slots, sizes.heads, sizes.capacity, sizes.head_width});
  return sizes;
}

// What is fixed about a search, and that its two networks agree.
inline void check_rules(const CallContext& call, const JointSizes& joint, const PredictorSizes& predictor,
                        int64_t blank_id, const std::vector<int64_t>& durations, int64_t max_symbols) {
  check(predictor.vocab == joint.vocab, call.op,
        ": predictor_weights and weight must agree on the vocabulary (with blank), got ", predictor.vocab,
        " and ", joint.vocab, ".");
  check(blank_id >= 0 and blank_id < joint.vocab, call.op, ": blank_id must be between 0 and ",
        joint.vocab - 1, ", got ", blank_id, ".");
  for (const int64_t duration : durations) {
    check(duration >= 0 and duration < INT32_MAX / 2, call.op, ": durations must be numbers of frames, got ",
          duration, ".");
  }
  check(max_symbols >= 1, call.op, ": max_symbols must be at least 1, got ", max_symbols, ".");
}

struct GreedySizes {
  JointSizes joint;
  PredictorSizes predictor;
  int64_t capacity;
};

inline GreedySizes check_greedy_rounds(
    const Tensor& encoder, const Tensor& lengths, const Tensor& weight, const std::optional<Tensor>& bias,
    const std::string& activation, int64_t blank_id, const std::vector<int64_t>& durations,
    int64_t max_symbols, int64_t window, int64_t rounds, const std::string& predictor_kind,
    const std::vector<Tensor>& predictor_weights, const std::vector<Tensor>& predictor_state,
    const Tensor& predictor_output, const Tensor& times, const Tensor& symbols, const Tensor& tokens,
    const Tensor& frames, const Tensor& token_durations, const Tensor& log_probs, const Tensor& counts,
    const Tensor& active) {
  const CallContext call{"greedy_rounds_", encoder.device()};
  GreedySizes sizes;
  sizes.joint = check_joint(call, encoder, "predictor_output", predictor_output, weight, bias, window,
                            static_cast<int64_t>(durations.size()), activation);
  sizes.predictor = check_predictor(call, "predictor_", predictor_kind, predictor_weights, predictor_state,
                                    predictor_output);
  const int64_t batch = sizes.joint.batch;
  check_rules(call, sizes.joint, sizes.predictor, blank_id, durations, max_symbols);
  check(rounds >= 1 or rounds == -1, call.op,
        ": rounds must be at least 1, or -1 for as many as it takes, got ", rounds, ".");
  call.dims("tokens", tokens, 2, "[B, C]");
  sizes.capacity = tokens.size(1);
  call.tensor("lengths", lengths, ScalarType::Int, {batch});
  call.tensor("times", times, ScalarType::Int, {batch});
  call.tensor("symbols", symbols, ScalarType::Int, {batch});
  call.tensor("tokens", tokens, ScalarType::Int, {batch, sizes.capacity});
  call.tensor("frames", frames, ScalarType::Int, {batch, sizes.capacity});
  call.tensor("token_durations", token_durations, ScalarType::Int, {batch, sizes.capacity});
  call.tensor("log_probs", log_probs, ScalarType::Float, {batch, sizes.capacity});
  call.tensor("counts", counts, ScalarType::Int, {batch});
  call.tensor("active", active, ScalarType::Int, {1});
  return sizes;
}

}  // namespace rnnt_fastdecode
