// Packed rows to dense ones, 64 columns at a time: one load, one expansion in registers, one conversion.
// bfloat16 is rounded by the processor's own instruction, which turns subnormal numbers into zero.
#include <immintrin.h>

#include "avx512.h"
#include "chunk.h"

namespace winnow {
namespace {

struct Floats {
  __m512 part[4];  // 64 columns
};

// 64 bytes from p, zeros beyond the end of the data.
inline __m512i load(const uint8_t* p, const uint8_t* end) {
  if (end - p >= 64) return _mm512_loadu_si512(p);
  return end > p ? _mm512_maskz_loadu_epi8(_bzhi_u64(~0ull, unsigned(end - p)), p) : _mm512_setzero_si512();
}

// Which of the columns [c, c + 64) are kept. With blocks of 4 only 16 bits count, one a block.
inline uint64_t word(const Matrix& w, const uint8_t* mask, int64_t c) {
  if (!mask) return _bzhi_u64(~0ull, unsigned(w.cols - c < 64 ? w.cols - c : 64));
  uint64_t bits = 0;
  const int64_t byte = w.block == 4 ? c >> 5 : c >> 3;
  if (byte + 8 <= w.stride) {
    std::memcpy(&bits, mask + byte, 8);
  } else {
    for (int64_t i = byte; i < w.stride; ++i) bits |= uint64_t(mask[i]) << 8 * (i - byte);
  }
  return w.block == 4 ? bits & 0xffff : bits;
}

// 64 nibbles from nibble `at` on as signed bytes.
inline __m512i nibbles(const uint8_t* data, int64_t at, const uint8_t* end) {
  alignas(64) static const uint8_t spread[64] = {0,  1,  2,  3,  4,  4,  4,  4,  4,  5,  6,  7,  8,  8,  8,  8,
                                                 8,  9,  10, 11, 12, 12, 12, 12, 12, 13, 14, 15, 16, 16, 16, 16,
                                                 16, 17, 18, 19, 20, 20, 20, 20, 20, 21, 22, 23, 24, 24, 24, 24,
                                                 24, 25, 26, 27, 28, 28, 28, 28, 28, 29, 30, 31, 32, 32, 32, 32};
  const __m512i groups = _mm512_permutexvar_epi8(_mm512_load_si512(spread), load(data + (at >> 1), end));
  const __m512i shifts = _mm512_set1_epi64(at & 1 ? 0x201c1814100c0804 : 0x1c1814100c080400);
  const __m512i low = _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, groups), _mm512_set1_epi8(15));
  const __m512i eight = _mm512_set1_epi8(8);
  return _mm512_sub_epi8(_mm512_xor_si512(low, eight), eight);
}

// Where a row is being read, by values taken.
template <int V>
struct Reader {
  const Matrix w;  // a copy, which what is written cannot change
  const uint8_t *mask, *data, *end;
  const uint16_t* scales;
  int64_t taken = 0;
  __m512 scale;       // of the columns before `until`
  int64_t until = 0;

  Reader(const Matrix& w, int64_t r)
      : w(w),
        mask(w.mask ? w.mask + r * w.stride : nullptr),
        data(w.data + w.starts[r]),
        end(w.data + w.data_bytes),
        scales(w.scales ? w.scales + r * groups_of(w) : nullptr) {}

  __m512i codes(int64_t c) {
    const uint64_t bits = word(w, mask, c);
    if (w.block == 4 && mask) {
      const __m512i packed = load(data + taken, end);
      taken += 4 * _mm_popcnt_u64(bits);
      return _mm512_maskz_expand_epi32(__mmask16(bits), packed);
    }
    const __m512i packed = V == kI8 ? load(data + taken, end) : nibbles(data, taken, end);
    taken += _mm_popcnt_u64(bits);
    return _mm512_maskz_expand_epi8(bits, packed);
  }

  // The two halves of 64 columns of 16-bit floats.
  void halves(int64_t c, __m512i& a, __m512i& b) {
    const uint64_t bits = word(w, mask, c);
    a = _mm512_maskz_expand_epi16(uint32_t(bits), load(data + 2 * taken, end));
    taken += _mm_popcnt_u32(uint32_t(bits));
    b = _mm512_maskz_expand_epi16(uint32_t(bits >> 32), load(data + 2 * taken, end));
    taken += _mm_popcnt_u32(uint32_t(bits >> 32));
  }

