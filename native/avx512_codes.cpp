// Integer weights, int8 and int4, times fixed-point activations. Weights are made unsigned by adding an offset, pruned
// ones too, because the instruction multiplies unsigned by signed bytes; what the offset adds depends on x alone and is
// taken off again. Sums are exact integers until they are scaled: a whole row of int8, step_of(w) columns of int4.
#include "avx512_codes.h"

#include "numbers.h"

namespace winnow {
namespace {

constexpr int64_t kPanel = 2048;     // columns expanded at a time, for several rows of x; a multiple of every step
constexpr int64_t kScales = 16;      // steps of int4 whose scales are converted at a time
constexpr int64_t kAhead = 4096;     // bytes to fetch ahead

// Sums of the sixteen lanes of four vectors.
WINNOW_INLINE __m128i add_lanes(const __m512i* v) {
  __m256i half[4];
  for (int i = 0; i < 4; ++i) half[i] = _mm256_add_epi32(_mm512_castsi512_si256(v[i]), _mm512_extracti64x4_epi64(v[i], 1));
  const __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(half[0], half[1]), _mm256_hadd_epi32(half[2], half[3]));
  return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

WINNOW_INLINE __m128 add_lanes(const __m512* v) {
  __m256 half[4];
  for (int i = 0; i < 4; ++i) half[i] = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
  const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
  return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

// The scales of R rows of int4 for kScales steps from `step` on.
template <int R>
WINNOW_INLINE void load_scales(const Matrix& w, int64_t r, int64_t step, int64_t steps, float* out) {
  const int64_t groups = groups_of(w), width = step_of(w);
  const int64_t left = steps - step;
  const __mmask16 some = left >= kScales ? 0xffff : __mmask16((1 << left) - 1);
  for (int i = 0; i < R; ++i) {
    const uint16_t* scales = w.scales + (r + i) * groups;
    if (w.group == width) {
      _mm512_store_ps(out + i * kScales, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, scales + step)));
    } else {
      for (int64_t j = 0; j < kScales && j < left; ++j)
        out[i * kScales + j] = from_half(scales[(step + j) * width / w.group]);
    }
  }
}

// The sums of R rows of weights with one row of x, one vector a digit: of whole rows of int8, of a step of int4.
template <Kind kKind, int kDigits, int R>
struct Sums {
  __m512i sum[R][kDigits];

  // int4 begins a step with what the offset will add, taken off.
  WINNOW_INLINE void clear(const int32_t* offsets) {
    each<R>([&](auto i) WINNOW_LAMBDA {
      each<kDigits>([&](auto k) WINNOW_LAMBDA {
        constexpr bool kLowest = k == kDigits - 1;
        sum[i][k] = is_int4<kKind> && kLowest ? _mm512_load_si512(offsets) : _mm512_setzero_si512();
      });
    });
  }

  WINNOW_INLINE void add(const __m512i* codes, const int8_t* digits, int64_t width) {
    each<kDigits>([&](auto k) WINNOW_LAMBDA {
      const __m512i d = _mm512_load_si512(digits + k * width);
      each<R>([&](auto i) WINNOW_LAMBDA {
        sum[i][k] = _mm512_dpbusd_epi32(sum[i][k], codes[i], d);
        WINNOW_KEEP(sum[i][k]);
      });
    });
  }

