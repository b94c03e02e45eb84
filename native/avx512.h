// The parts of the avx512 kernels, one file each; avx512_table.cpp joins them. What they promise is in winnow.h.
#pragma once
#include "winnow.h"

namespace winnow {

void avx512_rows_floats(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t ldo);  // float values
void avx512_rows_codes(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t ldo);   // integer values
void avx512_prepare(const Matrix& w, const void* x, int64_t ldx, Type type, Acts& out);
void avx512_interleave(const Acts& x, uint8_t* out, int64_t ld);
void avx512_many(const Matrix& w, const uint8_t* x, int64_t ldx, const float* x_scales, int64_t batch, int64_t r0,
                 int64_t r1, float* out, int64_t ldo);
void avx512_expand(const Matrix& w, int64_t r0, int64_t r1, void* out, int64_t ldo, Type type);
void avx512_times(const Matrix& w, int64_t r0, int64_t r1, const float* x, int64_t ldx, int64_t n, float* y, int64_t ldy);

}  // namespace winnow
