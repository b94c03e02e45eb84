// float32, float16 and bfloat16 values times activations, straight from the bitmask and the values: 64 columns are one
// word of the mask, and its values begin where those of the word before end. One row after another, because a single
// stream of memory is what a core reads fastest; the prefetches are worth a factor of two to three.
//
// A pruned weight takes part as 0 * x, except where few are kept (`chosen`), so what it gives with infinite x is not
// defined: 0 or NaN. Finite x never gives anything but the finite sum.
#include "avx512_vectors.h"

#include "avx512.h"

namespace winnow {
namespace {

enum Mode { kAll, kInside, kEdge };  // no mask; 64 bytes may be loaded wherever a value begins; only values may be

constexpr int64_t kAhead = 4096;  // bytes to fetch ahead

template <Mode kMode>
WINNOW_STATIC __m512i load(const uint8_t* p, int bytes) {
  return kMode == kEdge ? _mm512_maskz_loadu_epi8(_bzhi_u64(~0ull, unsigned(bytes)), p) : _mm512_loadu_si512(p);
}

WINNOW_STATIC int ones(uint64_t bits) { return int(_mm_popcnt_u64(bits)); }

// How weights become vectors, and what those do with x. `half` expands 32 columns into kVectors / 2 vectors; `chosen`
// picks the x of up to kChosen kept values of 64 columns instead, which is less work where few are kept.
struct Float32 {
  using X = float;
  static constexpr int kItem = 4, kVectors = 4, kChosen = 16;

  template <Mode kMode>
  WINNOW_STATIC void half(const uint8_t* mask, const uint8_t* p, __m512i* w) {
    if (kMode == kAll) {
      w[0] = _mm512_loadu_si512(p);
      w[1] = _mm512_loadu_si512(p + 64);
      return;
    }
    const uint32_t bits = word32(mask);
    const int low = 4 * ones(uint16_t(bits));
    w[0] = expand32(mask16(mask), load<kMode>(p, low));
    w[1] = expand32(mask16(mask + 2), load<kMode>(p + low, 4 * ones(bits >> 16)));
  }

  WINNOW_STATIC __m512 sixteen(__mmask16 k, const uint8_t* p) { return _mm512_maskz_loadu_ps(k, p); }
};

template <Mode kMode>
WINNOW_STATIC __m512i half_of_words(const uint8_t* mask, const uint8_t* p) {
  if (kMode == kAll) return _mm512_loadu_si512(p);
  return expand16(mask32(mask), load<kMode>(p, 2 * ones(word32(mask))));
}

// 16-bit values, widened to float.
template <class Widen>
struct Words {
  using X = float;
  static constexpr int kItem = 2, kVectors = 4, kChosen = 16;

  template <Mode kMode>
  WINNOW_STATIC void half(const uint8_t* mask, const uint8_t* p, __m512i* w) {
    const __m512i both = half_of_words<kMode>(mask, p);
    w[0] = _mm512_castps_si512(Widen::floats(_mm512_castsi512_si256(both)));
    w[1] = _mm512_castps_si512(Widen::floats(_mm512_extracti64x4_epi64(both, 1)));
  }

  WINNOW_STATIC __m512 sixteen(__mmask16 k, const uint8_t* p) { return Widen::floats(_mm256_maskz_loadu_epi16(k, p)); }
};

struct WidenHalf {
  WINNOW_STATIC __m512 floats(__m256i h) { return _mm512_cvtph_ps(h); }
};

struct WidenBrain {
  WINNOW_STATIC __m512 floats(__m256i h) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
  }
};

// What the three kinds of values that meet float x have in common.
template <class Values>
struct WithFloats : Values {
  WINNOW_STATIC const float* rows_of(const Acts& x) { return x.f; }

  WINNOW_STATIC __m512 add(__m512 sum, __m512i w, __m512i x) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(x), sum);
  }

  WINNOW_STATIC __m512 chosen(__m512i bytes, const uint8_t* p, const float* x, __m512 sum) {
    const __m512i at = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(bytes));
    const __m512 v = Values::sixteen(_mm512_test_epi32_mask(at, _mm512_set1_epi32(0x80)), p);
    const __m512 low = _mm512_permutex2var_ps(_mm512_load_ps(x), at, _mm512_load_ps(x + 16));
    const __m512 high = _mm512_permutex2var_ps(_mm512_load_ps(x + 32), at, _mm512_load_ps(x + 48));
    const __mmask16 upper = _mm512_test_epi32_mask(at, _mm512_set1_epi32(32));
    return _mm512_fmadd_ps(v, _mm512_mask_mov_ps(low, upper, high), sum);
  }
};

// bfloat16 values and bfloat16 x: products in pairs, summed in float.
struct BrainDot {
  using X = uint16_t;
  static constexpr int kItem = 2, kVectors = 2, kChosen = 32;

  WINNOW_STATIC const uint16_t* rows_of(const Acts& x) { return x.h; }