  // int4: adds the sums, scaled.
  WINNOW_INLINE void flush(const float* scales, __m512* total) const {
    each<R>([&](auto i) WINNOW_LAMBDA {
      __m512i all = sum[i][0];
      if constexpr (kDigits == 3) {
        all = _mm512_add_epi32(_mm512_slli_epi32(all, 8), sum[i][1]);
        all = _mm512_add_epi32(_mm512_slli_epi32(all, 8), sum[i][2]);
      }
      total[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(all), _mm512_set1_ps(scales[i * kScales]), total[i]);
    });
  }
};

// The products of R rows of int8 with row b of x, to out[0 .. R).
template <Kind kKind, int kDigits, int R>
WINNOW_INLINE void finish(const Sums<kKind, kDigits, R>& s, const Matrix& w, int64_t r, const Acts& x, int64_t b, float* out) {
  __m256d all = _mm256_setzero_pd();
  each<kDigits>([&](auto k) WINNOW_LAMBDA {
    const __m512i four[4] = {s.sum[0][k], s.sum[R > 1 ? 1 : 0][k], s.sum[R > 2 ? 2 : 0][k], s.sum[R > 3 ? 3 : 0][k]};
    // Modulo 2^32: the difference fits.
    const uint32_t offset = uint32_t(x.sums[b * kDigits + k]) * offset_of<kKind>;
    const __m128i sum = _mm_sub_epi32(add_lanes(four), _mm_set1_epi32(int32_t(offset)));
    all = _mm256_fmadd_pd(all, _mm256_set1_pd(256), _mm256_cvtepi32_pd(sum));
  });
  uint16_t halves[8] = {};
  for (int i = 0; i < R; ++i) halves[i] = w.scales[r + i];
  const __m256d scale = _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves))));
  const __m256d y = _mm256_mul_pd(_mm256_mul_pd(all, scale), _mm256_set1_pd(x.scale[b]));
  _mm_mask_storeu_ps(out, __mmask8((1 << R) - 1), _mm256_cvtpd_ps(y));
}

// The same for int4, whose sums are floats by now.
template <int R>
WINNOW_INLINE void finish(const __m512* total, const Acts& x, int64_t b, float* out) {
  const __m512 four[4] = {total[0], total[R > 1 ? 1 : 0], total[R > 2 ? 2 : 0], total[R > 3 ? 3 : 0]};
  _mm_mask_storeu_ps(out, __mmask8((1 << R) - 1), _mm_mul_ps(add_lanes(four), _mm_set1_ps(x.scale[b])));
}

WINNOW_INLINE void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

// Rows read side by side are streams too short for the processor to foresee: each row fetches the one this many rows on.
int64_t rows_ahead(const Matrix& w, int64_t together) {
  const int64_t bytes = together * (w.data_bytes / w.rows + (w.mask ? w.stride : 0)) + 1;
  return (kAhead + bytes - 1) / bytes * together;
}

// R rows of weights from r on times row b of x, expanded in registers. int4: kStep columns a step, no step short.
template <Kind kKind, int kDigits, int R, bool kEnd, int64_t kStep>
void one(const Matrix& w, const Acts& x, int64_t b, int64_t r, int64_t skip, float* out) {
  const uint8_t* end = w.data + w.data_bytes;
  const int8_t* digits = x.d + b * kDigits * x.width;
  Reader from[R];
  each<R>([&](auto i) WINNOW_LAMBDA { from[i] = reader_of<kKind>(w, r + i); });
  const int64_t width = x.width, whole = w.cols / kLane * kLane;
  const int64_t then = r + skip < w.rows ? r + skip : w.rows;
  const int64_t ahead = int64_t(w.starts[then]) - w.starts[r], mask_ahead = skip * w.stride;

  const auto chunk = [&](auto& sums, int64_t c, auto last) WINNOW_LAMBDA {
    __m512i codes[R];
    each<R>([&](auto i) WINNOW_LAMBDA {
      if constexpr (!is_int4<kKind>) prefetch(from[i].data + ahead);
      codes[i] = codes_of<kKind, kEnd>(from[i], keep_at<kKind, last>(w, from[i], c), end);
    });
    sums.add(codes, digits + c, width);
  };
  const auto prefetch_masks = [&](int64_t c) WINNOW_LAMBDA {
    if constexpr (is_masked<kKind>)
      each<R>([&](auto i) WINNOW_LAMBDA { prefetch(from[i].mask + c / (kKind == kBlocksMasked ? 32 : 8) + mask_ahead); });
  };

  if constexpr (is_int4<kKind>) {
    __m512 total[R];
    each<R>([&](auto i) WINNOW_LAMBDA { total[i] = _mm512_setzero_ps(); });
    alignas(64) float scales[R * kScales];
    const int64_t steps = w.cols / kStep;
    const int32_t* offsets = x.sums + b * steps * 16;
    for (int64_t s = 0, c = 0; s < steps;) {
      load_scales<R>(w, r, s, steps, scales);
      for (int64_t at = c; at < c + kScales * kStep; at += 512) prefetch_masks(at);
      const float* scale = scales;
      for (const int64_t stop = s + kScales < steps ? s + kScales : steps; s < stop; ++s) {
        Sums<kKind, kDigits, R> sums;
        sums.clear(offsets + s * 16);
        for (int64_t i = 0; i < kStep; i += 2 * kLane, c += 2 * kLane) {
          each<R>([&](auto k) WINNOW_LAMBDA { prefetch(place_of<kKind>(from[k]) + ahead); });
          each<2>([&](auto k) WINNOW_LAMBDA { chunk(sums, c + k * kLane, No()); });
        }
        sums.flush(scale++, total);
      }
    }
    finish<R>(total, x, b, out);
  } else {
    Sums<kKind, kDigits, R> sums;
    sums.clear(nullptr);
    for (int64_t c = 0; c < whole;) {
      prefetch_masks(c);
      for (const int64_t stop = c + 512 < whole ? c + 512 : whole; c < stop; c += kLane) chunk(sums, c, No());
    }
    if (whole < w.cols) chunk(sums, whole, Yes());
    finish(sums, w, r, x, b, out);
  }
}

