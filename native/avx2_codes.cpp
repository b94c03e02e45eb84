// int8 and int4 values times fixed-point activations with AVX2, which has no product of bytes that cannot overflow: codes
// become 16-bit words, x is one or two pieces of 12 bits, and sums are exact 32-bit integers until they are scaled, a
// whole row of int8 and a step of int4. A table holds for every byte of the mask where the values of its 8 columns go.
#include <immintrin.h>

#include "avx2.h"
#include "numbers.h"
#include "prepare.h"

#if defined(_MSC_VER) && !defined(__clang__)
#define WINNOW_STATIC static __forceinline
#define WINNOW_ORDER(a, b)
#else
#define WINNOW_STATIC static inline __attribute__((always_inline))
#define WINNOW_ORDER(a, b) __asm__ volatile("" : "+r"(a), "+r"(b))  // one step after the other: registers are few
#endif

namespace winnow {
namespace {

enum Kind { kBytes, kBytesMasked, kBlocksMasked };

constexpr int64_t kLongestRow = 32768;  // columns: sums of products stay below 2^31, and a row fits the buffers here
constexpr int64_t kSlack = 64;          // bytes that may be read beyond the codes of a row
constexpr int64_t kAhead = 4096;        // bytes to fetch ahead
constexpr int kRows = 2;                // rows of weights that share what is loaded of several rows of x

struct Tables {
  uint8_t columns[256][16];  // for vpshufb: the value of a column to the high byte of its word, 0x80 gives 0
  uint8_t blocks[16][16];    // the same for four blocks of four bytes, as bytes

  constexpr Tables() : columns(), blocks() {
    for (int byte = 0; byte < 256; ++byte) {
      int taken = 0;
      for (int c = 0; c < 8; ++c) {
        const bool kept = byte >> c & 1;
        columns[byte][2 * c] = 0x80;
        columns[byte][2 * c + 1] = uint8_t(kept ? taken : 0x80);
        taken += kept;
      }
    }
    for (int four = 0; four < 16; ++four) {
      int taken = 0;
      for (int c = 0; c < 4; ++c) {
        const bool kept = four >> c & 1;
        for (int i = 0; i < 4; ++i) blocks[four][4 * c + i] = uint8_t(kept ? 4 * taken + i : 0x80);
        taken += kept;
      }
    }
  }
};

alignas(64) constexpr Tables kTables{};

WINNOW_STATIC __m128i load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
WINNOW_STATIC __m256i load32(const void* p) { return _mm256_load_si256(static_cast<const __m256i*>(p)); }

// The mask bits of the 64 columns from c on.
template <Kind kKind>
WINNOW_STATIC uint64_t keep_at(const Matrix& w, const uint8_t* mask, int64_t c) {
  if (kKind == kBytes) return 0;
  constexpr int64_t size = kKind == kBlocksMasked ? 2 : 8;
  const int64_t at = c / 64 * size;
  uint64_t keep = 0;
  if (w.stride - at >= size)
    std::memcpy(&keep, mask + at, size_t(size));
  else
    for (int64_t i = at; i < w.stride; ++i) keep |= uint64_t(mask[i]) << 8 * (i - at);
  return keep;
}

// The next 16 columns as words; `keep` loses their bits and `p` moves on.
template <Kind kKind>
WINNOW_STATIC __m256i words_of(uint64_t& keep, const uint8_t*& p) {
  if (kKind == kBytes) {
    const __m256i v = _mm256_cvtepi8_epi16(load16(p));
    p += 16;
    return v;
  }
  if (kKind == kBlocksMasked) {
    const unsigned four = unsigned(keep & 15);
    keep >>= 4;
    const __m128i v = _mm_shuffle_epi8(load16(p), load16(kTables.blocks[four]));
    p += 4 * _mm_popcnt_u32(four);
    return _mm256_cvtepi8_epi16(v);
  }
  // Bytes of the mask times 16, the size of a line of the table; they have as many bits.
  const uint64_t low = keep << 4 & 0xff0, high = keep >> 4 & 0xff0;
  keep >>= 16;
  const int64_t first = int64_t(_mm_popcnt_u64(low)), both = first + int64_t(_mm_popcnt_u64(high));
  const uint8_t* table = kTables.columns[0];
  const __m256i v = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p)), load16(p + first), 1);
  const __m256i to = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(table + low)), load16(table + high), 1);
  p += both;
  WINNOW_ORDER(keep, p);
  return _mm256_srai_epi16(_mm256_shuffle_epi8(v, to), 8);
}

