// Decoding kLane columns of one row at a time, for any instruction set: the slow, plain way that the vector kernels
// fall back on at the end of the data and for shapes they have no way for. All static: see winnow.h.
#pragma once
#include "numbers.h"

namespace winnow {

// Where a row is being read: the next kept value, counted in values from the row's first.
struct Cursor {
  const uint8_t* mask;  // of the row; null: all kept
  const uint8_t* data;  // of the row
  int64_t taken;
};

static inline Cursor row_cursor(const Matrix& w, int64_t row) {
  return {w.mask ? w.mask + row * w.stride : nullptr, w.data + w.starts[row], 0};
}

static inline bool kept(const Matrix& w, const Cursor& at, int64_t column) {
  if (!at.mask) return true;
  const int64_t bit = column / w.block;
  return at.mask[bit >> 3] >> (bit & 7) & 1;
}

// Integer codes of columns [first, first + count), 0 where pruned.
static inline void decode_codes(const Matrix& w, Cursor& at, int64_t first, int64_t count, int8_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    if (!kept(w, at, first + i)) {
      out[i] = 0;
    } else if (w.values == kI8) {
      out[i] = int8_t(at.data[at.taken++]);
    } else {
      const uint8_t byte = at.data[at.taken >> 1];
      out[i] = at.taken++ & 1 ? int8_t(byte) >> 4 : int8_t(byte << 4) >> 4;
    }
  }
}

// Weights of columns [first, first + count), dequantized, 0 where pruned.
static inline void decode_floats(const Matrix& w, Cursor& at, int64_t row, int64_t first, int64_t count, float* out) {
  if (w.values == kI8 || w.values == kI4) {
    const uint16_t* scales = w.scales + row * groups_of(w);
    for (int64_t i = 0; i < count; ++i) {
      int8_t code;
      decode_codes(w, at, first + i, 1, &code);
      out[i] = code * from_half(scales[(first + i) / w.group]);
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    if (!kept(w, at, first + i)) {
      out[i] = 0;
    } else if (w.values == kF32) {
      std::memcpy(&out[i], at.data + 4 * at.taken++, 4);
    } else {
      uint16_t h;
      std::memcpy(&h, at.data + 2 * at.taken++, 2);
      out[i] = w.values == kF16 ? from_half(h) : from_bfloat(h);
    }
  }
}

}  // namespace winnow