// Columns [c, stop) of a row to `out`, to a multiple of 64.
template <Kind kKind, bool kEnd>
void expand(const Matrix& w, Reader& from, int64_t c, int64_t stop, uint8_t* out) {
  const uint8_t* end = w.data + w.data_bytes;
  for (; c + kLane <= stop; c += kLane, out += kLane)
    _mm512_store_si512(out, codes_of<kKind, kEnd>(from, keep_at<kKind, false>(w, from, c), end));
  if (c < stop) _mm512_store_si512(out, codes_of<kKind, kEnd>(from, keep_at<kKind, true>(w, from, c), end));
}

// What is kept of R rows of weights and one row of x from one panel to the next.
template <Kind kKind, int kDigits, int R>
struct Kept {
  Sums<kKind, kDigits, R> sums;  // int8
  __m512 total[R];               // int4
};

// R rows of weights from r on times B rows of x from b on: a panel of `count` columns from c on, expanded in `codes`.
template <Kind kKind, int kDigits, int R, int B>
void panel(const Matrix& w, const Acts& x, int64_t b, int64_t r, int64_t c, int64_t count, const uint8_t* codes,
           Kept<kKind, kDigits, R>* kept) {
  const int64_t width = x.width;
  const int8_t* digits = x.d + b * kDigits * width + c;
  const auto chunk = [&](auto* sums, int64_t i) WINNOW_LAMBDA {
    __m512i v[R];
    each<R>([&](auto k) WINNOW_LAMBDA { v[k] = _mm512_load_si512(codes + k * kPanel + i); });
    each<B>([&](auto j) WINNOW_LAMBDA { sums[j].add(v, digits + j * kDigits * width + i, width); });
  };
  Sums<kKind, kDigits, R> sums[B];
  if constexpr (is_int4<kKind>) {
    __m512 total[B][R];
    each<B>([&](auto j) WINNOW_LAMBDA { each<R>([&](auto k) WINNOW_LAMBDA { total[j][k] = kept[j].total[k]; }); });
    alignas(64) float scales[R * kScales];
    const int64_t step = step_of(w), steps = (w.cols + step - 1) / step, first = c / step;
    for (int64_t i = 0, s = first; i < count; ++s) {
      if ((s - first) % kScales == 0) load_scales<R>(w, r, s, steps, scales);
      each<B>([&](auto j) WINNOW_LAMBDA { sums[j].clear(x.sums + ((b + j) * steps + s) * 16); });
      for (const int64_t stop = i + step < count ? i + step : count; i < stop; i += kLane) chunk(sums, i);
      each<B>([&](auto j) WINNOW_LAMBDA { sums[j].flush(scales + (s - first) % kScales, total[j]); });
    }
    each<B>([&](auto j) WINNOW_LAMBDA { each<R>([&](auto k) WINNOW_LAMBDA { kept[j].total[k] = total[j][k]; }); });
  } else {
    each<B>([&](auto j) WINNOW_LAMBDA { sums[j] = kept[j].sums; });
    for (int64_t i = 0; i < count; i += kLane) chunk(sums, i);
    each<B>([&](auto j) WINNOW_LAMBDA { kept[j].sums = sums[j]; });
  }
}

