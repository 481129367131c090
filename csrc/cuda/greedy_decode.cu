// greedy_decode on CUDA: puts everything of a call on the stream at once, and waits for nothing.
//
// Until the resident kernel is on its way the device has little to do, so every microsecond of that part is
// one of the call; what comes behind it is hidden by the kernel.

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include "../decode_arguments.h"
#include "../projection.h"
#include "encoder_projection.cuh"
#include "host_pages.h"
#include "pack_labels.cuh"
#include "resident_bindings.h"
#include "state_rows.cuh"

namespace rnnt_fastdecode {
namespace {

constexpr MatrixProducts kProducts{aoti_torch_cuda_mm_out, aoti_torch_cuda_addmm_out};
constexpr int64_t kRecord = sizeof(int4) / sizeof(int);

// What the kernels of one call share, in one piece of memory.
struct CallMemory {
  CallMemory(const Tensor& next_to, int64_t batch, int64_t room, int64_t encoder_bytes,
             int64_t scratch_bytes) {
    const int64_t counter_bytes = padded_bytes(4 * batch * sizeof(int)),
                  table_bytes = padded_bytes(4 * room * sizeof(int));
    bytes = new_tensor(next_to, {counter_bytes + table_bytes + padded_bytes(encoder_bytes) + scratch_bytes},
                       ScalarType::Byte);
    auto* const base = static_cast<unsigned char*>(bytes.mutable_data_ptr());
    int* const counters = reinterpret_cast<int*>(base);
    row_lengths = counters, times = counters + batch, symbols = counters + 2 * batch,
    counts = counters + 3 * batch;
    int* const tables = reinterpret_cast<int*>(base + counter_bytes);
    tokens = tables, frames = tables + room, token_durations = tables + 2 * room;
    log_probs = reinterpret_cast<float*>(tables + 3 * room);
    encoder = base + counter_bytes + table_bytes;
    scratch = encoder + padded_bytes(encoder_bytes);
  }

  Tensor bytes;
  int *row_lengths, *times, *symbols, *counts;  // [B]
  int *tokens, *frames, *token_durations;       // [B, C]
  float* log_probs;                             // [B, C]
  unsigned char *encoder, *scratch;
};

// A call out of its arguments, all of them checked.
struct Call {
  const CallContext& context;
  const DecodeSizes& sizes;
  const Network& network;
  const Tensor& block;  // of the network
  const Tensor& encoder_output;
  const Tensor& lengths;
  const std::vector<Tensor>& state;

