// y = W x, feature-major, as in avx512_times.cpp, with vectors of 8: tiles of up to 64 columns in 8 sums.
#include <immintrin.h>

#include "avx2.h"
#include "chunk.h"

namespace winnow {
namespace {

constexpr int64_t kTileBytes = 128 << 10;  // of x: half of the smallest second-level cache in use
constexpr int64_t kTile = 4096;            // features of a tile at most
constexpr int64_t kRows = 512;             // rows whose reading positions are kept at a time
constexpr int64_t kWide = 64;              // columns of a tile at most

// Byte k of entry m: the position of the k-th set bit of m.
struct Places {
  uint64_t of[256];
};

constexpr Places make_places() {
  Places places{};
  for (int m = 0; m < 256; ++m) {
    int k = 0;
    for (uint64_t i = 0; i < 8; ++i)
      if (m >> i & 1) places.of[m] |= i << 8 * k++;
  }
  return places;
}

alignas(64) constexpr Places kPlaces = make_places();

inline void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

// The kept weights of one row in one tile.
struct Segment {
  alignas(64) uint16_t index[kTile + 16];  // feature, counted from the tile's first
  alignas(64) float decoded[kTile + 16];
  const float* weights;  // decoded, or the data themselves
  int64_t count;
};

inline unsigned kept_byte(const Matrix& w, const uint8_t* mask, int64_t c) {
  if (!mask) return w.cols - c >= 8 ? 255 : (1u << (w.cols - c)) - 1;
  if (w.block == 1) return mask[c >> 3];
  const unsigned two = mask[c >> 5] >> (c >> 2 & 7) & 3;
  return (two & 1 ? 15 : 0) | (two & 2 ? 240 : 0);
}

// 16 bytes from p, zeros beyond the end of the data.
inline __m128i load(const uint8_t* p, const uint8_t* end) {
  if (end - p >= 16) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  alignas(16) uint8_t last[16] = {};
  if (end > p) std::memcpy(last, p, size_t(end - p));
  return _mm_load_si128(reinterpret_cast<const __m128i*>(last));
}

// Integer codes `at` .. `at` + 7 of the row's data as floats.
inline __m256 codes(const Matrix& w, const uint8_t* data, int64_t at, const uint8_t* end) {
  if (w.values == kI8) return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load(data + at, end)));
  const __m128i bytes = _mm_srli_epi64(load(data + (at >> 1), end), int(at & 1) * 4);
  const __m256i word = _mm256_broadcastd_epi32(bytes);  // 8 nibbles
  const __m256i up = _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0);
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_sllv_epi32(word, up), 28));
}

// Decodes the listed values of features [c, stop); those beyond the count come out as anything.
void decode(const Matrix& w, int64_t row, int64_t c, int64_t stop, const uint8_t* data, int64_t taken, Segment& s) {
  const uint8_t* end = w.data + w.data_bytes;
  s.weights = s.decoded;
  if (w.values == kF32) {
    s.weights = reinterpret_cast<const float*>(data + 4 * taken);
    for (int64_t i = 0; i < s.count; i += 16) prefetch(data + 4 * (taken + i));
  } else if (w.values == kF16 || w.values == kBF16) {
    for (int64_t i = 0; i < s.count; i += 8) {
      const __m128i h = load(data + 2 * (taken + i), end);
      const __m256 wide = w.values == kF16 ? _mm256_cvtph_ps(h)
                                           : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
      _mm256_store_ps(s.decoded + i, wide);
    }
  } else {
    const uint16_t* scales = w.scales + row * groups_of(w);
    const int64_t first = w.group >= w.cols ? 0 : c / w.group;
    const bool one = (stop - 1) / w.group == first;
    const float scale = from_half(scales[first]);
    for (int64_t i = 0; i < s.count; i += 8)
      _mm256_store_ps(s.decoded + i, _mm256_mul_ps(codes(w, data, taken + i, end), _mm256_set1_ps(one ? scale : 1)));
    if (one) return;
    for (int64_t i = 0, group = first; i < s.count; ++group) {  // the list goes up, and so do the groups
      const float scale_of_group = from_half(scales[group]);
      const int64_t limit = (group + 1) * w.group - c;
      for (; i < s.count && s.index[i] < limit; ++i) s.decoded[i] *= scale_of_group;
    }
  }
}

