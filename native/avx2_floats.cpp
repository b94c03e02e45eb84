// float32, float16 and bfloat16 values times activations with AVX2, which cannot expand: 8 columns are one byte of the
// mask, and a table holds for every byte the permutation that moves its values to their columns. One row after another
// for one row of x, tiles of rows for several, as in avx512_floats.cpp; infinite x times a pruned weight is 0 or NaN here
// too.
#include <immintrin.h>

#include "avx2.h"
#include "numbers.h"

#if defined(_MSC_VER) && !defined(__clang__)
#define WINNOW_STATIC static __forceinline
#else
#define WINNOW_STATIC static inline __attribute__((always_inline))
#endif

namespace winnow {
namespace {

enum Mode { kAll, kInside, kEdge };  // no mask; 32 bytes may be loaded wherever a value begins; only values may be

constexpr int64_t kAhead = 4096;  // bytes to fetch ahead

struct Tables {
  uint8_t lanes[256][8];    // for vpermd: the value's place with 0x80 set, 0 where the column is pruned
  uint8_t words[256][16];   // for vpshufb on 16-bit values; 0x80 (gives 0) where the column is pruned

  constexpr Tables() : lanes(), words() {
    for (int byte = 0; byte < 256; ++byte) {
      int taken = 0;
      for (int c = 0; c < 8; ++c) {
        const bool kept = byte >> c & 1;
        lanes[byte][c] = uint8_t(kept ? 0x80 | taken : 0);
        words[byte][2 * c] = uint8_t(kept ? 2 * taken : 0x80);
        words[byte][2 * c + 1] = uint8_t(kept ? 2 * taken + 1 : 0x80);
        taken += kept;
      }
    }
  }
};

alignas(64) constexpr Tables kTables{};

WINNOW_STATIC uint64_t word64(const uint8_t* p) {
  uint64_t word;
  std::memcpy(&word, p, 8);
  return word;
}

WINNOW_STATIC int ones(uint64_t bits) { return int(_mm_popcnt_u64(bits)); }

WINNOW_STATIC void fetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

// The first `bytes` of p, where reading further is not allowed.
struct Copy {
  alignas(32) uint8_t bytes[32] = {};
  Copy(const uint8_t* p, int count) { std::memcpy(bytes, p, size_t(count)); }
};

// `eight` gives the weights of 8 columns, 0 where pruned; `add` multiplies them with 8 columns of x.
struct Float32 {
  static constexpr int kItem = 4;

  template <Mode kMode>
  WINNOW_STATIC __m256 load(unsigned byte, const uint8_t* p) {
    if (kMode == kEdge) return _mm256_load_ps(reinterpret_cast<const float*>(Copy(p, 4 * ones(byte)).bytes));
    return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
  }

  WINNOW_STATIC __m256i lanes(unsigned byte) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kTables.lanes[byte])));
  }

  template <Mode kMode>
  WINNOW_STATIC __m256 eight(unsigned byte, const uint8_t* p) {
    if (kMode == kAll) return load<kAll>(byte, p);
    const __m256i at = lanes(byte);
    const __m256 kept = _mm256_castsi256_ps(_mm256_srai_epi32(at, 31));
    return _mm256_and_ps(_mm256_permutevar8x32_ps(load<kMode>(byte, p), at), kept);
  }

  template <Mode kMode>
  WINNOW_STATIC __m256 add(__m256 sum, unsigned byte, const uint8_t* p, const float* x) {
    if (kMode == kAll) return _mm256_fmadd_ps(load<kAll>(byte, p), _mm256_load_ps(x), sum);
    const __m256i at = lanes(byte);  // the sign says that the column is kept
    return _mm256_fmadd_ps(_mm256_permutevar8x32_ps(load<kMode>(byte, p), at), _mm256_maskload_ps(x, at), sum);
  }
};

template <bool kBrain>
struct Words {
  static constexpr int kItem = 2;

  template <Mode kMode>
  WINNOW_STATIC __m256 eight(unsigned byte, const uint8_t* p) {
    __m128i packed;
    if (kMode == kEdge) {
      packed = _mm_load_si128(reinterpret_cast<const __m128i*>(Copy(p, 2 * ones(byte)).bytes));
    } else {
      packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    }
    if (kMode != kAll) {
      packed = _mm_shuffle_epi8(packed, _mm_load_si128(reinterpret_cast<const __m128i*>(kTables.words[byte])));
    }
    if (!kBrain) return _mm256_cvtph_ps(packed);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(packed), 16));
  }

  template <Mode kMode>
  WINNOW_STATIC __m256 add(__m256 sum, unsigned byte, const uint8_t* p, const float* x) {
    return _mm256_fmadd_ps(eight<kMode>(byte, p), _mm256_load_ps(x), sum);
  }
};

// The mask of the last columns of a row, fewer than 64.
static uint64_t tail_word(const Matrix& w, int64_t r) {
  const int64_t done = w.cols / 64;
  if (!w.mask) return _bzhi_u64(~0ull, unsigned(w.cols - 64 * done));
  const int64_t left = w.stride - 8 * done;
  uint64_t word = 0;
  std::memcpy(&word, w.mask + r * w.stride + 8 * done, size_t(left < 8 ? left : 8));
  return word;
}

WINNOW_STATIC bool reads_inside(const Matrix& w, int64_t r) { return int64_t(w.starts[r + 1]) + 32 <= w.data_bytes; }