// Nibbles as bytes, -8 .. 7.
void unpack(const uint8_t* p, int64_t bytes, uint8_t* out) {
  const __m128i low = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
  const auto put = [&](__m128i v) {
    const __m128i even = _mm_sub_epi8(_mm_xor_si128(_mm_and_si128(v, low), eight), eight);
    const __m128i odd = _mm_sub_epi8(_mm_xor_si128(_mm_and_si128(_mm_srli_epi16(v, 4), low), eight), eight);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi8(even, odd));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16), _mm_unpackhi_epi8(even, odd));
    out += 32;
  };
  for (; bytes >= 16; bytes -= 16, p += 16) {
    _mm_prefetch(reinterpret_cast<const char*>(p + kAhead), _MM_HINT_T0);
    put(load16(p));
  }
  if (bytes > 0) {
    uint8_t rest[16] = {};
    std::memcpy(rest, p, size_t(bytes));
    put(load16(rest));
  }
}

// The codes of a row as bytes with kSlack behind them: where they lie, or in `buffer`.
const uint8_t* codes_of(const Matrix& w, int64_t r, uint8_t* buffer) {
  const uint8_t* data = w.data + w.starts[r];
  const int64_t bytes = int64_t(w.starts[r + 1]) - w.starts[r];
  if (w.values == kI4) {
    unpack(data, bytes, buffer);
    return buffer;
  }
  if (w.starts[r + 1] + kSlack <= w.data_bytes) return data;
  std::memcpy(buffer, data, size_t(bytes));
  return buffer;
}

struct Sums {
  __m256i piece[2];
  __m256 total;  // int4
};

template <int kPieces>
WINNOW_STATIC void clear(Sums& s) {
  for (int k = 0; k < kPieces; ++k) s.piece[k] = _mm256_setzero_si256();
}

template <int kPieces>
WINNOW_STATIC void add(Sums& s, __m256i words, const int16_t* pieces, int64_t width) {
  for (int k = 0; k < kPieces; ++k)
    s.piece[k] = _mm256_add_epi32(s.piece[k], _mm256_madd_epi16(words, load32(pieces + k * width)));
}

// int4: the sums of up to 256 columns, scaled; in 32 bits they fit.
template <int kPieces>
WINNOW_STATIC void flush(Sums& s, uint16_t scale) {
  __m256i all = s.piece[0];
  if (kPieces == 2) all = _mm256_add_epi32(_mm256_slli_epi32(all, 12), s.piece[1]);
  const __m256 f = _mm256_cvtph_ps(_mm_set1_epi16(short(scale)));
  s.total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(all), f, s.total);
  clear<kPieces>(s);
}

int64_t add_lanes(__m256i v) {
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), v);
  int64_t sum = 0;
  for (int32_t lane : lanes) sum += lane;
  return sum;
}

template <int kPieces>
float finish(const Sums& s, const Matrix& w, int64_t r, float x_scale) {
  if (w.values == kI4) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(s.total), _mm256_extractf128_ps(s.total, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two))) * x_scale;
  }
  int64_t all = add_lanes(s.piece[0]);
  if (kPieces == 2) all = all * 4096 + add_lanes(s.piece[1]);
  return float(double(all) * from_half(w.scales[r]) * x_scale);
}

// Columns that are summed before they are scaled.
int64_t span_of(const Matrix& w) { return w.values == kI8 ? kLongestRow : step_of(w) < 256 ? step_of(w) : 256; }