// Appends the set bits of m, each plus `first`, to a list; up to 8 entries behind its end are written.
inline uint16_t* append(unsigned m, __m128i first, uint16_t* to) {
  const __m128i places = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(&kPlaces.of[m]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_add_epi16(_mm_cvtepu8_epi16(places), first));
  return to + _mm_popcnt_u32(m);
}

// Lists the kept features [c, stop) of `row`, and their weights.
void list(const Matrix& w, int64_t row, int64_t c, int64_t stop, int64_t taken, Segment& s) {
  const uint8_t* mask = w.mask ? w.mask + row * w.stride : nullptr;
  uint16_t* to = s.index;
  int64_t i = c;
  const int64_t bits = w.values == kF32 ? 32 : w.values == kI8 ? 8 : w.values == kI4 ? 4 : 16;
  const bool few = 8 * int64_t(w.starts[row + 1] - w.starts[row]) * 64 <= 5 * bits * w.cols;  // 5 of 64 columns or less
  if (mask && w.block == 1) {
    for (; i + 64 <= stop; i += 64) {
      uint64_t word;
      std::memcpy(&word, mask + (i >> 3), 8);
      const int64_t count = _mm_popcnt_u64(word);
      if (few && count <= 8) {  // one by one, and always as many, because a loop's end is hard to foresee
        for (int b = 0; b < 8; ++b, word &= word - 1) to[b] = uint16_t(uint64_t(i - c) + _tzcnt_u64(word));
        to += count;
        continue;
      }
      __m128i first = _mm_set1_epi16(int16_t(i - c));
      for (int b = 0; b < 8; ++b, word >>= 8) {
        to = append(unsigned(word & 255), first, to);
        first = _mm_add_epi16(first, _mm_set1_epi16(8));
      }
    }
  }
  for (; i < stop; i += 8) to = append(kept_byte(w, mask, i), _mm_set1_epi16(int16_t(i - c)), to);
  s.count = to - s.index;
  if (mask && row + 4 < w.rows) prefetch(mask + 4 * w.stride + (c >> 3) / w.block);
  decode(w, row, c, stop, w.data + w.starts[row], taken, s);
}

inline float number_at(const float* p, int64_t i) {  // data of a file are not aligned
  float value;
  std::memcpy(&value, p + i, 4);
  return value;
}

// y[0 .. 8 Z) += sum over the segment, in U independent sums each. Of the last vector only the lanes `tail` exist, all of
// them where kTail is false.
template <int Z, int U, bool kTail>
inline void add(const Segment& s, const float* x, int64_t ldx, float* y, bool first, __m256i tail) {
  __m256 sums[U][Z];
  const auto read = [&](const float* p, int z) {
    return kTail && z == Z - 1 ? _mm256_maskload_ps(p + 8 * z, tail) : _mm256_loadu_ps(p + 8 * z);
  };
  for (int z = 0; z < Z; ++z) {
    sums[0][z] = first ? _mm256_setzero_ps() : read(y, z);
    for (int u = 1; u < U; ++u) sums[u][z] = _mm256_setzero_ps();
  }
  const float* weights = s.weights;
  const int64_t count = s.count;
  int64_t i = 0;
  for (; i + U <= count; i += U) {
    for (int u = 0; u < U; ++u) {
      const float* p = x + s.index[i + u] * ldx;
      const __m256 weight = _mm256_set1_ps(number_at(weights, i + u));
      for (int z = 0; z < Z; ++z) sums[u][z] = _mm256_fmadd_ps(weight, read(p, z), sums[u][z]);
    }
  }
  for (; i < count; ++i) {
    const float* p = x + s.index[i] * ldx;
    const __m256 weight = _mm256_set1_ps(number_at(weights, i));
    for (int z = 0; z < Z; ++z) sums[0][z] = _mm256_fmadd_ps(weight, read(p, z), sums[0][z]);
  }
  for (int z = 0; z < Z; ++z) {
    for (int u = 1; u < U; ++u) sums[0][z] = _mm256_add_ps(sums[0][z], sums[u][z]);
    if (kTail && z == Z - 1) {
      _mm256_maskstore_ps(y + 8 * z, tail, sums[0][z]);
    } else {
      _mm256_storeu_ps(y + 8 * z, sums[0][z]);
    }
  }
}

