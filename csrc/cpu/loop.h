// The ops of the greedy loop on the CPU, as greedy_decode calls them; their meaning stands in ops.cpp.
#pragma once

#include "../checks.h"

namespace rnnt_fastdecode::cpu {

void load_rows(const Tensor& lengths, const Tensor& time_jumps, const std::vector<Tensor>& given,
               const std::vector<int64_t>& batch_dims, int64_t frames, const Tensor& row_lengths,
               const Tensor& times, const Tensor& symbols, const Tensor& counts,
               const std::vector<Tensor>& state);

void greedy_rounds(const Tensor& encoder, const Tensor& lengths, const Tensor& weight,
                   const std::optional<Tensor>& bias, const std::string& activation, int64_t blank_id,
                   const std::vector<int64_t>& durations, int64_t max_symbols, int64_t window, int64_t rounds,
                   const std::string& predictor_kind, const std::vector<Tensor>& predictor_weights,
                   const std::vector<Tensor>& predictor_state, const Tensor& predictor_output,
                   const Tensor& times, const Tensor& symbols, const Tensor& tokens, const Tensor& frames,
                   const Tensor& token_durations, const Tensor& log_probs, const Tensor& counts,
                   const Tensor& active, const std::vector<Tensor>& workspace, int64_t condition);

std::vector<Tensor> save_rows(const std::vector<Tensor>& state, const std::vector<int64_t>& batch_dims,
                              const Tensor& times, const Tensor& row_lengths, const Tensor& decoded_lengths,
                              int64_t batch);

Tensor pack_labels(const Tensor& tokens, const Tensor& frames, const Tensor& token_durations,
                   const Tensor& log_probs, const Tensor& counts, const Tensor& lengths,
                   const Tensor& decoded_lengths, int64_t room);

}  // namespace rnnt_fastdecode::cpu
