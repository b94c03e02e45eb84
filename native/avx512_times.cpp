// y = W x, feature-major. For every kept weight one broadcast and up to eight vector sums that stay in registers: nothing
// is spent on pruned weights. A tile of x stays in the second-level cache while the rows of the band pass by, and while a
// row is multiplied the kept features of the next are listed.
#include <immintrin.h>

#include "avx512.h"
#include "chunk.h"

namespace winnow {
namespace {

constexpr int64_t kTileBytes = 256 << 10;  // of x, at most
constexpr int64_t kTile = 4096;            // features of a tile, at most
constexpr int64_t kRows = 512;             // rows whose reading positions are kept at a time

inline void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

// The kept weights of one row in one tile.
struct Segment {
  alignas(64) uint16_t index[kTile + 64];  // feature, counted from the tile's first
  alignas(64) float decoded[kTile + 16];
  const float* weights;  // decoded, or the data themselves
  int64_t count;
};

inline uint64_t kept_word(const Matrix& w, const uint8_t* mask, int64_t c) {
  const int64_t left = w.cols - c;
  if (!mask) return _bzhi_u64(~0ull, unsigned(left < 64 ? left : 64));
  const int64_t byte = w.block == 4 ? c >> 5 : c >> 3;
  uint64_t bits = 0;
  if (byte + 8 <= w.stride) {
    std::memcpy(&bits, mask + byte, 8);
  } else {
    for (int64_t i = byte; i < w.stride; ++i) bits |= uint64_t(mask[i]) << 8 * (i - byte);
  }
  return w.block == 4 ? _pdep_u64(bits, 0x1111111111111111) * 15 : bits;
}

inline __mmask64 present(const uint8_t* p, const uint8_t* end, int64_t wanted) {
  const int64_t there = end - p;
  return _bzhi_u64(~0ull, unsigned(there < wanted ? there : wanted));
}

// Integer codes `at` .. `at` + 15 of the row's data as floats.
inline __m512 codes(const Matrix& w, const uint8_t* data, int64_t at, const uint8_t* end) {
  if (w.values == kI8) {
    const uint8_t* p = data + at;
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(__mmask16(present(p, end, 16)), p)));
  }
  const uint8_t* p = data + (at >> 1);
  const __m128i bytes = _mm_maskz_loadu_epi8(__mmask16(present(p, end, 9)), p);
  const __m128i later = _mm_or_si128(_mm_srli_epi64(bytes, 4), _mm_slli_epi64(_mm_bsrli_si128(bytes, 8), 60));
  const __m512i pairs = _mm512_cvtepu8_epi32(at & 1 ? later : bytes);
  // Lane i wants byte i / 2, shifted so that its nibble comes on top.
  const __m512i halves = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  const __m512i up = _mm512_setr_epi32(28, 24, 28, 24, 28, 24, 28, 24, 28, 24, 28, 24, 28, 24, 28, 24);
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_sllv_epi32(_mm512_permutexvar_epi32(halves, pairs), up), 28));
}

// Scales of 16 listed features, all in the tile that begins at column c.
inline __m512 scales_of(const Matrix& w, const uint16_t* scales, int64_t c, const uint16_t* index) {
  alignas(64) float s[16];
  for (int i = 0; i < 16; ++i) {
    const int64_t column = c + index[i];
    s[i] = column < w.cols ? from_half(scales[column / w.group]) : 0;
  }
  return _mm512_load_ps(s);
}

