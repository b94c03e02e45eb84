#include "avx2.h"

namespace winnow {
namespace {

Form form_of(const Matrix& w, Type x, bool int8_activations) {
  return w.values <= kBF16 ? kFormFloat : avx2_form_codes(w, x, int8_activations);
}

void rows(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t ldo) {
  (w.values <= kBF16 ? avx2_rows_floats : avx2_rows_codes)(w, x, r0, r1, out, ldo);
}

}  // namespace

const Kernels* avx2_kernels() {
  static const Kernels kernels = [] {
    Kernels k = *portable_kernels();
    k.name = "avx2";
    k.form = form_of;
    k.prepare = avx2_prepare;  // what it does not do itself it hands to prepare_activations
    k.expand = avx2_expand;
    k.times = avx2_times;
    k.rows = rows;
    return k;
  }();
  return &kernels;
}

}  // namespace winnow
