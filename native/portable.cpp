// The kernels in plain C++: every processor runs them, and the faster ones are tested against them.
#include "chunk.h"
#include "prepare.h"

namespace winnow {
namespace {

Form portable_form(const Matrix& w, Type, bool int8_activations) {
  return int8_activations && (w.values == kI8 || w.values == kI4) ? kFormDigits : kFormFloat;
}

void rows_float(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t ldo) {
  float weights[kLane];
  for (int64_t r = r0; r < r1; ++r) {
    float sums[kBatch][8] = {};  // eight partial sums a row of x, so that the compiler may use vectors
    Cursor at = row_cursor(w, r);
    for (int64_t c = 0; c < w.cols; c += kLane) {
      const int64_t count = w.cols - c < kLane ? w.cols - c : kLane;
      for (int64_t i = count; i < kLane; ++i) weights[i] = 0;
      decode_floats(w, at, r, c, count, weights);
      for (int64_t b = 0; b < x.batch; ++b) {
        const float* f = x.f + b * x.width + c;
        for (int64_t i = 0; i < kLane; i += 8)
          for (int64_t j = 0; j < 8; ++j) sums[b][j] += weights[i + j] * f[i + j];
      }
    }
    for (int64_t b = 0; b < x.batch; ++b) {
      const float* s = sums[b];
      out[b * ldo + r - r0] = ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
    }
  }
}

void rows_digits(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t ldo) {
  int8_t codes[kLane];
  const int64_t groups = groups_of(w);
  for (int64_t r = r0; r < r1; ++r) {
    double total[kBatch] = {};
    Cursor at = row_cursor(w, r);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t stop = (g + 1) * w.group < w.cols ? (g + 1) * w.group : w.cols;
      int64_t sums[kBatch] = {};
      for (int64_t c = g * w.group; c < stop; c += kLane) {
        const int64_t count = stop - c < kLane ? stop - c : kLane;
        decode_codes(w, at, c, count, codes);
        for (int64_t b = 0; b < x.batch; ++b) {
          const int8_t* d = x.d + b * x.digits * x.width + c;
          for (int k = 0; k < x.digits; ++k, d += x.width) {
            int64_t sum = 0;
            for (int64_t i = 0; i < count; ++i) sum += codes[i] * d[i];
            sums[b] += sum * (int64_t(1) << 8 * (x.digits - 1 - k));
          }
        }
      }
      const double scale = from_half(w.scales[r * groups + g]);
      for (int64_t b = 0; b < x.batch; ++b) total[b] += scale * double(sums[b]);
    }
    for (int64_t b = 0; b < x.batch; ++b) out[b * ldo + r - r0] = float(total[b] * x.scale[b]);
  }
}

void portable_rows(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t ldo) {
  (x.form == kFormDigits ? rows_digits : rows_float)(w, x, r0, r1, out, ldo);
}

void portable_expand(const Matrix& w, int64_t r0, int64_t r1, void* out, int64_t ldo, Type type) {
  float weights[kLane];
  for (int64_t r = r0; r < r1; ++r) {
    Cursor at = row_cursor(w, r);
    const int64_t line = (r - r0) * ldo;
    for (int64_t c = 0; c < w.cols; c += kLane) {
      const int64_t count = w.cols - c < kLane ? w.cols - c : kLane;
      if (type == kCodes) {
        decode_codes(w, at, c, count, static_cast<int8_t*>(out) + line + c);
        continue;
      }
      decode_floats(w, at, r, c, count, weights);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t j = line + c + i;
        if (type == kFloat) static_cast<float*>(out)[j] = weights[i];
        if (type == kBfloat) static_cast<uint16_t*>(out)[j] = to_bfloat(weights[i]);
        if (type == kHalf) static_cast<uint16_t*>(out)[j] = to_half(weights[i]);
      }
    }
  }
}

void portable_times(const Matrix& w, int64_t r0, int64_t r1, const float* x, int64_t ldx, int64_t n, float* y,
                    int64_t ldy) {
  float weights[kLane];
  for (int64_t r = r0; r < r1; ++r) {
    float* line = y + r * ldy;
    for (int64_t j = 0; j < n; ++j) line[j] = 0;
    Cursor at = row_cursor(w, r);
    for (int64_t c = 0; c < w.cols; c += kLane) {
      const int64_t count = w.cols - c < kLane ? w.cols - c : kLane;
      decode_floats(w, at, r, c, count, weights);
      for (int64_t i = 0; i < count; ++i) {
        if (!kept(w, at, c + i)) continue;
        const float* column = x + (c + i) * ldx;
        for (int64_t j = 0; j < n; ++j) line[j] += weights[i] * column[j];
      }
    }
  }
}

}  // namespace

const Kernels* portable_kernels() {
  static const Kernels kernels = {"portable", portable_form, prepare_activations, portable_rows, portable_expand,
                                  portable_times, nullptr, nullptr};
  return &kernels;
}

}  // namespace winnow