  Floats floats(int64_t c) {
    Floats f;
    if constexpr (V == kF32) {
      const uint64_t bits = word(w, mask, c);
      for (int i = 0; i < 4; ++i) {
        const __mmask16 part = __mmask16(bits >> 16 * i);
        f.part[i] = _mm512_castsi512_ps(_mm512_maskz_expand_epi32(part, load(data + 4 * taken, end)));
        taken += _mm_popcnt_u32(part);
      }
    } else if constexpr (V == kI8 || V == kI4) {
      const __m512i code = codes(c);
      const __m128i parts[4] = {_mm512_castsi512_si128(code), _mm512_extracti32x4_epi32(code, 1),
                                _mm512_extracti32x4_epi32(code, 2), _mm512_extracti32x4_epi32(code, 3)};
      if (!one_scale(c)) return by_parts(c, code);
      for (int i = 0; i < 4; ++i)
        f.part[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(parts[i])), scale);
    } else {
      __m512i h[2];
      halves(c, h[0], h[1]);
      for (int i = 0; i < 4; ++i) {
        const __m256i x = i & 1 ? _mm512_extracti64x4_epi64(h[i >> 1], 1) : _mm512_castsi512_si256(h[i >> 1]);
        f.part[i] = V == kF16 ? _mm512_cvtph_ps(x)
                              : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
      }
    }
    return f;
  }

  // Whether columns [c, c + 64) share a scale, which then is `scale`.
  bool one_scale(int64_t c) {
    const int64_t stop = w.cols < c + 64 ? w.cols : c + 64;
    if (stop <= until) return true;
    const int64_t group = c / w.group;
    if ((group + 1) * w.group < stop) return false;
    scale = _mm512_set1_ps(from_half(scales[group]));
    until = (group + 1) * w.group;
    return true;
  }

  // Columns [c, c + 64) that have several scales.
  Floats by_parts(int64_t c, __m512i code) const {
    alignas(64) int8_t codes[64];
    alignas(64) float f[64] = {};
    _mm512_store_si512(codes, code);
    for (int64_t i = 0; i < 64 && c + i < w.cols;) {
      const int64_t group = (c + i) / w.group;
      const float scale = from_half(scales[group]);
      for (; i < 64 && c + i < w.cols && c + i < (group + 1) * w.group; ++i) f[i] = codes[i] * scale;
    }
    return {{_mm512_load_ps(f), _mm512_load_ps(f + 16), _mm512_load_ps(f + 32), _mm512_load_ps(f + 48)}};
  }
};

inline void store_halves(__m512i a, __m512i b, uint16_t* out, int64_t count) {
  if (count >= 64) {
    _mm512_storeu_si512(out, a);
    _mm512_storeu_si512(out + 32, b);
  } else {
    const uint64_t on = _bzhi_u64(~0ull, unsigned(count));
    _mm512_mask_storeu_epi16(out, __mmask32(on), a);
    _mm512_mask_storeu_epi16(out + 32, __mmask32(on >> 32), b);
  }
}

inline __m512i two_halves(__m512 low, __m512 high, Type type) {
  if (type == kBfloat) {
    const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
    __m512i bits;
    std::memcpy(&bits, &both, sizeof bits);
    return bits;
  }
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT)),
                            _mm512_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT), 1);
}

inline void store_floats(const Floats& f, void* out, int64_t at, int64_t count, Type type) {
  if (type != kFloat) {
    store_halves(two_halves(f.part[0], f.part[1], type), two_halves(f.part[2], f.part[3], type),
                 static_cast<uint16_t*>(out) + at, count);
    return;
  }
  float* to = static_cast<float*>(out) + at;
  const uint64_t on = _bzhi_u64(~0ull, unsigned(count));
  for (int i = 0; i < 4; ++i) {
    if (count >= 64) {
      _mm512_storeu_ps(to + 16 * i, f.part[i]);
    } else {
      _mm512_mask_storeu_ps(to + 16 * i, __mmask16(on >> 16 * i), f.part[i]);
    }
  }
}

template <int V>
void rows(const Matrix& w, int64_t r0, int64_t r1, void* out, int64_t ldo, Type type) {
  const bool copied = (V == kBF16 && type == kBfloat) || (V == kF16 && type == kHalf);
  for (int64_t r = r0; r < r1; ++r) {
    Reader<V> row(w, r);
    const int64_t line = (r - r0) * ldo;
    for (int64_t c = 0; c < w.cols; c += 64) {
      const int64_t count = w.cols - c < 64 ? w.cols - c : 64;
      if (type == kCodes) {
        int8_t* to = static_cast<int8_t*>(out) + line + c;
        _mm512_mask_storeu_epi8(to, _bzhi_u64(~0ull, unsigned(count)), row.codes(c));
      } else if (copied) {
        __m512i a, b;
        row.halves(c, a, b);
        store_halves(a, b, static_cast<uint16_t*>(out) + line + c, count);
      } else {
        store_floats(row.floats(c), out, line + c, count, type);
      }
    }
  }
}

}  // namespace

void avx512_expand(const Matrix& w, int64_t r0, int64_t r1, void* out, int64_t ldo, Type type) {
  using Rows = void (*)(const Matrix&, int64_t, int64_t, void*, int64_t, Type);
  static const Rows kinds[] = {rows<kF32>, rows<kF16>, rows<kBF16>, rows<kI8>, rows<kI4>};
  kinds[w.values](w, r0, r1, out, ldo, type);
}

}  // namespace winnow
