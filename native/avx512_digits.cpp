// Activations as fixed-point digits, with the sums that take the weights' offset off: see Acts.
#include "avx512_codes.h"
#include "prepare.h"

namespace winnow {
namespace {

__m512 load_floats(const void* x, int64_t i, int64_t left, Type type) {
  const __mmask16 some = left >= 16 ? 0xffff : __mmask16((1 << (left > 0 ? left : 0)) - 1);
  if (type == kFloat) return _mm512_maskz_loadu_ps(some, static_cast<const float*>(x) + i);
  const __m256i h = _mm256_maskz_loadu_epi16(some, static_cast<const uint16_t*>(x) + i);
  if (type == kHalf) return _mm512_cvtph_ps(h);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

void store_bytes(int8_t* out, __m512i v) { _mm_store_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(v)); }

// As digits_of, from numbers of any type.
float digits_of_row(const void* x, int64_t offset, Type type, int64_t cols, int64_t width, int digits, int8_t* d) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i tops = _mm512_setzero_si512();
  for (int64_t c = 0; c < cols; c += 16) {
    const __m512i bits = _mm512_castps_si512(load_floats(x, offset + c, cols - c, type));
    tops = _mm512_max_epu32(tops, _mm512_and_si512(bits, magnitude));
  }
  const uint32_t top = _mm512_reduce_max_epu32(tops);
  const float largest = digits == 1 ? 127.0f : 8355711.0f;
  const float inverse = top ? largest / bits_to_float(top) : 0;
  if (top >= 0x7f800000 || !(inverse <= 3e38f)) {
    std::memset(d, 0, size_t(width) * digits);
    return top >= 0x7f800000 ? bits_to_float(0x7fc00000) : 0;
  }
  const __m512i half = _mm512_set1_epi32(128), most = _mm512_set1_epi32(8355711), least = _mm512_set1_epi32(-8355711);
  for (int64_t c = 0; c < width; c += 16) {
    const __m512 scaled = _mm512_mul_ps(load_floats(x, offset + c, cols - c, type), _mm512_set1_ps(inverse));
    __m512i q = _mm512_cvt_roundps_epi32(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    if (digits == 3) {
      q = _mm512_max_epi32(_mm512_min_epi32(q, most), least);
      store_bytes(d + 2 * width + c, q);
      q = _mm512_srai_epi32(_mm512_add_epi32(q, half), 8);
      store_bytes(d + width + c, q);
      q = _mm512_srai_epi32(_mm512_add_epi32(q, half), 8);
    }
    store_bytes(d + c, q);
  }
  return bits_to_float(top) / largest;
}

__m512i add_digits(__m512i sum, const int8_t* d) {
  return _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), _mm512_load_si512(d));
}

}  // namespace

void avx512_prepare(const Matrix& w, const void* x, int64_t ldx, Type type, Acts& out) {
  if (out.form != kFormDigits) return prepare_activations(w, x, ldx, type, out);
  const int64_t step = w.values == kI4 ? step_of(w) : 0;
  for (int64_t b = 0; b < out.batch; ++b) {
    int8_t* d = out.d + b * out.digits * out.width;
    out.scale[b] = digits_of_row(x, b * ldx, type, w.cols, out.width, out.digits, d);
    if (!step) {
      for (int k = 0; k < out.digits; ++k) {
        __m512i sum = _mm512_setzero_si512();
        for (int64_t c = 0; c < out.width; c += kLane) sum = add_digits(sum, d + k * out.width + c);
        out.sums[b * out.digits + k] = _mm512_reduce_add_epi32(sum);
      }
      continue;
    }
    const int64_t steps = (w.cols + step - 1) / step;
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t stop = (s + 1) * step < out.width ? (s + 1) * step : out.width;
      __m512i all = _mm512_setzero_si512();
      for (int k = 0; k < out.digits; ++k) {
        all = _mm512_slli_epi32(all, 8);
        for (int64_t c = s * step; c < stop; c += kLane) all = add_digits(all, d + k * out.width + c);
      }
      _mm512_store_si512(out.sums + (b * steps + s) * 16, _mm512_slli_epi32(_mm512_sub_epi32(_mm512_setzero_si512(), all), 3));
    }
  }
}

}  // namespace winnow
