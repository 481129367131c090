// The arguments of the ops around the greedy loop, checked before any work: load_rows_, save_rows and
// pack_labels. As in arguments.h, values inside tensors are not looked at.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "state_rows.h"

namespace rnnt_fastdecode {

template <typename Item>
int64_t count_of(const std::vector<Item>& items) {
  return static_cast<int64_t>(items.size());
}

// lengths of a call: int32 or int64, as callers have them.
inline void check_lengths(const CallContext& call, const Tensor& lengths) {
  call.dims("lengths", lengths, 1, "[B]");
  const ScalarType dtype = lengths.scalar_type();
  check(dtype == ScalarType::Int or dtype == ScalarType::Long, call.op,
        ": lengths must be int32 or int64, got ", dtype_name(dtype), ".");
  call.tensor("lengths", lengths, dtype, {lengths.size(0)});
}

// [B], or [1] for all rows.
inline void check_per_row(const CallContext& call, const char* name, const Tensor& value, ScalarType dtype,
                          int64_t batch) {
  call.dims(name, value, 1, "[B]");
  call.tensor(name, value, dtype, {value.size(0) == 1 ? 1 : batch});
}

// Rows along `dim` of a tensor as rows of another.
inline StatePart state_part(const Tensor& from, const Tensor& to, int64_t dim) {
  StatePart part{from.const_data_ptr(), to.mutable_data_ptr(), 1,
                 from.size(dim),        to.size(dim),          static_cast<int64_t>(from.element_size())};
  for (int64_t d = 0; d < dim; ++d) part.outer *= from.size(d);
  for (int64_t d = dim + 1; d < from.dim(); ++d) part.row_bytes *= from.size(d);
  return part;
}

// The first `batch` rows of each tensor of `from` as rows of `to`; both are contiguous and differ in their
// number of rows only.
inline std::vector<StatePart> check_state_parts(const CallContext& call, const char* from_name,
                                                const std::vector<Tensor>& from, const char* to_name,
                                                const std::vector<Tensor>& to,
                                                const std::vector<int64_t>& batch_dims, int64_t batch) {
  check(from.size() == to.size() and from.size() == batch_dims.size(), call.op, ": ", from_name, ", ",
        to_name, " and batch_dims must be equally many, got ", count_of(from), ", ", count_of(to), " and ",
        count_of(batch_dims), ".");
  std::vector<StatePart> parts;
  for (size_t i = 0; i < from.size(); ++i) {
    const Tensor &source = from[i], &target = to[i];
    const int64_t dim = batch_dims[i];
    bool alike = dim >= 0 and dim < source.dim() and source.dim() == target.dim();
    for (int64_t d = 0; alike and d < source.dim(); ++d) {
      alike = d == dim or source.size(d) == target.size(d);
    }
    check(alike, call.op, ": ", from_name, "[", i, "] and ", to_name, "[", i, "] must differ in dimension ",
          dim, " only, got shapes ", shape_of(source), " and ", shape_of(target), ".");
    const StatePart part = state_part(source, target, dim);
    check(part.to_rows >= batch, call.op, ": ", to_name, "[", i, "] must have room for ", batch,
          " rows, got ", part.to_rows, ".");
    check(source.scalar_type() == target.scalar_type(), call.op, ": ", from_name, "[", i, "] must be ",
          dtype_name(target.scalar_type()), ", got ", dtype_name(source.scalar_type()), ".");
    for (const auto& [name, tensor] : {std::pair{from_name, &source}, std::pair{to_name, &target}}) {
      check(tensor->device() == call.device, call.op, ": ", name, "[", i, "] must be on ", call.device,
            ", got ", tensor->device(), ".");
      check(tensor->is_contiguous(), call.op, ": ", name, "[", i, "] must be contiguous.");
    }
    parts.push_back(part);
  }
  return parts;
}

struct LoadSizes {
  int64_t batch, rows;
  std::vector<StatePart> parts;
};

inline LoadSizes check_load_rows(const Tensor& lengths, const Tensor& time_jumps,
                                 const std::vector<Tensor>& given, const std::vector<int64_t>& batch_dims,
                                 int64_t frames, const Tensor& row_lengths, const Tensor& times,
                                 const Tensor& symbols, const Tensor& counts,
                                 const std::vector<Tensor>& state) {
  const CallContext call{"load_rows_", row_lengths.device()};
  check_lengths(call, lengths);
  const int64_t batch = lengths.size(0);
  check_per_row(call, "time_jumps", time_jumps, ScalarType::Int, batch);
  check(frames >= 0 and frames <= INT32_MAX, call.op, ": frames must be between 0 and ", int64_t{INT32_MAX},
        ", got ", frames, ".");
  call.dims("row_lengths", row_lengths, 1, "[R]");
  const int64_t rows = row_lengths.size(0);
  check(rows >= batch, call.op, ": row_lengths must have room for ", batch, " rows, got ", rows, ".");
  call.tensor("row_lengths", row_lengths, ScalarType::Int, {rows});
  call.tensor("times", times, ScalarType::Int, {rows});
  call.tensor("symbols", symbols, ScalarType::Int, {rows});
  call.tensor("counts", counts, ScalarType::Int, {rows});
  const auto parts = check_state_parts(call, "given", given, "state", state, batch_dims, batch);
  for (const StatePart& part : parts) {
    check(part.from_rows == 1 or part.from_rows == batch, call.op, ": given must hold ", batch,
          " rows, or one for all, got ", part.from_rows, ".");
  }
  return {batch, rows, parts};
}

struct SavedRows {
  std::vector<Tensor> tensors;  // copies of the state, then time_jumps and decoded_lengths; not yet filled
  std::vector<StatePart> parts;
};

inline SavedRows check_save_rows(const std::vector<Tensor>& state, const std::vector<int64_t>& batch_dims,
                                 const Tensor& times, const Tensor& row_lengths,
                                 const Tensor& decoded_lengths, int64_t batch) {
  const CallContext call{"save_rows", times.device()};
  call.dims("times", times, 1, "[R]");
  const int64_t rows = times.size(0);
  check(batch >= 0 and batch <= rows, call.op, ": batch must be between 0 and ", rows, ", got ", batch, ".");
  call.tensor("times", times, ScalarType::Int, {rows});
  call.tensor("row_lengths", row_lengths, ScalarType::Int, {rows});
  check_per_row(call, "decoded_lengths", decoded_lengths, ScalarType::Long, batch);
  check(state.size() == batch_dims.size(), call.op, ": state and batch_dims must be equally many, got ",
        count_of(state), " and ", count_of(batch_dims), ".");
  SavedRows saved;
  for (size_t i = 0; i < state.size(); ++i) {
    const int64_t dim = batch_dims[i];
    check(dim >= 0 and dim < state[i].dim(), call.op,
          ": batch_dims must name a dimension of each state, got ", dim, " for shape ", shape_of(state[i]),
          ".");
    check(state[i].size(dim) >= batch, call.op, ": state[", i, "] must hold at least ", batch, " rows, got ",
          state[i].size(dim), ".");
    std::vector<int64_t> shape(state[i].sizes().begin(), state[i].sizes().end());
    shape[dim] = batch;
    saved.tensors.push_back(new_tensor(state[i], shape, state[i].scalar_type()));
  }
  saved.parts = check_state_parts(call, "state", state, "copy", saved.tensors, batch_dims, batch);
  saved.tensors.push_back(new_tensor(times, {batch}, ScalarType::Int));
  saved.tensors.push_back(new_tensor(times, {batch}, ScalarType::Long));
  return saved;
}

struct PackSizes {
  int64_t batch, capacity, room;
};

inline PackSizes check_pack_labels(const Tensor& tokens, const Tensor& frames, const Tensor& token_durations,
                                   const Tensor& log_probs, const Tensor& counts, const Tensor& lengths,
                                   const Tensor& decoded_lengths, int64_t room) {
  const CallContext call{"pack_labels", tokens.device()};
  call.dims("tokens", tokens, 2, "[R, C]");
  const int64_t rows = tokens.size(0), capacity = tokens.size(1);
  call.tensor("tokens", tokens, ScalarType::Int, {rows, capacity});
  call.tensor("frames", frames, ScalarType::Int, {rows, capacity});
  call.tensor("token_durations", token_durations, ScalarType::Int, {rows, capacity});
  call.tensor("log_probs", log_probs, ScalarType::Float, {rows, capacity});
  call.tensor("counts", counts, ScalarType::Int, {rows});
  check_lengths(call, lengths);
  const int64_t batch = lengths.size(0);
  check(batch <= rows, call.op, ": lengths must be of at most ", rows, " rows, as tokens has, got ", batch,
        ".");
  check_per_row(call, "decoded_lengths", decoded_lengths, ScalarType::Long, batch);
  check(room >= 0 and room <= INT32_MAX, call.op, ": room must be between 0 and ", int64_t{INT32_MAX},
        " labels, got ", room, ".");
  return {batch, capacity, room};
}

}  // namespace rnnt_fastdecode