  bool wide_lengths() const { return lengths.scalar_type() == ScalarType::Long; }
  bool begins() const { return state.empty(); }
  // time_jumps or decoded_lengths, the last two of a state, and whether it is one for all rows.
  const void* counter(size_t back) const {
    return begins() ? (network.start.end() - back)->in(block) : (state.end() - back)->const_data_ptr();
  }
  bool one_counter(size_t back) const { return begins() or (state.end() - back)->size(0) == 1; }
};

cuda::LoadProblem load_problem(const Call& call, const std::vector<Tensor>& carried,
                               const CallMemory& memory) {
  const int batch = static_cast<int>(call.sizes.joint.batch);
  cuda::LoadProblem problem{.state = {.part = {}, .count = static_cast<int>(carried.size()), .batch = batch},
                            .lengths = call.lengths.const_data_ptr(),
                            .wide_lengths = call.wide_lengths(),
                            .time_jumps = static_cast<const int*>(call.counter(2)),
                            .one_time_jump = call.one_counter(2),
                            .frames = static_cast<int>(call.sizes.joint.frames),
                            .rows = batch,
                            .row_lengths = memory.row_lengths,
                            .times = memory.times,
                            .symbols = memory.symbols,
                            .counts = memory.counts};
  for (size_t i = 0; i < carried.size(); ++i) {
    StatePart& part = problem.state.part[i];
    part =
        state_part(call.begins() ? carried[i] : call.state[i], carried[i], call.sizes.carried[i].batch_dim);
    if (call.begins()) {
      part.from = call.network.start[i].in(call.block);
      part.from_rows = 1;
    }
  }
  return problem;
}

cuda::EncoderProjection projection_of(const Call& call) {
  return {.frames = call.encoder_output.const_data_ptr(),
          .weight = call.network.encoder_weight.in(call.block),
          .bias = call.network.encoder_bias.in(call.block),
          .output = nullptr,
          .rows = call.sizes.joint.batch * call.sizes.joint.frames,
          .width = static_cast<int>(call.network.encoder_width),
          .output_width = static_cast<int>(call.sizes.joint.joint_width)};
}

bool is_own(const cuda::EncoderProjection& projection, ScalarType dtype) {
  bool own = false;
  dispatch(dtype, [&]<typename T>(T) { own = cuda::projection_supports<T>(projection); });
  return own;
}

cuda::JointProblem joint_of(const Call& call, int64_t window) {
  return joint_problem(call.sizes.joint, nullptr, nullptr, call.network.weight.in(call.block),
                       call.network.bias.in(call.block), nullptr, nullptr, window);
}

void give_memory(cuda::GreedyProblem& greedy, const CallMemory& memory) {
  greedy.joint.times = memory.times;
  greedy.joint.lengths = memory.row_lengths;
  greedy.times = memory.times;
  greedy.symbols = memory.symbols;
  greedy.tokens = memory.tokens;
  greedy.frames = memory.frames;
  greedy.token_durations = memory.token_durations;
  greedy.log_probs = memory.log_probs;
  greedy.counts = memory.counts;
}

// Ends the new state with time_jumps and decoded_lengths; host_labels get the first records.
Tensor pack(const Call& call, const CallMemory& memory, const Tensor& host_labels,
            std::vector<Tensor>& new_state, cudaStream_t stream) {
  const DecodeSizes& sizes = call.sizes;
  const char* const op = call.context.op;
  const int64_t batch = sizes.joint.batch, host_records = host_labels.size(0);
  const Tensor labels = new_tensor(call.lengths, {batch + sizes.room, kRecord}, ScalarType::Int);
  new_state.push_back(new_tensor(call.lengths, {batch}, ScalarType::Int));
  new_state.push_back(new_tensor(call.lengths, {batch}, ScalarType::Long));
  if (batch > 0) {
    const cuda::PackProblem problem{
        .tokens = memory.tokens,
        .frames = memory.frames,
        .token_durations = memory.token_durations,
        .log_probs = memory.log_probs,
        .counts = memory.counts,
        .lengths = call.lengths.const_data_ptr(),
        .wide_lengths = call.wide_lengths(),
        .decoded_lengths = static_cast<const int64_t*>(call.counter(1)),
        .one_decoded_length = call.one_counter(1),
        .batch = static_cast<int>(batch),
        .capacity = static_cast<int>(sizes.capacity),
        .room = static_cast<int>(sizes.room),
        .packed = reinterpret_cast<int4*>(mutable_ints(labels)),
        .host = host_records > 0 ? static_cast<int4*>(device_pointer(op, host_labels)) : nullptr,
        .host_records = static_cast<int>(host_records),
        .ends = {.times = memory.times,
                 .row_lengths = memory.row_lengths,
                 .time_jumps = mutable_ints(new_state[new_state.size() - 2]),
                 .decoded = static_cast<int64_t*>(new_state.back().mutable_data_ptr())}};
    check_cuda(op, cuda::launch_pack_labels(problem, stream));
    if (host_records > 0) keep_until_written(op, host_labels, stream);
  }
  return labels;
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> greedy_decode(
    const Tensor& encoder_output, const Tensor& lengths, const std::vector<Tensor>& state, int64_t window,
    const Tensor& block, const std::vector<int64_t>& numbers, int64_t host_records) {
  const CallContext context{"greedy_decode", encoder_output.device()};
  const Network network = read_network(context, block, numbers);
  const DecodeSizes sizes = check_greedy_decode(context, encoder_output, lengths, state, window, network);
  check_host_records(context, host_records, sizes);
  const Call call{context, sizes, network, block, encoder_output, lengths, state};
  check(network.predictor.kind != PredictorKind::kGru, context.op,
        ": a network with a GRU has no resident kernel on CUDA.");
  check_alignment(context, "network", block.const_data_ptr());
  const ScalarType dtype = sizes.joint.dtype;
  cuda::GreedyProblem greedy = greedy_problem(context, joint_of(call, window), sizes.capacity,
                                              network.blank_id, network.durations, network.max_symbols);
  const bool runs = greedy.joint.batch > 0 and greedy.joint.frames > 0;
  const Launches& launches = launches_for(sizes.predictor, greedy.joint, encoder_output.get_device_index());
  check(not runs or launches.scratch_bytes > 0, context.op,
        ": these weights do not fit the resident kernel; see greedy_resident_bytes.");

  // The memory is this call's alone and goes back in the order of the stream, whatever happens here.
  const Launch launch(encoder_output);
  std::vector<Tensor> new_state = new_carried(sizes, encoder_output);
  cuda::EncoderProjection projection = projection_of(call);
  const bool own_projection = runs and is_own(projection, dtype);
  const int64_t encoder_bytes = projection.rows * projection.output_width * element_bytes(dtype);
  const CallMemory memory(encoder_output, sizes.joint.batch, sizes.room, own_projection ? encoder_bytes : 0,
                          launches.scratch_bytes);
  const cuda::LoadProblem load = load_problem(call, new_state, memory);
  Tensor projected;
  if (own_projection) {
    greedy.joint.encoder = projection.output = memory.encoder;
    dispatch(dtype, [&]<typename T>(T) {
      check_cuda(context.op, cuda::launch_load_and_project<T>(load, projection, launch.stream));
    });
  } else if (sizes.joint.batch > 0) {
    check_cuda(context.op, cuda::launch_load_rows(load, launch.stream));
    projected = project_frames(kProducts, encoder_output, network.encoder_weight.tensor(block),
                               network.encoder_bias.optional_tensor(block));
    greedy.joint.encoder = projected.const_data_ptr();
  }
  if (runs) {
    give_memory(greedy, memory);
    const ResidentConstants constants =
        resident_constants(sizes.predictor.kind, network.gate_table.in(block),
                           [&](size_t i) { return network.predictor_weights[i].in(block); });
    cuda::ResidentProblem problem =
        resident_problem(sizes.predictor, greedy, constants, new_state, new_state.back());
    problem.scratch = memory.scratch;
    launch_rows(context, launches, problem, dtype, launch.stream);
  }
  const Tensor host_labels = new_page(host_records, kRecord);
  const Tensor labels = pack(call, memory, host_labels, new_state, launch.stream);
  return {labels, host_labels, new_state};
}

}  // namespace
}  // namespace rnnt_fastdecode

STABLE_TORCH_LIBRARY_IMPL(rnnt_fastdecode, CUDA, m) {
  m.impl("greedy_decode", TORCH_BOX(&rnnt_fastdecode::greedy_decode));
}
