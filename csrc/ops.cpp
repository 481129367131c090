// The schema of every op of rnnt_fastdecode. Kernels are registered beside their code: cpu/*.cpp and
// cuda/*.cu.
//
// Letters: B batch, T encoder frames, V vocabulary with blank, N number of durations, J joint width, H
// predictor width, W window of frames, C capacity, R rows of the loop's buffers, S slots, L predictor layers.
// "dtype" is float32, bfloat16 or float16 and is the same for every floating point tensor of a call unless
// said otherwise; integer tensors are int32. Tensors are contiguous, except that encoder may have any stride
// along B. The full meaning, with shapes, units and errors, stands in rnnt_fastdecode/ops.py
// and loop_ops.py; the specification as plain PyTorch in rnnt_fastdecode/reference/.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(rnnt_fastdecode, m) {
  // Joint network and argmax over the next W frames of every row, for tokens and durations, without the
  // logits ever reaching memory. encoder [B,T,J] and predictor [B,J] are projected already. Returns tokens
  // int32, durations int32 (an index, not a number of frames) and log_probs float32, all [B,W]; frames
  // outside a row get -1, 0 and 0.
  m.def(
      "joint_argmax(Tensor encoder, Tensor predictor, Tensor weight, Tensor? bias, Tensor times, Tensor "
      "lengths, "
      "int window, int num_durations, str activation) -> (Tensor tokens, Tensor durations, Tensor "
      "log_probs)");

  // One predictor step for every row whose label is not -1. kind "lstm": weights (embedding [V,H], weight
  // [L,4H,2H], bias float32 [L,4H], projection [J,H], projection_bias [J]), state (hidden [L,B,H], cell
  // float32 [L,B,H], next_hidden [L,B,H] scratch). kind "gru": weights (embedding, weight [L,2,3H,H] for the
  // input and for the hidden state, bias float32 [L,2,3H], projection, projection_bias), state (hidden,
  // next_hidden scratch). kind "stateless" or "stateless_relu": weights (tables [C,V,H], projection,
  // projection_bias), state (context int32 [B,C-1], most recent label first). output [B,J] is the projected
  // output.
  m.def(
      "predictor_step_(str kind, Tensor[] weights, Tensor labels, Tensor(a!)[] state, Tensor(b!) output) -> "
      "()");

  // Writes the valid frames of keys and values [B,T,heads,dk] into the ring buffers of their slots, key_cache
  // and value_cache [S,heads,C,dk]. positions [S] counts the frames that a slot has seen before; the caller
  // advances it.
  m.def(
      "kv_cache_update_(Tensor keys, Tensor values, Tensor lengths, Tensor slots, Tensor positions, "
      "Tensor(a!) key_cache, Tensor(b!) value_cache) -> ()");

  // Up to `rounds` rounds (-1: until every row is done) of the greedy loop: a window of joint_argmax, the
  // walk to the first label, its storage, a predictor step. Every row advances on its own. durations [] is
  // RNN-T, else TDT. active [1] gets the number of rows that still have frames and room. workspace and
  // condition are the CUDA kernel's: scratch memory and the handle of the conditional graph node that active
  // decides; [] and 0 elsewhere. On CUDA -1 is one resident kernel; its workspace is (gate_table float32
  // [V,H,4], or empty for a stateless predictor; scratch uint8 of greedy_resident_bytes).
  m.def(
      "greedy_rounds_(Tensor encoder, Tensor lengths, Tensor weight, Tensor? bias, str activation, int "
      "blank_id, "
      "int[] durations, int max_symbols, int window, int rounds, str predictor_kind, Tensor[] "
      "predictor_weights, "
      "Tensor(a!)[] predictor_state, Tensor(b!) predictor_output, Tensor(c!) times, Tensor(d!) symbols, "
      "Tensor(e!) tokens, Tensor(f!) frames, Tensor(g!) token_durations, Tensor(h!) log_probs, Tensor(i!) "
      "counts, "
      "Tensor(j!) active, Tensor(k!)[] workspace, int condition=0) -> ()");

  // The constants of greedy_decode copied into one block of memory, whose layout stands in network.h. weight
  // to predictor_weights are as for greedy_rounds_, gate_table float32 [V,H,4] is what each label adds to the
  // gates of an LSTM's first layer, start is the state of one utterance that has not begun.
  m.def(
      "pack_network(Tensor encoder_weight, Tensor? encoder_bias, Tensor weight, Tensor? bias, int "
      "num_durations, str predictor_kind, Tensor[] predictor_weights, Tensor? gate_table, Tensor[] start) -> "
      "Tensor");

  // The whole of a call: the joint's encoder projection of encoder_output [B,T,D], load_rows_, greedy_rounds_
  // to the end of every row, save_rows and pack_labels with room for all. On CUDA by the resident kernel.
  // network is from pack_network, numbers say what is in it: see network.h. state is that of the predictor
  // without scratch, then output [B,J], time_jumps [B] and decoded_lengths int64 [B], each of B rows or of
  // one that all rows start from; [] is the start of an utterance. Returns pack_labels' tensor and the new
  // state. host_labels [host_records,4] are the first records of that tensor, in page-locked memory of the
  // host; 0 for none.
  m.def(
      "greedy_decode(Tensor encoder_output, Tensor lengths, Tensor[] state, int window, Tensor network, "
      "int[] numbers, int host_records=0) -> (Tensor labels, Tensor host_labels, Tensor[] new_state)");

  // Before the loop: puts B utterances into the first of the loop's R rows; the other rows get no frames.
  // lengths [B] (int32 or int64) are limited to 0 .. frames. time_jumps and every tensor of given have B
  // rows, or one that all rows get; given[i] goes to state[i], whose rows lie along batch_dims[i].
  m.def(
      "load_rows_(Tensor lengths, Tensor time_jumps, Tensor[] given, int[] batch_dims, int frames, "
      "Tensor(a!) row_lengths, Tensor(b!) times, Tensor(c!) symbols, Tensor(d!) counts, Tensor(e!)[] state) "
      "-> ()");

  // After the loop: copies of the first `batch` rows of each state tensor, then time_jumps int32 [B], the
  // frames by which times lie beyond row_lengths, and decoded_lengths int64 [B] with row_lengths added.
  m.def(
      "save_rows(Tensor[] state, int[] batch_dims, Tensor times, Tensor row_lengths, Tensor decoded_lengths, "
      "int batch) -> Tensor[]");

  // The labels of the first B rows of the tables [R,C], one row after the other. Returns int32 [B + room, 4]:
  // for each row where its labels begin, how many there are, the sum of their log-probabilities and its
  // length as given; then for each label token, frame with decoded_lengths added, duration, log-probability.
  // Float32 values keep their bits.
  m.def(
      "pack_labels(Tensor tokens, Tensor frames, Tensor token_durations, Tensor log_probs, Tensor counts, "
      "Tensor lengths, Tensor decoded_lengths, int room) -> Tensor");

  // Scratch memory of the resident kernel in bytes; 0 where it cannot run: on a CPU, for a GRU, or
  // because the weights (V + N rows of joint weight, the predictor's) do not fit the device's shared memory.
  m.def(
      "greedy_resident_bytes(Tensor weight, str predictor_kind, Tensor[] predictor_weights, int batch, int "
      "num_durations, int window) -> int");

  // Names of the CPU kernels that this machine can run: first those in use, then the others, the best first.
  m.def("cpu_kernels() -> str[]");
}