// Decodes the listed values; those beyond the count come out as anything.
void decode(const Matrix& w, int64_t row, int64_t c, int64_t stop, const uint8_t* data, int64_t taken, Segment& s) {
  const uint8_t* end = w.data + w.data_bytes;
  s.weights = s.decoded;
  if (w.values == kF32) {
    s.weights = reinterpret_cast<const float*>(data + 4 * taken);
    for (int64_t i = 0; i < s.count; i += 16) prefetch(data + 4 * (taken + i));
  } else if (w.values == kF16 || w.values == kBF16) {
    for (int64_t i = 0; i < s.count; i += 16) {
      const uint8_t* p = data + 2 * (taken + i);
      const __m256i h = _mm256_maskz_loadu_epi8(__mmask32(present(p, end, 32)), p);
      const __m512 wide = w.values == kF16 ? _mm512_cvtph_ps(h)
                                           : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
      _mm512_store_ps(s.decoded + i, wide);
    }
  } else {
    const uint16_t* scales = w.scales + row * groups_of(w);
    const int64_t first_group = w.group >= w.cols ? 0 : c / w.group;
    const int64_t groups = w.group >= w.cols ? 1 : (stop - 1) / w.group - first_group + 1;
    // Scales of 16 features at a time, looked up in a register where there are few and the tile begins with a group.
    const bool even = groups <= 16 && c % w.group == 0 && (w.group & (w.group - 1)) == 0;
    const __m128i shift = _mm_cvtsi32_si128(int(_tzcnt_u64(uint64_t(w.group))));
    const __m512 table =
        groups > 16 ? _mm512_setzero_ps()
                    : _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(__mmask16(_bzhi_u32(~0u, unsigned(groups))),
                                                               scales + first_group));
    for (int64_t i = 0; i < s.count; i += 16) {
      __m512 scale;
      if (groups == 1) {
        scale = _mm512_broadcastss_ps(_mm512_castps512_ps128(table));
      } else if (even) {
        const __m512i columns =
            _mm512_cvtepu16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(s.index + i)));
        scale = _mm512_permutexvar_ps(_mm512_srl_epi32(columns, shift), table);
      } else {
        scale = scales_of(w, scales, c, s.index + i);
      }
      _mm512_store_ps(s.decoded + i, _mm512_mul_ps(codes(w, data, taken + i, end), scale));
    }
  }
}

// Lists the kept features [c, stop) of `row`, and their weights.
void list(const Matrix& w, int64_t row, int64_t c, int64_t stop, int64_t taken, Segment& s) {
  alignas(64) static const uint8_t iota[64] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                               16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
                                               32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
                                               48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
  const uint8_t* mask = w.mask ? w.mask + row * w.stride : nullptr;
  const __m512i numbers = _mm512_load_si512(iota);
  int64_t count = 0;
  for (int64_t i = c; i < stop; i += 64) {
    const uint64_t bits = kept_word(w, mask, i);
    const __m512i first = _mm512_set1_epi16(int16_t(i - c));
    const __m512i found = _mm512_maskz_compress_epi8(bits, numbers);
    const int64_t more = _mm_popcnt_u64(bits);
    uint16_t* to = s.index + count;
    _mm512_storeu_si512(to, _mm512_add_epi16(first, _mm512_cvtepu8_epi16(_mm512_castsi512_si256(found))));
    if (more > 32)
      _mm512_storeu_si512(to + 32, _mm512_add_epi16(first, _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(found, 1))));
    count += more;
  }
  s.count = count;
  if (mask && row + 4 < w.rows) prefetch(mask + 4 * w.stride + (c >> 3) / w.block);
  decode(w, row, c, stop, w.data + w.starts[row], taken, s);
}

inline float number_at(const float* p, int64_t i) {  // data of a file are not aligned
  float value;
  std::memcpy(&value, p + i, 4);
  return value;
}

// y[0 .. 16 Z) += sum over the segment; U independent sums of each keep the multipliers busy where Z is small. Of the last
// vector only the lanes `tail` exist, all of them where kTail is false.
template <int Z, int U, bool kTail>
inline void add(const Segment& s, const float* x, int64_t ldx, float* y, bool first, __mmask16 tail) {
  __m512 sums[U][Z];
  const auto read = [&](const float* p, int z) {
    return kTail && z == Z - 1 ? _mm512_maskz_loadu_ps(tail, p + 16 * z) : _mm512_loadu_ps(p + 16 * z);
  };
  for (int z = 0; z < Z; ++z) {
    sums[0][z] = first ? _mm512_setzero_ps() : read(y, z);
    for (int u = 1; u < U; ++u) sums[u][z] = _mm512_setzero_ps();
  }
  const float* weights = s.weights;
  const int64_t count = s.count;
  int64_t i = 0;
  for (; i + U <= count; i += U) {
    for (int u = 0; u < U; ++u) {
      const float* p = x + s.index[i + u] * ldx;
      const __m512 weight = _mm512_set1_ps(number_at(weights, i + u));
      for (int z = 0; z < Z; ++z) sums[u][z] = _mm512_fmadd_ps(weight, read(p, z), sums[u][z]);
    }
  }
  for (; i < count; ++i) {
    const float* p = x + s.index[i] * ldx;
    const __m512 weight = _mm512_set1_ps(number_at(weights, i));
    for (int z = 0; z < Z; ++z) sums[0][z] = _mm512_fmadd_ps(weight, read(p, z), sums[0][z]);
  }
  for (int z = 0; z < Z; ++z) {
    for (int u = 1; u < U; ++u) sums[0][z] = _mm512_add_ps(sums[0][z], sums[u][z]);
    if (kTail && z == Z - 1) {
      _mm512_mask_storeu_ps(y + 16 * z, tail, sums[0][z]);
    } else {
      _mm512_storeu_ps(y + 16 * z, sums[0][z]);
    }
  }
}

