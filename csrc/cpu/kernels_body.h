// The kernels in terms of lanes. A file that includes this has defined, for its instruction set and in a
// namespace of its own:
// - Floats and Ints: vectors of kLanes floats and of as many 32-bit integers, with the compiler's operators
// - kTileRows: rows whose sums fit the registers beside four columns
// - load and widen: kLanes numbers from memory as Floats; store and narrow: back, rounded to nearest even
// - multiply_add(a, b, c): a * b + c
// - sum4(a, b, c, d): the sums over each of four Floats, all in one order, as a Quad
// No include guard: each of these files gets its own copy.

// ---- matrix products -------------------------------------------------------------------------------------

// What a tile multiplies: activations in float32 and weights widened to it.
template <typename T>
struct Widened {
  using Operand = float;
  using Weight = T;
  static constexpr int kStep = kLanes;
  static Floats operand(const float* p) { return load(p); }
  static Floats weight(const T* p) { return widen(p); }
  static Floats multiply(Floats x, Floats w, Floats sum) { return multiply_add(x, w, sum); }
};

// The last numbers of a row, followed by zeros.
template <int kCount, typename T>
struct Tail {
  T values[kCount] = {};
  Tail(const T* p, int64_t count) {
    for (int64_t i = 0; i < count; ++i) values[i] = p[i];
  }
};

// The same of several rows.
template <int kRows, int kCount, typename T>
struct Tails {
  T values[kRows * kCount] = {};
  __attribute__((noinline)) Tails(const T* p, int64_t stride, int64_t count) {
    for (int r = 0; r < kRows; ++r) {
      for (int64_t i = 0; i < count; ++i) values[r * kCount + i] = p[r * stride + i];
    }
  }
};

// One step along depth. Weights come from far away: each is loaded once for all rows of the tile.
template <typename Pair, int kRows, int kColumns>
inline __attribute__((always_inline)) void dot_step(const typename Pair::Operand* x, int64_t x_stride,
                                                    const typename Pair::Weight* weight,
                                                    int64_t weight_stride, Floats (&sums)[kRows][kColumns]) {
  decltype(Pair::operand(x)) values[kRows];
  RNNT_FASTDECODE_UNROLL
  for (int r = 0; r < kRows; ++r) values[r] = Pair::operand(x + r * x_stride);
  RNNT_FASTDECODE_UNROLL
  for (int n = 0; n < kColumns; ++n) {
    const auto w = Pair::weight(weight + n * weight_stride);
    RNNT_FASTDECODE_UNROLL
    for (int r = 0; r < kRows; ++r) sums[r][n] = Pair::multiply(values[r], w, sums[r][n]);
  }
}

// Where there are few lanes each adds up many numbers, and its rounding errors grow: sums are then taken over
// this many steps at a time.
constexpr int64_t kStepsPerSum = kLanes < 8 ? 64 : INT64_MAX;

// Sums over depth for kRows x kColumns pairs of rows.
template <typename Pair, int kRows, int kColumns>
void dot_tile(const typename Pair::Operand* x, const typename Pair::Weight* weight, int64_t depth,
              const typename Pair::Weight* ahead, int ahead_rows, const float* bias, float* out,
              int64_t out_stride) {
  constexpr int kStep = Pair::kStep;
  Floats sums[kRows][kColumns] = {};
  int64_t k = 0;
  const auto add_steps = [&](int64_t end, Floats(&to)[kRows][kColumns]) {
    for (; k + kStep <= end; k += kStep) {
      if (ahead_rows > 0) __builtin_prefetch(ahead + k);
      if (ahead_rows > 1) __builtin_prefetch(ahead + depth + k);
      dot_step<Pair>(x + k, depth, weight + k, depth, to);
    }
  };
  if constexpr (kStepsPerSum < INT64_MAX) {
    while (k + kStep <= depth) {
      Floats parts[kRows][kColumns] = {};
      add_steps(depth - k > kStepsPerSum * kStep ? k + kStepsPerSum * kStep : depth, parts);
      for (int r = 0; r < kRows; ++r) {
        for (int n = 0; n < kColumns; ++n) sums[r][n] += parts[r][n];
      }
    }
  } else {
    add_steps(depth, sums);
  }
  if (k < depth) {
    const Tails<kRows, kStep, typename Pair::Operand> values(x + k, depth, depth - k);
    const Tails<kColumns, kStep, typename Pair::Weight> weights(weight + k, depth, depth - k);
    dot_step<Pair>(values.values, kStep, weights.values, kStep, sums);
  }
  RNNT_FASTDECODE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const Quad total = sum4(sums[r][0], sums[r][1 % kColumns], sums[r][2 % kColumns], sums[r][3 % kColumns]);
    RNNT_FASTDECODE_UNROLL
    for (int n = 0; n < kColumns; ++n) out[r * out_stride + n] = bias ? total[n] + bias[n] : total[n];
  }
}

