// What is fixed about a decoder, in one block of memory and a few numbers: a dozen tensors would cost a call
// more time than a batch of one row has to spare.
//
// The numbers: dtype (0 float32, 1 bfloat16, 2 float16), predictor kind and activation in the order of their
// enums, D, J, V, H, L (stateless: C), whether there is an encoder_bias, whether there is a bias, blank_id,
// max_symbols, then the durations. The parts of the block, each from a multiple of kPartAlignment bytes on:
// encoder_weight, encoder_bias, weight, bias, the predictor's weights, an LSTM's gate_table, and the state of
// one utterance that has not begun.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>

#include "arguments.h"

namespace rnnt_fastdecode {

constexpr int64_t kPartAlignment = 256;
constexpr size_t kNetworkNumbers = 12;
constexpr std::array kNetworkDtypes{ScalarType::Float, ScalarType::BFloat16, ScalarType::Half};

inline int64_t padded_bytes(int64_t bytes) {
  return (bytes + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
}

// A tensor of a decode state of B rows.
struct StateTensor {
  ScalarType dtype;
  std::vector<int64_t> shape;
  int64_t batch_dim;
};

// What the predictor carries and its output; a state ends with time_jumps and decoded_lengths, both [B].
inline std::vector<StateTensor> carried_tensors(const PredictorSizes& sizes) {
  std::vector<StateTensor> tensors;
  if (sizes.layers > 0) {
    tensors.push_back({sizes.dtype, {sizes.layers, sizes.batch, sizes.width}, 1});
    if (sizes.kind == PredictorKind::kLstm) {
      tensors.push_back({ScalarType::Float, {sizes.layers, sizes.batch, sizes.width}, 1});
    }
  } else {
    tensors.push_back({ScalarType::Int, {sizes.batch, sizes.context - 1}, 0});
  }
  tensors.push_back({sizes.dtype, {sizes.batch, sizes.joint_width}, 0});
  return tensors;
}

// A tensor inside of the block; without dimensions there is none.
struct NetworkPart {
  int64_t offset = 0;  // in bytes
  ScalarType dtype{};
  std::array<int64_t, 4> shape{};
  size_t dims = 0;

  Extents extents() const { return {shape.data(), dims}; }
  const void* in(const Tensor& block) const {
    return dims == 0 ? nullptr : static_cast<const char*>(block.const_data_ptr()) + offset;
  }
  // To be used while the block lives.
  Tensor tensor(const Tensor& block) const {
    std::array<int64_t, 4> strides{};
    int64_t stride = 1;
    for (size_t d = dims; d-- > 0; stride *= shape[d]) strides[d] = stride;
    return torch::stable::from_blob(const_cast<void*>(in(block)), {shape.data(), dims},
                                    {strides.data(), dims}, block.device(), dtype);
  }
  std::optional<Tensor> optional_tensor(const Tensor& block) const {
    return dims == 0 ? std::optional<Tensor>() : tensor(block);
  }
};

struct Network {
  PredictorSizes predictor;  // of no batch
  Activation activation{};
  int64_t encoder_width;
  int64_t blank_id = 0, max_symbols = 1;
  std::vector<int64_t> durations;
  // Of lay_out.
  NetworkPart encoder_weight{}, encoder_bias{}, weight{}, bias{}, gate_table{};
  std::vector<NetworkPart> predictor_weights{}, start{};
  int64_t bytes = 0;
};

inline int64_t element_bytes(ScalarType dtype) {
  return dtype == ScalarType::Long ? 8 : dtype == ScalarType::Float or dtype == ScalarType::Int ? 4 : 2;
}

// Places the parts of a network; everything else about it is known.
inline void lay_out(const char* op, Network& network, bool has_encoder_bias, bool has_bias) {
  int64_t end = 0;
  const auto place = [&](ScalarType dtype, std::initializer_list<int64_t> shape) {
    NetworkPart part{.offset = end, .dtype = dtype, .shape = {}, .dims = shape.size()};
    std::copy(shape.begin(), shape.end(), part.shape.begin());
    int64_t bytes = element_bytes(dtype);
    bool fits = true;
    for (const int64_t extent : shape) fits = fits and not __builtin_mul_overflow(bytes, extent, &bytes);
    fits = fits and bytes <= INT64_MAX / 2 - end - kPartAlignment;
    check(fits, op, ": the network must fit into memory, got a part of shape ", part.extents(), ".");
    end += padded_bytes(bytes);
    return part;
  };
  const PredictorSizes& sizes = network.predictor;
  const int64_t joint_width = sizes.joint_width, width = sizes.width, layers = sizes.layers;
  const int64_t outputs = sizes.vocab + static_cast<int64_t>(network.durations.size());
  const ScalarType dtype = sizes.dtype;
  network.encoder_weight = place(dtype, {joint_width, network.encoder_width});
  if (has_encoder_bias) network.encoder_bias = place(dtype, {joint_width});
  network.weight = place(dtype, {outputs, joint_width});
  if (has_bias) network.bias = place(dtype, {outputs});
  auto& weights = network.predictor_weights;
  if (sizes.kind == PredictorKind::kLstm) {
    weights = {place(dtype, {sizes.vocab, width}), place(dtype, {layers, 4 * width, 2 * width}),
               place(ScalarType::Float, {layers, 4 * width})};
  } else if (sizes.kind == PredictorKind::kGru) {
    weights = {place(dtype, {sizes.vocab, width}), place(dtype, {layers, 2, 3 * width, width}),
               place(ScalarType::Float, {layers, 2, 3 * width})};
  } else {
    weights = {place(dtype, {sizes.context, sizes.vocab, width})};
  }
  weights.push_back(place(dtype, {joint_width, width}));
  weights.push_back(place(dtype, {joint_width}));
  if (sizes.kind == PredictorKind::kLstm) {
    network.gate_table = place(ScalarType::Float, {sizes.vocab, width, 4});
  }
  PredictorSizes one = sizes;
  one.batch = 1;
  for (const StateTensor& part : carried_tensors(one)) {
    const auto& shape = part.shape;
    network.start.push_back(shape.size() == 3 ? place(part.dtype, {shape[0], shape[1], shape[2]})
                                              : place(part.dtype, {shape[0], shape[1]}));
  }
  network.start.push_back(place(ScalarType::Int, {1}));
  network.start.push_back(place(ScalarType::Long, {1}));
  network.bytes = end;
}

// The network that `numbers` tell of, in `block`.
inline Network read_network(const CallContext& call, const Tensor& block,
                            const std::vector<int64_t>& numbers) {
  check(numbers.size() >= kNetworkNumbers, call.op, ": numbers must hold at least ",
        static_cast<int64_t>(kNetworkNumbers), " numbers, as from network_numbers, got ",
        static_cast<int64_t>(numbers.size()), ".");
  const auto number = [&](size_t i, int64_t least, int64_t most) {
    check(numbers[i] >= least and numbers[i] <= most, call.op, ": numbers[", static_cast<int64_t>(i),
          "] must be between ", least, " and ", most, ", got ", numbers[i], ".");
    return numbers[i];
  };
  const ScalarType dtype = kNetworkDtypes[number(0, 0, 2)];
  const auto kind = static_cast<PredictorKind>(number(1, 0, 3));
  const bool recurrent = kind == PredictorKind::kLstm or kind == PredictorKind::kGru;
  const int64_t depth = number(7, 1, INT32_MAX);
  Network network{.predictor = {.kind = kind,
                                .batch = 0,
                                .vocab = number(5, 1, INT32_MAX),
                                .width = number(6, 1, INT32_MAX),
                                .joint_width = number(4, 1, INT32_MAX),
                                .layers = recurrent ? depth : 0,
                                .context = recurrent ? 0 : depth,
                                .dtype = dtype},
                  .activation = static_cast<Activation>(number(2, 0, 2)),
                  .encoder_width = number(3, 1, INT32_MAX),
                  .blank_id = numbers[10],
                  .max_symbols = numbers[11],
                  .durations = {numbers.begin() + kNetworkNumbers, numbers.end()}};
  lay_out(call.op, network, number(8, 0, 1) == 1, number(9, 0, 1) == 1);
  call.tensor("network", block, ScalarType::Byte, {network.bytes});
  return network;
}

}  // namespace rnnt_fastdecode