// A row of weights times a row of x.
template <Kind kKind, int kPieces>
float one(const Matrix& w, int64_t r, const Acts& x, int64_t ahead) {
  alignas(32) uint8_t buffer[kLongestRow + kSlack];
  const uint8_t* p = codes_of(w, r, buffer);
  const uint8_t* mask = w.mask ? w.mask + r * w.stride : nullptr;
  const uint16_t* scales = w.scales + r * groups_of(w);
  const int64_t width = x.width, span = span_of(w);
  Sums sums;
  clear<kPieces>(sums);
  sums.total = _mm256_setzero_ps();
  for (int64_t c = 0; c < width;) {
    const int64_t begin = c;
    for (const int64_t stop = c + span < width ? c + span : width; c < stop; c += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(p + ahead), _MM_HINT_T0);
      uint64_t keep = keep_at<kKind>(w, mask, c);
      const int16_t* pieces = x.p + c;
      add<kPieces>(sums, words_of<kKind>(keep, p), pieces, width);
      add<kPieces>(sums, words_of<kKind>(keep, p), pieces + 16, width);
      add<kPieces>(sums, words_of<kKind>(keep, p), pieces + 32, width);
      add<kPieces>(sums, words_of<kKind>(keep, p), pieces + 48, width);
    }
    if (w.values == kI4) flush<kPieces>(sums, scales[begin / w.group]);
  }
  return finish<kPieces>(sums, w, r, x.scale[0]);
}

// R rows of weights, expanded to words `ld` apart, times B rows of x from b on.
template <int kPieces, int R, int B>
void tile(const Matrix& w, int64_t r, const int16_t* words, int64_t ld, const Acts& x, int64_t b, float* out, int64_t ldo) {
  const int64_t width = x.width, span = span_of(w), groups = groups_of(w);
  Sums sums[R][B];
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < B; ++j) {
      clear<kPieces>(sums[i][j]);
      sums[i][j].total = _mm256_setzero_ps();
    }
  for (int64_t c = 0; c < width;) {
    const int64_t begin = c;
    for (const int64_t stop = c + span < width ? c + span : width; c < stop; c += 16) {
      __m256i v[R];
      for (int i = 0; i < R; ++i) v[i] = load32(words + i * ld + c);
      for (int j = 0; j < B; ++j)
        for (int k = 0; k < kPieces; ++k) {
          const __m256i p = load32(x.p + ((b + j) * kPieces + k) * width + c);
          for (int i = 0; i < R; ++i)
            sums[i][j].piece[k] = _mm256_add_epi32(sums[i][j].piece[k], _mm256_madd_epi16(v[i], p));
        }
    }
    if (w.values == kI4)
      for (int i = 0; i < R; ++i)
        for (int j = 0; j < B; ++j) flush<kPieces>(sums[i][j], w.scales[(r + i) * groups + begin / w.group]);
  }
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < B; ++j) out[(b + j) * ldo + i] = finish<kPieces>(sums[i][j], w, r + i, x.scale[b + j]);
}

template <Kind kKind, int kPieces, int R>
void several(const Matrix& w, int64_t r, const Acts& x, float* out, int64_t ldo) {
  constexpr int B = kPieces == 2 ? 2 : 4;
  alignas(32) uint8_t buffer[kLongestRow + kSlack];
  alignas(32) int16_t words[R * kLongestRow];
  for (int i = 0; i < R; ++i) {
    const uint8_t* p = codes_of(w, r + i, buffer);
    const uint8_t* mask = w.mask ? w.mask + (r + i) * w.stride : nullptr;
    for (int64_t c = 0; c < x.width; c += 64) {
      uint64_t keep = keep_at<kKind>(w, mask, c);
      for (int64_t j = c; j < c + 64; j += 16)
        _mm256_store_si256(reinterpret_cast<__m256i*>(words + i * x.width + j), words_of<kKind>(keep, p));
    }
  }
  int64_t b = 0;
  for (; b + B <= x.batch; b += B) tile<kPieces, R, B>(w, r, words, x.width, x, b, out, ldo);
  for (; b < x.batch; ++b) tile<kPieces, R, 1>(w, r, words, x.width, x, b, out, ldo);
}

