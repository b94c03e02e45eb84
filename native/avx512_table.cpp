#include "avx512.h"

namespace winnow {
namespace {

Form form_of(const Matrix& w, Type x, bool) {
  if (w.values == kI8 || w.values == kI4) return kFormDigits;
  return w.values == kBF16 && x == kBfloat ? kFormBfloat : kFormFloat;
}

void rows(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t ldo) {
  (x.form == kFormDigits ? avx512_rows_codes : avx512_rows_floats)(w, x, r0, r1, out, ldo);
}

}  // namespace

const Kernels* avx512_kernels() {
  static const Kernels kernels = [] {
    Kernels k = *portable_kernels();
    k.name = "avx512";
    k.form = form_of;
    k.prepare = avx512_prepare;  // what it does not do itself it hands to prepare_activations
    k.rows = rows;
    k.interleave = avx512_interleave;
    k.many = avx512_many;
    k.expand = avx512_expand;
    k.times = avx512_times;
    return k;
  }();
  return &kernels;
}

}  // namespace winnow