template <typename Pair, int kRows>
inline void dot_columns(const typename Pair::Operand* x, const typename Pair::Weight* weight, int64_t columns,
                        int64_t depth, const typename Pair::Weight* ahead, int ahead_rows, const float* bias,
                        float* out, int64_t out_stride) {
  if (columns == 4) {
    dot_tile<Pair, kRows, 4>(x, weight, depth, ahead, ahead_rows, bias, out, out_stride);
  } else {
    for (int64_t n = 0; n < columns; ++n) {
      dot_tile<Pair, kRows, 1>(x, weight + n * depth, depth, nullptr, 0, bias ? bias + n : nullptr, out + n,
                               out_stride);
    }
  }
}

// Four columns at a time, which stay in the nearest cache while all rows pass. Rows are cut into tiles of as
// equal heights as can be.
template <typename Pair>
void dot_block(const typename Pair::Operand* x, int64_t rows, const typename Pair::Weight* weight,
               int64_t columns, int64_t depth, const float* bias, float* out, int64_t out_stride) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t n = 0; n < columns; n += 4) {
    const int64_t width = columns - n < 4 ? columns - n : 4;
    int64_t row = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t height = (rows * (tile + 1)) / tiles - row;
      const auto* in = x + row * depth;
      const auto* w = weight + n * depth;
      const float* b = bias ? bias + n : nullptr;
      float* to = out + row * out_stride + n;
      const auto* ahead = w;
      int ahead_rows = 0;
      if (tiles > 1 and n + 8 <= columns) {
        const int64_t begin = tile * 4 / tiles, end = (tile + 1) * 4 / tiles;
        ahead = w + (4 + begin) * depth;
        ahead_rows = end - begin;
      }
      if constexpr (kTileRows >= 6) {
        if (height == 6) dot_columns<Pair, 6>(in, w, width, depth, ahead, ahead_rows, b, to, out_stride);
        if (height == 5) dot_columns<Pair, 5>(in, w, width, depth, ahead, ahead_rows, b, to, out_stride);
        if (height == 4) dot_columns<Pair, 4>(in, w, width, depth, ahead, ahead_rows, b, to, out_stride);
      }
      if (height == 3) dot_columns<Pair, 3>(in, w, width, depth, ahead, ahead_rows, b, to, out_stride);
      if (height == 2) dot_columns<Pair, 2>(in, w, width, depth, ahead, ahead_rows, b, to, out_stride);
      if (height == 1) dot_columns<Pair, 1>(in, w, width, depth, ahead, ahead_rows, b, to, out_stride);
      row += height;
    }
  }
}

// ---- functions of one number -----------------------------------------------------------------------------

inline Ints bits_of(Floats x) { return reinterpret_cast<Ints>(x); }
inline Floats floats_of(Ints x) { return reinterpret_cast<Floats>(x); }
inline Floats all(float x) { return x - Floats{}; }

