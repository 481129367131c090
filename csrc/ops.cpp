// The schema of every op of rnnt_fastdecode. Kernels are registered beside their code: cpu/*.cpp and
// cuda/*.cu.
//
// Letters: B batch, T encoder frames, V vocabulary with blank, N number of durations, J joint width, H
// predictor width, W window of frames, C capacity, S slots, L predictor layers. "dtype" is float32, bfloat16
// or float16 and is the same for every floating point tensor of a call unless said otherwise; integer tensors
// are int32. Tensors are contiguous, except that encoder may have any stride along B. The full meaning, with
// shapes, units and errors, stands in rnnt_fastdecode/ops.py; the specification as plain PyTorch in
// rnnt_fastdecode/reference/.

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
  // float32 [L,B,H], next_hidden [L,B,H] scratch). kind "stateless" or "stateless_relu": weights (tables
  // [C,V,H], projection, projection_bias), state (context int32 [B,C-1], most recent label first). output
  // [B,J] is the projected output.
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
  // decides; [] and 0 elsewhere.
  m.def(
      "greedy_rounds_(Tensor encoder, Tensor lengths, Tensor weight, Tensor? bias, str activation, int "
      "blank_id, "
      "int[] durations, int max_symbols, int window, int rounds, str predictor_kind, Tensor[] "
      "predictor_weights, "
      "Tensor(a!)[] predictor_state, Tensor(b!) predictor_output, Tensor(c!) times, Tensor(d!) symbols, "
      "Tensor(e!) tokens, Tensor(f!) frames, Tensor(g!) token_durations, Tensor(h!) log_probs, Tensor(i!) "
      "counts, "
      "Tensor(j!) active, Tensor(k!)[] workspace, int condition=0) -> ()");

  // Names of the CPU kernels that this machine can run: first those in use, then the others, the best first.
  m.def("cpu_kernels() -> str[]");
}