// R rows of weights from r on times every row of x, expanded once.
template <Kind kKind, int kDigits, int R, bool kEnd>
void several(const Matrix& w, const Acts& x, int64_t r, float* out, int64_t ldo) {
  constexpr int B = is_int4<kKind> ? 1 : kDigits == 3 ? 2 : 4;  // as many sums as there are registers for
  alignas(64) uint8_t codes[R * kPanel];
  Kept<kKind, kDigits, R> kept[kBatch];
  Reader from[R];
  for (int i = 0; i < R; ++i) from[i] = reader_of<kKind>(w, r + i);
  for (int64_t b = 0; b < x.batch; ++b) {
    if constexpr (is_int4<kKind>)
      each<R>([&](auto i) WINNOW_LAMBDA { kept[b].total[i] = _mm512_setzero_ps(); });
    else
      kept[b].sums.clear(nullptr);
  }
  for (int64_t c = 0; c < w.cols; c += kPanel) {
    const int64_t stop = c + kPanel < w.cols ? c + kPanel : w.cols;
    const int64_t count = (stop - c + kLane - 1) / kLane * kLane;
    for (int i = 0; i < R; ++i) expand<kKind, kEnd>(w, from[i], c, stop, codes + i * kPanel);
    int64_t b = 0;
    for (; b + B <= x.batch; b += B) panel<kKind, kDigits, R, B>(w, x, b, r, c, count, codes, kept + b);
    for (; b < x.batch; ++b) panel<kKind, kDigits, R, 1>(w, x, b, r, c, count, codes, kept + b);
  }
  for (int64_t b = 0; b < x.batch; ++b) {
    if constexpr (is_int4<kKind>)
      finish<R>(kept[b].total, x, b, out + b * ldo);
    else
      finish(kept[b].sums, w, r, x, b, out + b * ldo);
  }
}

template <Kind kKind, int kDigits, int R, bool kEnd>
void some(const Matrix& w, const Acts& x, int64_t r, int64_t skip, float* out, int64_t ldo) {
  if (x.batch == 1) {
    if constexpr (!is_int4<kKind>) return one<kKind, kDigits, R, kEnd, 512>(w, x, 0, r, skip, out);
    if (step_of(w) == 128 && w.cols % 128 == 0) return one<kKind, kDigits, R, kEnd, 128>(w, x, 0, r, skip, out);
  }
  several<kKind, kDigits, R, kEnd>(w, x, r, out, ldo);
}

// What is read once a row.
template <int R>
WINNOW_INLINE void prefetch_rows(const Matrix& w, int64_t r, int64_t skip) {
  const int64_t groups = groups_of(w);
  prefetch(reinterpret_cast<const uint8_t*>(w.starts + r + 2 * skip));
  for (int64_t i = 0; i < R * groups; i += 32) prefetch(reinterpret_cast<const uint8_t*>(w.scales + (r + skip) * groups + i));
}

template <Kind kKind, int kDigits>
void rows(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t ldo) {
  constexpr int kTogether = is_int4<kKind> ? 2 : 4;  // rows of weights that share what is loaded of x
  const int64_t skip = rows_ahead(w, kTogether);
  int64_t r = r0;
  for (; r + kTogether <= r1 && loads_whole(w, r + kTogether); r += kTogether) {
    prefetch_rows<kTogether>(w, r, skip);
    some<kKind, kDigits, kTogether, false>(w, x, r, skip, out + r - r0, ldo);
  }
  for (; r < r1; ++r) {
    if (loads_whole(w, r + 1))
      some<kKind, kDigits, 1, false>(w, x, r, skip, out + r - r0, ldo);
    else
      some<kKind, kDigits, 1, true>(w, x, r, skip, out + r - r0, ldo);
  }
}

template <Kind kKind>
void rows(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t ldo) {
  (x.digits == 3 ? rows<kKind, 3> : rows<kKind, 1>)(w, x, r0, r1, out, ldo);
}

}  // namespace

void avx512_rows_codes(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t ldo) {
  if (w.values == kI4 && step_of(w))
    (w.mask ? rows<kNibblesMasked> : rows<kNibbles>)(w, x, r0, r1, out, ldo);
  else if (w.values == kI8 && w.cols <= kLongest)
    (!w.mask ? rows<kBytes> : w.block == 4 ? rows<kBlocksMasked> : rows<kBytesMasked>)(w, x, r0, r1, out, ldo);
  else
    portable_kernels()->rows(w, x, r0, r1, out, ldo);
}

}  // namespace winnow
