// Reading integer weights 64 columns at a time as unsigned bytes, for the files of the avx512 kernels. All static: see
// winnow.h. A pruned weight reads as the offset, which is 0 once the offset is taken off.
#pragma once
#include <immintrin.h>

#include <cstring>

#include "avx512.h"

#ifdef _MSC_VER
#define WINNOW_INLINE __forceinline
#define WINNOW_LAMBDA
#define WINNOW_KEEP(v)
#else
#define WINNOW_INLINE inline __attribute__((always_inline))
#define WINNOW_LAMBDA __attribute__((always_inline))
#define WINNOW_KEEP(v) __asm__("" : "+v"(v))  // keep a sum in one register: GCC moves it about in loops
#endif

namespace winnow {

template <auto kValue>
struct Constant {
  constexpr operator decltype(kValue)() const { return kValue; }
};
using Yes = Constant<true>;
using No = Constant<false>;

// body(0) .. body(N - 1) with constant arguments, so that arrays they index are kept in registers.
template <int N, typename Body>
static WINNOW_INLINE void each(Body body) {
  if constexpr (N > 0) {
    each<N - 1>(body);
    body(Constant<N - 1>());
  }
}

enum Kind { kBytes, kBytesMasked, kBlocksMasked, kNibbles, kNibblesMasked };

template <Kind kKind>
constexpr bool is_int4 = kKind == kNibbles || kKind == kNibblesMasked;
template <Kind kKind>
constexpr bool is_masked = kKind != kBytes && kKind != kNibbles;
template <Kind kKind>
constexpr int offset_of = is_int4<kKind> ? 8 : 128;

// Where a row is being read.
struct Reader {
  const uint8_t* mask;
  const uint8_t* data;  // bytes: the next value; nibbles: the matrix's first
  int64_t taken;        // nibbles: number of the next one in the matrix
};

template <Kind kKind>
static WINNOW_INLINE Reader reader_of(const Matrix& w, int64_t r) {
  const uint8_t* mask = w.mask ? w.mask + r * w.stride : nullptr;
  if (is_int4<kKind>) return {mask, w.data, 2 * int64_t(w.starts[r])};
  return {mask, w.data + w.starts[r], 0};
}

template <Kind kKind>
static WINNOW_INLINE const uint8_t* place_of(const Reader& from) {
  return is_int4<kKind> ? from.data + (from.taken >> 1) : from.data;
}

// Whether 64 bytes may be loaded from every place in the rows before r1 where a value begins.
static inline bool loads_whole(const Matrix& w, int64_t r1) { return int64_t(w.starts[r1]) + 64 <= w.data_bytes; }

// The mask bits of the 64 columns from c on. kLast: fewer than 64 columns are left.
template <Kind kKind, bool kLast>
static WINNOW_INLINE uint64_t keep_at(const Matrix& w, const Reader& from, int64_t c) {
  if constexpr (!is_masked<kKind>) return 0;
  constexpr int64_t kBits = kKind == kBlocksMasked ? 16 : 64;
  const uint8_t* p = from.mask + c / 64 * (kBits / 8);
  uint64_t keep = 0;
  if constexpr (kLast) {
    const int64_t left = from.mask + w.stride - p;
    for (int64_t i = 0; i < left; ++i) keep |= uint64_t(p[i]) << 8 * i;
  } else if constexpr (kBits == 16) {
    uint16_t word;
    std::memcpy(&word, p, 2);
    keep = word;
  } else {
    std::memcpy(&keep, p, 8);
  }
  return keep;
}

// The next 64 columns, plus offset_of<kKind>. kEnd: the load may not go beyond `end`.
template <Kind kKind, bool kEnd>
static WINNOW_INLINE __m512i codes_of(Reader& from, uint64_t keep, const uint8_t* end) {
  const __m512i offset = _mm512_set1_epi8(char(offset_of<kKind>));
  const uint8_t* p = place_of<kKind>(from);
  const int64_t left = kEnd ? end - p : 64;
  const uint64_t some = left >= 64 ? ~0ull : (1ull << (left > 0 ? left : 0)) - 1;
  const int64_t count = is_masked<kKind> ? int64_t(_mm_popcnt_u64(keep)) : 64;
  if constexpr (!is_int4<kKind>) {
    from.data += kKind == kBlocksMasked ? 4 * count : count;
    const __m512i v = _mm512_xor_si512(kEnd ? _mm512_maskz_loadu_epi8(some, p) : _mm512_loadu_si512(p), offset);
    if constexpr (kKind == kBytes) return v;
    if constexpr (kKind == kBlocksMasked) return _mm512_mask_expand_epi32(offset, __mmask16(keep), v);
    return _mm512_mask_expand_epi8(offset, keep, v);
  } else {
    __m512i v;
    if constexpr (kKind == kNibbles) {
      // Each byte takes the eight bits from its nibble on, where bytes lie 16 bits apart.
      const __m256i bytes = kEnd ? _mm256_maskz_loadu_epi8(__mmask32(some), p)
                                 : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
      v = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x3430242014100400), _mm512_cvtepu8_epi16(bytes));
    } else {
      // Eight nibbles lie in a double word, or in it and the next one where the first is the high half of a byte: each
      // quad word gets both, and each of its bytes the eight bits from its nibble on.
      static const uint64_t kShifts[2] = {0x1c1814100c080400, 0x201c1814100c0804};
      const __m512i pairs = _mm512_set_epi32(8, 7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0);
      v = _mm512_permutexvar_epi32(pairs, kEnd ? _mm512_maskz_loadu_epi8(some, p) : _mm512_loadu_si512(p));
      v = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(int64_t(kShifts[from.taken & 1])), v);
    }
    from.taken += count;
    v = _mm512_ternarylogic_epi32(v, _mm512_set1_epi8(15), offset, 0x6a);  // (v & 15) ^ 8
    return kKind == kNibbles ? v : _mm512_mask_expand_epi8(offset, keep, v);
  }
}

}  // namespace winnow