  template <Mode kMode>
  WINNOW_STATIC void half(const uint8_t* mask, const uint8_t* p, __m512i* w) {
    w[0] = half_of_words<kMode>(mask, p);
  }

  WINNOW_STATIC __m512 add(__m512 sum, __m512i a, __m512i b) {
#if defined(_MSC_VER) && !defined(__clang__)
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh&>(a), reinterpret_cast<__m512bh&>(b));
#else
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#endif
  }

  WINNOW_STATIC __m512 chosen(__m512i bytes, const uint8_t* p, const uint16_t* x, __m512 sum) {
    const __m512i at = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(bytes));
    const __m512i v = _mm512_maskz_loadu_epi16(_mm512_test_epi16_mask(at, _mm512_set1_epi16(0x80)), p);
    return add(sum, v, _mm512_permutex2var_epi16(_mm512_load_si512(x), at, _mm512_load_si512(x + 32)));
  }
};

// Bytes 0x80, 0x81 ...: the place of a column among 64, and a bit that says that there is one.
alignas(64) const uint8_t kPlaces[64] = {
    128, 129, 130, 131, 132, 133, 134, 135, 136, 137, 138, 139, 140, 141, 142, 143, 144, 145, 146, 147, 148, 149,
    150, 151, 152, 153, 154, 155, 156, 157, 158, 159, 160, 161, 162, 163, 164, 165, 166, 167, 168, 169, 170, 171,
    172, 173, 174, 175, 176, 177, 178, 179, 180, 181, 182, 183, 184, 185, 186, 187, 188, 189, 190, 191};

// The mask of the last columns of a row, fewer than 64.
static uint64_t tail_word(const Matrix& w, int64_t r) {
  const int64_t done = w.cols / 64;
  if (!w.mask) return _bzhi_u64(~0ull, unsigned(w.cols - 64 * done));
  const int64_t left = w.stride - 8 * done;
  uint64_t word = 0;
  std::memcpy(&word, w.mask + r * w.stride + 8 * done, size_t(left < 8 ? left : 8));
  return word;
}

// Whether 64 bytes may be loaded from every place in rows up to r where a value begins.
WINNOW_STATIC bool reads_inside(const Matrix& w, int64_t r) { return int64_t(w.starts[r + 1]) + 64 <= w.data_bytes; }

WINNOW_STATIC void fetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

// ---- one row of x

template <class V>
struct One {
  template <Mode kMode, bool kFew>
  WINNOW_STATIC void word(__m512* sums, const uint8_t* mask, const uint8_t*& p, const typename V::X* x) {
    const int kept = kMode == kAll ? 64 : ones(word64(mask));
    if (kFew && kept <= V::kChosen) {
      fetch(p + kAhead);
      const __m512i places = compress8(mask64(mask), _mm512_load_si512(kPlaces));
      sums[0] = V::chosen(places, p, x, sums[0]);
    } else {
#pragma GCC unroll 4
      for (int i = 0; i < (kMode == kAll ? V::kItem : V::kItem / 2); ++i) fetch(p + kAhead + 64 * i);
      __m512i w[V::kVectors];
      V::template half<kMode>(mask, p, w);
      V::template half<kMode>(mask + 4, p + V::kItem * (kMode == kAll ? 32 : ones(word32(mask))), w + V::kVectors / 2);
#pragma GCC unroll 4
      for (int i = 0; i < V::kVectors; ++i)
        sums[i] = V::add(sums[i], w[i], _mm512_load_si512(x + 64 / V::kVectors * i));
    }
    p += V::kItem * kept;
  }

  template <Mode kMode, bool kFew>
  static float row(const Matrix& w, const Acts& x, int64_t r) {
    __m512 sums[2 * V::kVectors];  // two sets, used in turn: a sum is ready only some cycles after it was asked for
#pragma GCC unroll 8
    for (int i = 0; i < 2 * V::kVectors; ++i) sums[i] = _mm512_setzero_ps();
    const uint8_t* mask = kMode == kAll ? nullptr : w.mask + r * w.stride;
    const uint8_t* p = w.data + w.starts[r];
    const typename V::X* f = V::rows_of(x);
    const int64_t words = w.cols / 64;
    int64_t i = 0;
    for (; i + 2 <= words; i += 2) {
      if (kMode != kAll) fetch(mask + 8 * i + kAhead);
      word<kMode, kFew>(sums, mask + 8 * i, p, f + 64 * i);
      word<kMode, kFew>(sums + V::kVectors, mask + 8 * i + 8, p, f + 64 * i + 64);
    }
    if (i < words) word<kMode, kFew>(sums, mask + 8 * i, p, f + 64 * i);
    if (w.cols % 64) {
      const uint64_t tail = tail_word(w, r);
      word<kMode == kInside ? kInside : kEdge, false>(sums, reinterpret_cast<const uint8_t*>(&tail), p, f + 64 * words);
    }
#pragma GCC unroll 8
    for (int k = 1; k < 2 * V::kVectors; ++k) sums[0] = _mm512_add_ps(sums[0], sums[k]);
    return _mm512_reduce_add_ps(sums[0]);
  }

