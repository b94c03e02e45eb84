// Activations in the form a row kernel wants. Plain loops that the compiler turns into the vectors of the instruction set
// of the file that includes it. All static: see winnow.h.
#pragma once
#include "numbers.h"

namespace winnow {

static inline float load_activation(const void* x, int64_t i, Type type) {
  if (type == kFloat) return static_cast<const float*>(x)[i];
  const uint16_t h = static_cast<const uint16_t*>(x)[i];
  return type == kBfloat ? from_bfloat(h) : from_half(h);
}

// One row of x as floats, zeros beyond `cols`.
static void floats_of(const void* x, int64_t offset, Type type, int64_t cols, int64_t width, float* out) {
  if (type == kFloat) {
    std::memcpy(out, static_cast<const float*>(x) + offset, size_t(cols) * 4);
  } else if (type == kBfloat) {
    const uint16_t* h = static_cast<const uint16_t*>(x) + offset;
    for (int64_t c = 0; c < cols; ++c) out[c] = from_bfloat(h[c]);
  } else {
    for (int64_t c = 0; c < cols; ++c) out[c] = load_activation(x, offset + c, type);
  }
  for (int64_t c = cols; c < width; ++c) out[c] = 0;
}

// x = scale * (65536 d0 + 256 d1 + d2) with digits in -128 .. 127; 8355711 = 127 * (65536 + 256 + 1) is the largest sum
// that has such digits. The rounding error is at most 2^-24 of the largest magnitude of the row, that of a float sum.
// With one digit x = scale * d, |d| <= 127. A row with NaN or infinity gets the scale NaN.
static float digits_of(const float* f, int64_t width, int digits, int8_t* d) {
  float top = 0;
  float sound = 0;
  for (int64_t c = 0; c < width; ++c) {
    top = std::fabs(f[c]) > top ? std::fabs(f[c]) : top;
    sound += f[c] * 0.0f;  // NaN from NaN and from infinity
  }
  const float largest = digits == 1 ? 127.0f : 8355711.0f;
  const float inverse = top > 0 ? largest / top : 0;
  if (sound != 0 || !(inverse <= 3e38f)) {  // not finite, or so small that its inverse is not
    std::memset(d, 0, size_t(width) * digits);
    return sound != 0 ? std::nanf("") : 0;
  }
  int8_t* middle = d + width;
  int8_t* low = d + 2 * width;
  for (int64_t c = 0; c < width; ++c) {
    int32_t q = int32_t(std::nearbyint(f[c] * inverse));
    if (digits == 3) {
      q = q > 8355711 ? 8355711 : q < -8355711 ? -8355711 : q;
      low[c] = int8_t(q & 255);
      q = (q - int8_t(q & 255)) >> 8;
      middle[c] = int8_t(q & 255);
      q = (q - int8_t(q & 255)) >> 8;
    }
    d[c] = int8_t(q);
  }
  return top / largest;
}

static void prepare_activations(const Matrix& w, const void* x, int64_t ldx, Type type, Acts& out) {
  for (int64_t b = 0; b < out.batch; ++b) {
    float* f = out.f + (out.form == kFormFloat ? b * out.width : 0);  // else one row of scratch
    if (out.form == kFormBfloat && type == kBfloat) {
      uint16_t* h = out.h + b * out.width;
      std::memcpy(h, static_cast<const uint16_t*>(x) + b * ldx, size_t(w.cols) * 2);
      std::memset(h + w.cols, 0, size_t(out.width - w.cols) * 2);
      continue;
    }
    floats_of(x, b * ldx, type, w.cols, out.width, f);
    if (out.form == kFormBfloat) {
      for (int64_t c = 0; c < out.width; ++c) out.h[b * out.width + c] = to_bfloat(f[c]);
    } else if (out.form == kFormDigits) {
      int8_t* d = out.d + b * out.digits * out.width;
      out.scale[b] = digits_of(f, out.width, out.digits, d);
    }
  }
}

}  // namespace winnow
