// pack_network, on every device: copies into one block, by torch.

#include "network.h"
#include "result_arguments.h"

namespace rnnt_fastdecode {
namespace {

Tensor pack_network(const Tensor& encoder_weight, const std::optional<Tensor>& encoder_bias,
                    const Tensor& weight, const std::optional<Tensor>& bias, int64_t num_durations,
                    const std::string& predictor_kind, const std::vector<Tensor>& predictor_weights,
                    const std::optional<Tensor>& gate_table, const std::vector<Tensor>& start) {
  const CallContext call{"pack_network", encoder_weight.device()};
  call.dims("encoder_weight", encoder_weight, 2, "[J, D]");
  call.floating("encoder_weight", encoder_weight);
  check(encoder_weight.numel() > 0, call.op, ": encoder_weight must not be empty, got shape ",
        shape_of(encoder_weight), ".");
  call.dims("weight", weight, 2, "[V + N, J]");
  const ScalarType dtype = encoder_weight.scalar_type();
  const int64_t joint_width = encoder_weight.size(0);
  const PredictorSizes predictor =
      check_predictor_weights(call, "predictor_", predictor_kind, predictor_weights, dtype, 0, joint_width);
  check(weight.size(0) >= predictor.vocab, call.op, ": weight must have at least ", predictor.vocab,
        " rows, as the vocabulary (with blank) of predictor_weights, got ", weight.size(0), ".");
  check(num_durations == weight.size(0) - predictor.vocab, call.op, ": durations must be ",
        weight.size(0) - predictor.vocab, " numbers of frames, got ", num_durations, ".");
  Network network{.predictor = predictor,
                  .encoder_width = encoder_weight.size(1),
                  .durations = std::vector<int64_t>(num_durations)};
  lay_out(call.op, network, encoder_bias.has_value(), bias.has_value());
  const bool lstm = predictor.kind == PredictorKind::kLstm;
  check(gate_table.has_value() == lstm, call.op, ": gate_table must be given ", lstm ? "" : "only ",
        "for predictor_kind 'lstm'.");
  check(start.size() == network.start.size(), call.op, ": start must hold ", count_of(network.start),
        " tensors for predictor_kind '", predictor_kind, "', got ", count_of(start), ".");

  std::vector<std::pair<const NetworkPart*, const Tensor*>> copies;
  const auto part = [&](const auto& name, const NetworkPart& place, const Tensor& value) {
    call.tensor(name, value, place.dtype, place.extents());
    copies.emplace_back(&place, &value);
  };
  part("encoder_weight", network.encoder_weight, encoder_weight);
  if (encoder_bias) part("encoder_bias", network.encoder_bias, *encoder_bias);
  part("weight", network.weight, weight);
  if (bias) part("bias", network.bias, *bias);
  for (size_t i = 0; i < predictor_weights.size(); ++i) {
    part(Item{"predictor_", "weights", static_cast<int64_t>(i)}, network.predictor_weights[i],
         predictor_weights[i]);
  }
  if (lstm) part("gate_table", network.gate_table, *gate_table);
  for (size_t i = 0; i < start.size(); ++i) {
    part(Item{"", "start", static_cast<int64_t>(i)}, network.start[i], start[i]);
  }
  // Zeros between the parts: the same network is always the same block.
  Tensor block = new_tensor(encoder_weight, {network.bytes}, ScalarType::Byte);
  torch::stable::zero_(block);
  for (const auto& [place, value] : copies) {
    Tensor target = place->tensor(block);
    torch::stable::copy_(target, *value);
  }
  return block;
}

}  // namespace
}  // namespace rnnt_fastdecode

STABLE_TORCH_LIBRARY_IMPL(rnnt_fastdecode, CompositeExplicitAutograd, m) {
  m.impl("pack_network", TORCH_BOX(&rnnt_fastdecode::pack_network));
}