// 2^n e^r for x = n ln 2 + r, |r| <= ln 2 / 2, within 2 units in the last place. Beyond +-87 the result stays
// what it is there, a number near either end of the normal range.
inline Floats exponential(Floats x) {
  constexpr float kRound = 0x1.8p23f;  // added to a number, leaves the nearest integer in the low bits
  x = x > all(87.0f) ? all(87.0f) : x;
  x = x < all(-87.0f) ? all(-87.0f) : x;
  const Floats shifted = multiply_add(x, all(0x1.715476p0f), all(kRound));
  const Floats n = shifted - all(kRound);
  Floats r = multiply_add(n, all(-0x1.62e4p-1f), x);  // ln 2 in two parts: n times the first is exact
  r = multiply_add(n, all(-0x1.7f7d1cp-20f), r);
  // e^r = 1 + r + r^2 q(r), minimax
  Floats q = multiply_add(all(0x1.6a243ap-10f), r, all(0x1.1239e0p-7f));
  q = multiply_add(q, r, all(0x1.5558f2p-5f));
  q = multiply_add(q, r, all(0x1.555492p-3f));
  q = multiply_add(q, r, all(0x1.fffffcp-2f));
  const Floats fraction = multiply_add(r * r, q, r) + all(1.0f);
  return fraction * floats_of((bits_of(shifted) << 23) + (127 << 23));
}

inline Floats sigmoid_of(Floats x) { return all(1.0f) / (all(1.0f) + exponential(-x)); }

inline Floats tanh_of(Floats x) {
  const Ints sign = bits_of(x) & static_cast<int32_t>(0x80000000);
  const Floats magnitude = floats_of(bits_of(x) ^ sign);
  const Floats far = all(1.0f) - all(2.0f) / (exponential(magnitude + magnitude) + all(1.0f));
  // x + x^3 p(x^2), minimax up to 0.625
  const Floats square = x * x;
  Floats p = multiply_add(square, all(-0x1.75e07ap-8f), all(0x1.522658p-6f));
  p = multiply_add(p, square, all(-0x1.b83c50p-5f));
  p = multiply_add(p, square, all(0x1.110726p-3f));
  p = multiply_add(p, square, all(-0x1.555532p-2f));
  const Floats near = multiply_add(x * square, p, x);
  return magnitude < all(0.625f) ? near : floats_of(bits_of(far) | sign);
}

// ---- rows of numbers -------------------------------------------------------------------------------------

// out[i] = Map::of(in[i]); the last numbers go by way of buffers of kLanes.
template <typename Map, typename In, typename Out>
void map_row(const In* in, int64_t count, Out* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Map::of(in + i, out + i);
  if (i < count) {
    const Tail<kLanes, In> rest(in + i, count - i);
    Out results[kLanes];
    Map::of(rest.values, results);
    for (int64_t k = 0; i + k < count; ++k) out[i + k] = results[k];
  }
}

struct Widen {
  template <typename T>
  static void of(const T* in, float* out) {
    store(out, widen(in));
  }
};
struct Narrow {
  template <typename T>
  static void of(const float* in, T* out) {
    narrow(load(in), out);
  }
};
struct Relu {
  static void of(const float* in, float* out) {
    const Floats x = load(in);
    store(out, x < Floats{} ? Floats{} : x);
  }
};
struct Tanh {
  static void of(const float* in, float* out) { store(out, tanh_of(load(in))); }
};
struct Sigmoid {
  static void of(const float* in, float* out) { store(out, sigmoid_of(load(in))); }
};

template <typename Map>
void map_in_place(float* values, int64_t count) {
  map_row<Map>(values, count, values);
}

void add_row(const float* other, int64_t count, float* values) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(values + i, load(values + i) + load(other + i));
  for (; i < count; ++i) values[i] += other[i];
}

bool any_subnormal_in(const BFloat16* values, int64_t count) {
  // Without branches and in 16 bits, so that compilers make lanes of it.
  uint16_t found = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t magnitude = values[i].x & 0x7fff;
    found |= static_cast<uint16_t>(static_cast<uint16_t>(magnitude - 1) < 0x007f);
  }
  return found != 0;
}

// `count` lanes of a row, zeros beyond them.
inline Floats load_part(const float* p, int64_t count) {
  return count >= kLanes ? load(p) : load(Tail<kLanes, float>(p, count).values);
}

