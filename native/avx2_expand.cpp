// Packed rows to dense ones, 8 columns at a time: a byte of the mask looks up which kept value every column takes.
#include <immintrin.h>

#include "avx2.h"
#include "chunk.h"

namespace winnow {
namespace {

// Byte i of entry m: how many of the bits below i are set in m, 0x80 where bit i is not set.
struct Ranks {
  uint64_t of[256];
};

constexpr Ranks make_ranks() {
  Ranks ranks{};
  for (int m = 0; m < 256; ++m) {
    uint64_t rank = 0;
    for (int i = 0; i < 8; ++i) {
      ranks.of[m] |= (m >> i & 1 ? rank : 0x80) << 8 * i;
      rank += m >> i & 1;
    }
  }
  return ranks;
}

alignas(64) constexpr Ranks kRanks = make_ranks();

// kBytes bytes from p, anything beyond; nothing is read behind the end of the data.
template <int kBytes>
inline __m256i load(const uint8_t* p, const uint8_t* end) {
  if (end - p >= kBytes) {
    if constexpr (kBytes == 32) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if constexpr (kBytes == 16) return _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi128_si256(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  alignas(32) uint8_t last[32] = {};
  if (end > p) std::memcpy(last, p, size_t(end - p));
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(last));
}

template <int V>
struct Reader {
  const Matrix w;  // a copy, which what is written cannot change
  const uint8_t *mask, *data, *end;
  const uint16_t* scales;
  int64_t taken = 0;
  __m256 scale;  // of the columns before `until`
  int64_t until = 0;

  Reader(const Matrix& w, int64_t r)
      : w(w),
        mask(w.mask ? w.mask + r * w.stride : nullptr),
        data(w.data + w.starts[r]),
        end(w.data + w.data_bytes),
        scales(w.scales ? w.scales + r * groups_of(w) : nullptr) {}

  // Which of the columns [c, c + 8) are kept.
  unsigned bits(int64_t c) const {
    if (!mask) return w.cols - c >= 8 ? 255 : (1u << (w.cols - c)) - 1;
    if (w.block == 1) return mask[c >> 3];
    const unsigned two = mask[c >> 5] >> (c >> 2 & 7) & 3;
    return (two & 1 ? 15 : 0) | (two & 2 ? 240 : 0);
  }

  // Codes of columns [c, c + 8) in the low bytes.
  __m128i codes(int64_t c) {
    const unsigned m = bits(c);
    const __m128i ranks = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(&kRanks.of[m]));
    __m128i packed;
    if constexpr (V == kI8) {
      packed = _mm256_castsi256_si128(load<8>(data + taken, end));
    } else {
      const __m128i raw = _mm256_castsi256_si128(load<8>(data + (taken >> 1), end));
      const __m128i bytes = _mm_srli_epi64(raw, int(taken & 1) * 4);
      const __m128i low = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
      const __m128i nibbles =
          _mm_unpacklo_epi8(_mm_and_si128(bytes, low), _mm_and_si128(_mm_srli_epi64(bytes, 4), low));
      packed = _mm_sub_epi8(_mm_xor_si128(nibbles, eight), eight);
    }
    taken += _mm_popcnt_u32(m);
    return _mm_shuffle_epi8(packed, ranks);
  }

  // 16-bit floats of columns [c, c + 8), as they are.
  __m128i halves(int64_t c) {
    const unsigned m = bits(c);
    const __m128i ranks = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(&kRanks.of[m]));
    const __m128i twice = _mm_adds_epu8(ranks, ranks);  // 0x80 becomes 0xff, and stays it
    const __m128i bytes = _mm_adds_epu8(_mm_unpacklo_epi8(twice, twice), _mm_set1_epi16(0x100));
    const __m128i packed = _mm256_castsi256_si128(load<16>(data + 2 * taken, end));
    taken += _mm_popcnt_u32(m);
    return _mm_shuffle_epi8(packed, bytes);
  }

  __m256 floats(int64_t c) {
    if constexpr (V == kF32) {
      const unsigned m = bits(c);
      const __m256i ranks =
          _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(&kRanks.of[m])));
      const __m256i packed = load<32>(data + 4 * taken, end);
      taken += _mm_popcnt_u32(m);
      const __m256i placed = _mm256_permutevar8x32_epi32(packed, ranks);
      return _mm256_castsi256_ps(_mm256_andnot_si256(_mm256_srai_epi32(ranks, 31), placed));
    } else if constexpr (V == kF16) {
      return _mm256_cvtph_ps(halves(c));
    } else if constexpr (V == kBF16) {
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves(c)), 16));
    } else {
      const __m256 whole = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes(c)));
      return _mm256_mul_ps(whole, scale_of(c));
    }
  }

  __m256 scale_of(int64_t c) {
    const int64_t stop = w.cols < c + 8 ? w.cols : c + 8;
    if (stop <= until) return scale;
    const int64_t group = c / w.group;
    if ((group + 1) * w.group >= stop) {
      until = (group + 1) * w.group;
      return scale = _mm256_set1_ps(from_half(scales[group]));
    }
    float s[8] = {};
    for (int64_t i = c; i < stop; ++i) s[i - c] = from_half(scales[i / w.group]);
    return _mm256_loadu_ps(s);
  }
};

inline __m128i to_bfloats(__m256 f) {
  const __m256i bits = _mm256_castps_si256(f);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i even = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  const __m256 nan = _mm256_cmp_ps(f, f, _CMP_UNORD_Q);
  const __m256i rounded = _mm256_blendv_epi8(even, quiet, _mm256_castps_si256(nan));
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08));
}

// The first `count` of 8 columns, kBytes bytes each.
template <int kBytes, typename Vector>
inline void store(void* to, Vector v, int64_t count) {
  if (count >= 8) {
    std::memcpy(to, &v, 8 * kBytes);
  } else {
    std::memcpy(to, &v, size_t(count) * kBytes);
  }
}

template <int V>
void rows(const Matrix& w, int64_t r0, int64_t r1, void* out, int64_t ldo, Type type) {
  const bool copied = (V == kBF16 && type == kBfloat) || (V == kF16 && type == kHalf);
  for (int64_t r = r0; r < r1; ++r) {
    Reader<V> row(w, r);
    const int64_t line = (r - r0) * ldo;
    for (int64_t c = 0; c < w.cols; c += 8) {
      const int64_t count = w.cols - c;
      if (type == kCodes) {
        store<1>(static_cast<int8_t*>(out) + line + c, row.codes(c), count);
      } else if (type == kFloat) {
        store<4>(static_cast<float*>(out) + line + c, row.floats(c), count);
      } else {
        const __m128i h = copied            ? row.halves(c)
                          : type == kBfloat ? to_bfloats(row.floats(c))
                                            : _mm256_cvtps_ph(row.floats(c), _MM_FROUND_TO_NEAREST_INT);
        store<2>(static_cast<uint16_t*>(out) + line + c, h, count);
      }
    }
  }
}

}  // namespace

void avx2_expand(const Matrix& w, int64_t r0, int64_t r1, void* out, int64_t ldo, Type type) {
  using Rows = void (*)(const Matrix&, int64_t, int64_t, void*, int64_t, Type);
  constexpr Rows kinds[] = {rows<kF32>, rows<kF16>, rows<kBF16>, rows<kI8>, rows<kI4>};
  kinds[w.values](w, r0, r1, out, ldo, type);
}

}  // namespace winnow