using Add = void (*)(const Segment&, const float*, int64_t, float*, bool, __m256i);

template <int Z, bool kTail>
void add_to(const Segment& s, const float* x, int64_t ldx, float* y, bool first, __m256i tail) {
  add<Z, Z < 3 ? 4 : Z < 5 ? 2 : 1, kTail>(s, x, ldx, y, first, tail);
}

constexpr Add kAdd[2][8] = {
    {add_to<1, false>, add_to<2, false>, add_to<3, false>, add_to<4, false>, add_to<5, false>, add_to<6, false>,
     add_to<7, false>, add_to<8, false>},
    {add_to<1, true>, add_to<2, true>, add_to<3, true>, add_to<4, true>, add_to<5, true>, add_to<6, true>,
     add_to<7, true>, add_to<8, true>}};

}  // namespace

void avx2_times(const Matrix& w, int64_t r0, int64_t r1, const float* x, int64_t ldx, int64_t n, float* y, int64_t ldy) {
  if (w.cols == 0) {
    for (int64_t r = r0; r < r1; ++r) std::memset(y + r * ldy, 0, size_t(n) * 4);
    return;
  }
  // The features of a tile are listed once for all its columns, up to two tiles' width of them.
  const int64_t passes = (n + 2 * kWide - 1) / (2 * kWide);
  const int64_t width = passes > 0 ? ((n + passes - 1) / passes + 7) / 8 * 8 : 0;
  uint32_t taken[kRows];
  Segment segments[2];
  for (int64_t j = 0; j < n; j += width) {
    const int64_t count = n - j < width ? n - j : width;
    const int64_t fitting = kTileBytes / (4 * width) / 64 * 64;
    const int64_t features = fitting < kTile ? fitting : kTile;
    const int64_t half = count > kWide ? (count / 2 + 7) / 8 * 8 : count;
    const int lanes = int((count - 1) % 8 + 1);
    const __m256i tail = _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const Add left = kAdd[half == count && lanes < 8][(half + 7) / 8 - 1];
    const Add right = half < count ? kAdd[lanes < 8][(count - half + 7) / 8 - 1] : nullptr;
    for (int64_t b = r0; b < r1; b += kRows) {
      const int64_t stop = b + kRows < r1 ? b + kRows : r1;
      std::memset(taken, 0, sizeof taken);
      for (int64_t c = 0; c < w.cols; c += features) {
        const int64_t limit = w.cols < c + features ? w.cols : c + features;
        const float* tile = x + c * ldx + j;
        list(w, b, c, limit, taken[0], segments[b & 1]);
        for (int64_t r = b; r < stop; ++r) {
          const Segment& now = segments[r & 1];
          if (r + 1 < stop) list(w, r + 1, c, limit, taken[r + 1 - b], segments[(r + 1) & 1]);
          left(now, tile, ldx, y + r * ldy + j, c == 0, tail);
          if (right) right(now, tile + half, ldx, y + r * ldy + j + half, c == 0, tail);
          taken[r - b] += uint32_t(now.count);
        }
      }
    }
  }
}

}  // namespace winnow