// Features of a tile of x, `bytes` each. Half of the memory is faster to read again and again; but a row should have some
// thirty weights in the tile, or else its beginning and its end cost more than they.
int64_t tile_of(const Matrix& w, int64_t r0, int64_t r1, int64_t bytes) {
  const int64_t bits = w.values == kF32 ? 32 : w.values == kI8 ? 8 : w.values == kI4 ? 4 : 16;
  const int64_t kept = 8 * int64_t(w.starts[r1] - w.starts[r0]) / bits;
  const int64_t most = kTileBytes / bytes < kTile ? kTileBytes / bytes : kTile;
  const int64_t wanted = 32 * (r1 - r0) * w.cols / (kept + 1);
  const int64_t features = wanted < most / 2 ? most / 2 : wanted < most ? wanted : most;
  return bytes <= 128 ? most / 64 * 64 : features / 64 * 64;
}

template <int Z, bool kTail>
void columns(const Matrix& w, int64_t r0, int64_t r1, const float* x, int64_t ldx, float* y, int64_t ldy, __mmask16 tail) {
  constexpr int U = Z == 1 ? 4 : Z < 5 ? 2 : 1;
  const int64_t features = tile_of(w, r0, r1, 64 * Z);
  uint32_t taken[kRows];
  Segment segments[2];
  for (int64_t r = r0; r < r1; ++r) taken[r - r0] = 0;
  for (int64_t c = 0; c < w.cols; c += features) {
    const int64_t stop = w.cols < c + features ? w.cols : c + features;
    list(w, r0, c, stop, taken[0], segments[r0 & 1]);
    for (int64_t r = r0; r < r1; ++r) {
      const Segment& now = segments[r & 1];
      if (r + 1 < r1) list(w, r + 1, c, stop, taken[r + 1 - r0], segments[(r + 1) & 1]);
      add<Z, U, kTail>(now, x + c * ldx, ldx, y + r * ldy, c == 0, tail);
      taken[r - r0] += uint32_t(now.count);
    }
  }
}

template <int Z>
void tile(const Matrix& w, int64_t r0, int64_t r1, const float* x, int64_t ldx, int64_t n, float* y, int64_t ldy) {
  const __mmask16 tail = __mmask16(_bzhi_u32(0xffff, unsigned(n - 16 * (Z - 1))));
  if (n == 16 * Z) {
    columns<Z, false>(w, r0, r1, x, ldx, y, ldy, tail);
  } else {
    columns<Z, true>(w, r0, r1, x, ldx, y, ldy, tail);
  }
}

using Tile = void (*)(const Matrix&, int64_t, int64_t, const float*, int64_t, int64_t, float*, int64_t);
constexpr Tile kTiles[8] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>, tile<7>, tile<8>};

}  // namespace

void avx512_times(const Matrix& w, int64_t r0, int64_t r1, const float* x, int64_t ldx, int64_t n, float* y,
                  int64_t ldy) {
  if (w.cols == 0) {
    for (int64_t r = r0; r < r1; ++r) std::memset(y + r * ldy, 0, size_t(n) * 4);
    return;
  }
  const int64_t tiles = (n + 127) / 128;
  const int64_t width = tiles > 0 ? ((n + tiles - 1) / tiles + 15) / 16 * 16 : 0;  // tiles of one size
  for (int64_t j = 0; j < n; j += width) {
    const int64_t count = n - j < width ? n - j : width;
    for (int64_t r = r0; r < r1; r += kRows)
      kTiles[(count + 15) / 16 - 1](w, r, r + kRows < r1 ? r + kRows : r1, x + j, ldx, count, y + j, ldy);
  }
}

}  // namespace winnow