template <Kind kKind, int kPieces>
void rows(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t ldo) {
  int64_t r = r0;
  if (x.batch == 1) {
    for (; r < r1; ++r) out[r - r0] = one<kKind, kPieces>(w, r, x, w.values == kI8 ? kAhead : 0);
    return;
  }
  for (; r + kRows <= r1; r += kRows) several<kKind, kPieces, kRows>(w, r, x, out + r - r0, ldo);
  for (; r < r1; ++r) several<kKind, kPieces, 1>(w, r, x, out + r - r0, ldo);
}

template <Kind kKind>
void rows(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t ldo) {
  (x.digits == 1 ? rows<kKind, 1> : rows<kKind, 2>)(w, x, r0, r1, out, ldo);
}

// One row of x to `pieces`, and its scale.
float pieces_of(const float* f, int64_t width, int pieces, int16_t* out) {
  __m256i tops = _mm256_setzero_si256();
  for (int64_t c = 0; c < width; c += 8) {
    const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(f + c));
    tops = _mm256_max_epu32(tops, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
  }
  alignas(32) uint32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), tops);
  uint32_t top = 0;
  for (uint32_t lane : lanes) top = lane > top ? lane : top;
  const int32_t largest = pieces == 1 ? 127 : 2047 * 4097;
  const float inverse = top ? float(largest) / bits_to_float(top) : 0;
  if (top >= 0x7f800000 || !(inverse <= 3e38f)) {  // not finite, or so small that its inverse is not
    std::memset(out, 0, size_t(width) * pieces * 2);
    return top >= 0x7f800000 ? bits_to_float(0x7fc00000) : 0;
  }
  const __m256i most = _mm256_set1_epi32(largest), half = _mm256_set1_epi32(2048);
  const auto put = [](int16_t* to, __m256i a, __m256i b) {
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to), packed);
  };
  for (int64_t c = 0; c < width; c += 16) {
    __m256i q[2], high[2];
    for (int i = 0; i < 2; ++i) {
      q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(f + c + 8 * i), _mm256_set1_ps(inverse)));
      q[i] = _mm256_max_epi32(_mm256_min_epi32(q[i], most), _mm256_sub_epi32(_mm256_setzero_si256(), most));
      high[i] = _mm256_srai_epi32(_mm256_add_epi32(q[i], half), 12);
    }
    if (pieces == 1) {
      put(out + c, q[0], q[1]);
      continue;
    }
    put(out + c, high[0], high[1]);
    for (int i = 0; i < 2; ++i) q[i] = _mm256_sub_epi32(q[i], _mm256_slli_epi32(high[i], 12));
    put(out + width + c, q[0], q[1]);
  }
  return bits_to_float(top) / float(largest);
}

}  // namespace

Form avx2_form_codes(const Matrix& w, Type x, bool int8_activations) {
  if (w.cols <= kLongestRow && (w.values == kI8 || step_of(w))) return kFormPieces;
  return portable_kernels()->form(w, x, int8_activations);
}

void avx2_prepare(const Matrix& w, const void* x, int64_t ldx, Type type, Acts& out) {
  if (out.form != kFormPieces) return prepare_activations(w, x, ldx, type, out);
  for (int64_t b = 0; b < out.batch; ++b) {
    floats_of(x, b * ldx, type, w.cols, out.width, out.f);
    out.scale[b] = pieces_of(out.f, out.width, out.digits, out.p + b * out.digits * out.width);
  }
}

void avx2_rows_codes(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t ldo) {
  if (x.form != kFormPieces) return portable_kernels()->rows(w, x, r0, r1, out, ldo);
  (!w.mask ? rows<kBytes> : w.block == 4 ? rows<kBlocksMasked> : rows<kBytesMasked>)(w, x, r0, r1, out, ldo);
}

}  // namespace winnow