  static void rows(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t) {
    // Measured: choosing x is faster than expanding weights up to about these densities.
    const int64_t few = w.cols * V::kChosen / 96;
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t kept = int64_t(w.starts[r + 1] - w.starts[r]) / V::kItem;
      if (!w.mask) {
        out[r - r0] = row<kAll, false>(w, x, r);
      } else if (!reads_inside(w, r)) {
        out[r - r0] = row<kEdge, false>(w, x, r);
      } else {
        out[r - r0] = kept <= few ? row<kInside, true>(w, x, r) : row<kInside, false>(w, x, r);
      }
    }
  }
};

// ---- several rows of x: every vector of weights meets B of them, every vector of x meets R rows of weights

template <class V, int B>
struct Several {
  static constexpr int R = B <= 4 ? 4 : 3;       // R * B sums, and what they are made of, fit 32 registers
  static constexpr int kHalf = V::kVectors / 2;  // vectors of 32 columns

  // 32 columns of R rows.
  template <Mode kMode>
  WINNOW_STATIC void half(const uint8_t* const* mask, const uint8_t** p, const typename V::X* const* x, int64_t c,
                          __m512 (*sums)[B]) {
    __m512i w[R][kHalf];
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
      V::template half<kMode>(mask[i], p[i], w[i]);
      p[i] += V::kItem * (kMode == kAll ? 32 : ones(word32(mask[i])));
    }
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b)
#pragma GCC unroll 2
      for (int k = 0; k < kHalf; ++k) {
        const __m512i v = opaque(_mm512_load_si512(x[b] + c + 32 / kHalf * k));
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i) sums[i][b] = V::add(sums[i][b], w[i][k], v);
      }
  }

  // Rows r[0 .. R) times rows [b0, b0 + B) of x; rows that are not there stand in as copies of ones that are.
  template <Mode kMode>
  static void tile(const Matrix& w, const Acts& x, const int64_t* r, int64_t b0, float (*out)[B]) {
    __m512 sums[R][B];
    const uint8_t *mask[R], *p[R];
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b) sums[i][b] = _mm512_setzero_ps();
      mask[i] = kMode == kAll ? nullptr : w.mask + r[i] * w.stride;
      p[i] = w.data + w.starts[r[i]];
    }
    const int64_t ahead = w.starts[r[R - 1] + 1] - w.starts[r[0]];  // the same place in the next R rows
    const typename V::X* f[B];
    for (int b = 0; b < B; ++b) f[b] = V::rows_of(x) + (b0 + b < x.batch ? b0 + b : x.batch - 1) * x.width;
    const int64_t whole = w.cols / 64 * 64;
    for (int64_t c = 0; c < whole; c += 32) {
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        fetch(p[i] + ahead);
        if (kMode != kAll && c % 512 == 0) fetch(mask[i] + R * w.stride);
        if (kMode == kAll && V::kItem == 4) fetch(p[i] + ahead + 64);
      }
      half<kMode>(mask, p, f, c, sums);
      if (kMode == kAll) continue;
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) mask[i] += 4;
    }
    if (w.cols % 64) {
      uint64_t tails[R];
      for (int i = 0; i < R; ++i) tails[i] = tail_word(w, r[i]);
      for (int k = 0; k < 2; ++k) {
        for (int i = 0; i < R; ++i) mask[i] = reinterpret_cast<const uint8_t*>(&tails[i]) + 4 * k;
        half<kMode == kInside ? kInside : kEdge>(mask, p, f, whole + 32 * k, sums);
      }
    }
    for (int i = 0; i < R; ++i)
      for (int b = 0; b < B; ++b) out[i][b] = _mm512_reduce_add_ps(sums[i][b]);
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
  if (x.batch == 1) return One<V>::rows(w, x, r0, r1, out, ldo);
  const int64_t passes = (x.batch + 7) / 8;
  const int64_t step = ((x.batch + passes - 1) / passes + 1) / 2 * 2;
  for (int64_t b = 0; b < x.batch; b += step)
    (step == 2   ? Several<V, 2>::rows
     : step == 4 ? Several<V, 4>::rows
     : step == 6 ? Several<V, 6>::rows
                 : Several<V, 8>::rows)(w, x, b, r0, r1, out, ldo);
}

}  // namespace

void avx512_rows_floats(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t ldo) {
  if (x.form == kFormBfloat) {
    rows_of_values<BrainDot>(w, x, r0, r1, out, ldo);
  } else if (w.values == kF32) {
    rows_of_values<WithFloats<Float32>>(w, x, r0, r1, out, ldo);
  } else if (w.values == kF16) {
    rows_of_values<WithFloats<Words<WidenHalf>>>(w, x, r0, r1, out, ldo);
  } else {
    rows_of_values<WithFloats<Words<WidenBrain>>>(w, x, r0, r1, out, ldo);
  }
}

}  // namespace winnow