inline void store_part(float* p, Floats x, int64_t count) {
  if (count >= kLanes) {
    store(p, x);
  } else {
    for (int64_t i = 0; i < count; ++i) p[i] = x[i];
  }
}

void lstm_cell_row(const float* gates, int64_t gate_stride, int64_t count, float* cell, float* hidden) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const auto gate = [&](int64_t g) { return load_part(gates + g * gate_stride + i, count - i); };
    const Floats input = gate(0), forget = gate(1), fresh = gate(2), output = gate(3);
    const Floats next =
        multiply_add(sigmoid_of(forget), load_part(cell + i, count - i), sigmoid_of(input) * tanh_of(fresh));
    store_part(cell + i, next, count - i);
    store_part(hidden + i, sigmoid_of(output) * tanh_of(next), count - i);
  }
}

void gru_cell_row(const float* inputs, const float* states, int64_t gate_stride, int64_t count,
                  float* hidden) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const auto input = [&](int64_t g) { return load_part(inputs + g * gate_stride + i, count - i); };
    const auto state = [&](int64_t g) { return load_part(states + g * gate_stride + i, count - i); };
    const Floats reset = sigmoid_of(input(0) + state(0)), update = sigmoid_of(input(1) + state(1));
    const Floats fresh = tanh_of(multiply_add(reset, state(2), input(2)));
    const Floats previous = load_part(hidden + i, count - i);
    store_part(hidden + i, multiply_add(update, previous - fresh, fresh), count - i);
  }
}

// Each lane keeps its first maximum; the lanes' are compared at the end.
int64_t argmax_of(const float* values, int64_t count) {
  int64_t best = 0, done = 0;
  bool nan = false;
  if (count >= kLanes) {
    Floats highest = load(values);
    Ints unordered = highest != highest, where = {}, at = {};
    for (int64_t i = kLanes; i + kLanes <= count; i += kLanes) {
      const Floats x = load(values + i);
      at += kLanes;
      where = x > highest ? at : where;
      highest = x > highest ? x : highest;
      unordered |= x != x;
    }
    done = count / kLanes * kLanes;
    best = where[0];
    nan = unordered[0] != 0;
    for (int lane = 1; lane < kLanes; ++lane) {
      const int64_t place = where[lane] + lane;
      if (highest[lane] > values[best] or (highest[lane] == values[best] and place < best)) best = place;
      nan |= unordered[lane] != 0;
    }
  }
  if (nan) best = done = 0;
  for (int64_t i = done; i < count and values[best] == values[best]; ++i) {
    if (values[i] > values[best] or values[i] != values[i]) best = i;
  }
  return best;
}

double sum_exp_of(const float* values, int64_t count, float shift) {
  Floats sums = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sums += exponential(load(values + i) - all(shift));
  double total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += sums[lane];
  if (i < count) {
    const Floats rest = exponential(load(Tail<kLanes, float>(values + i, count - i).values) - all(shift));
    for (int64_t k = 0; i + k < count; ++k) total += rest[k];
  }
  return total;
}

constexpr Kernels make_kernels(const char* name, DotBlock<BFloat16, BFloat16> pairs) {
  return {.name = name,
          .dot_float = dot_block<Widened<float>>,
          .dot_bfloat16 = dot_block<Widened<BFloat16>>,
          .dot_half = dot_block<Widened<Half>>,
          .dot_bfloat16_pairs = pairs,
          .widen_bfloat16 = map_row<Widen, BFloat16, float>,
          .widen_half = map_row<Widen, Half, float>,
          .narrow_bfloat16 = map_row<Narrow, float, BFloat16>,
          .narrow_half = map_row<Narrow, float, Half>,
          .any_subnormal = any_subnormal_in,
          .add = add_row,
          .relu = map_in_place<Relu>,
          .tanh = map_in_place<Tanh>,
          .sigmoid = map_in_place<Sigmoid>,
          .lstm_cell = lstm_cell_row,
          .gru_cell = gru_cell_row,
          .argmax = argmax_of,
          .sum_exp = sum_exp_of};
}