WINNOW_STATIC float add_lanes(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

template <class V>
struct One {
  template <Mode kMode>
  WINNOW_STATIC void word(__m256* sums, uint64_t bits, const uint8_t*& p, const float* x) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const unsigned byte = unsigned(bits >> 8 * i & 255);
      sums[i % 4] = V::template add<kMode>(sums[i % 4], byte, p, x + 8 * i);
      p += V::kItem * (kMode == kAll ? 8 : ones(byte));
    }
  }

  template <Mode kMode>
  static float row(const Matrix& w, const Acts& x, int64_t r) {
    __m256 sums[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sums[i] = _mm256_setzero_ps();
    const uint8_t* mask = kMode == kAll ? nullptr : w.mask + r * w.stride;
    const uint8_t* p = w.data + w.starts[r];
    const int64_t words = w.cols / 64;
    for (int64_t i = 0; i < words; ++i) {
#pragma GCC unroll 4
      for (int k = 0; k < (kMode == kAll ? V::kItem : V::kItem / 2); ++k) fetch(p + kAhead + 64 * k);
      if (kMode != kAll && i % 8 == 0) fetch(mask + 8 * i + kAhead);
      word<kMode>(sums, kMode == kAll ? 0 : word64(mask + 8 * i), p, x.f + 64 * i);
    }
    if (w.cols % 64) word<kMode == kInside ? kInside : kEdge>(sums, tail_word(w, r), p, x.f + 64 * words);
    return add_lanes(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
  }

  static void rows(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out) {
    for (int64_t r = r0; r < r1; ++r)
      out[r - r0] = (!w.mask ? row<kAll> : reads_inside(w, r) ? row<kInside> : row<kEdge>)(w, x, r);
  }
};

// Several rows of x: every vector of weights meets B of them, every vector of x meets R rows of weights.
template <class V, int B>
struct Several {
  static constexpr int R = 3;

  template <Mode kMode>
  WINNOW_STATIC void word(const uint64_t* bits, const uint8_t** p, const float* const* x, int64_t c, __m256 (*sums)[B]) {
#pragma GCC unroll 2
    for (int shift = 0; shift < 64; shift += 8, c += 8) {
      __m256 w[R];
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        const unsigned byte = unsigned(bits[i] >> shift & 255);
        w[i] = V::template eight<kMode>(byte, p[i]);
        p[i] += V::kItem * (kMode == kAll ? 8 : ones(byte));
      }
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b) {
        const __m256 v = _mm256_load_ps(x[b] + c);
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i) sums[i][b] = _mm256_fmadd_ps(w[i], v, sums[i][b]);
      }
    }
  }

  // Rows r[0 .. R) times rows [b0, b0 + B) of x; rows that are not there stand in as copies of ones that are.
  template <Mode kMode>
  static void tile(const Matrix& w, const Acts& x, const int64_t* r, int64_t b0, float (*out)[B]) {
    __m256 sums[R][B];
    const uint8_t *mask[R], *p[R];
    const float* f[B];
    for (int b = 0; b < B; ++b) f[b] = x.f + (b0 + b < x.batch ? b0 + b : x.batch - 1) * x.width;
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b) sums[i][b] = _mm256_setzero_ps();
      mask[i] = kMode == kAll ? nullptr : w.mask + r[i] * w.stride;
      p[i] = w.data + w.starts[r[i]];
    }
    const int64_t ahead = w.starts[r[R - 1] + 1] - w.starts[r[0]];  // the same place in the next R rows
    const int64_t whole = w.cols / 64 * 64;
    uint64_t bits[R] = {};
    for (int64_t c = 0; c < whole; c += 64) {
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        if (kMode != kAll) {
          bits[i] = word64(mask[i] + c / 8);
          if (c % 512 == 0) fetch(mask[i] + c / 8 + R * w.stride);
        }
#pragma GCC unroll 4
        for (int k = 0; k < (kMode == kAll ? V::kItem : V::kItem / 2); ++k) fetch(p[i] + ahead + 64 * k);
      }
      word<kMode>(bits, p, f, c, sums);
    }
    if (w.cols % 64) {
      for (int i = 0; i < R; ++i) bits[i] = tail_word(w, r[i]);
      word<kMode == kInside ? kInside : kEdge>(bits, p, f, whole, sums);
    }
    for (int i = 0; i < R; ++i)
      for (int b = 0; b < B; ++b) out[i][b] = add_lanes(sums[i][b]);
  }

  static void rows(const Matrix& w, const Acts& x, int64_t b0, int64_t r0, int64_t r1, float* out, int64_t ldo) {
    const int64_t count = x.batch - b0 < B ? x.batch - b0 : B;
    for (int64_t first = r0; first < r1; first += R) {
      int64_t r[R];
      for (int i = 0; i < R; ++i) r[i] = first + i < r1 ? first + i : r1 - 1;
      float y[R][B];
      (!w.mask ? tile<kAll> : reads_inside(w, r[R - 1]) ? tile<kInside> : tile<kEdge>)(w, x, r, b0, y);
      for (int i = 0; i < R && first + i < r1; ++i)
        for (int64_t b = 0; b < count; ++b) out[(b0 + b) * ldo + first + i - r0] = y[i][b];
    }
  }
};

template <class V>
void rows_of_values(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t ldo) {
  if (x.batch == 1) return One<V>::rows(w, x, r0, r1, out);
  for (int64_t b = 0; b < x.batch; b += 4)
    (x.batch - b <= 2 ? Several<V, 2>::rows : Several<V, 4>::rows)(w, x, b, r0, r1, out, ldo);
}

}  // namespace

void avx2_rows_floats(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t ldo) {
  if (w.values == kF32) {
    rows_of_values<Float32>(w, x, r0, r1, out, ldo);
  } else if (w.values == kF16) {
    rows_of_values<Words<false>>(w, x, r0, r1, out, ldo);
  } else {
    rows_of_values<Words<true>>(w, x, r0, r1, out, ldo);
  }
}

}  // namespace winnow
