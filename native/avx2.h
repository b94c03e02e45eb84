// The parts of the avx2 kernels, one file each; avx2_table.cpp joins them. What they promise is in winnow.h.
#pragma once
#include "winnow.h"

namespace winnow {

void avx2_rows_floats(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t ldo);  // float values
void avx2_rows_codes(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t ldo);   // integer values
Form avx2_form_codes(const Matrix& w, Type x, bool int8_activations);
void avx2_prepare(const Matrix& w, const void* x, int64_t ldx, Type type, Acts& out);
void avx2_expand(const Matrix& w, int64_t r0, int64_t r1, void* out, int64_t ldo, Type type);
void avx2_times(const Matrix& w, int64_t r0, int64_t r1, const float* x, int64_t ldx, int64_t n, float* y, int64_t ldy);

}  // namespace winnow
