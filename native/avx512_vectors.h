// Expanding and compressing packed values with AVX-512, in the one shape that is fast everywhere. All static: see winnow.h.
//
// Three things cost a factor of two to ten when left to the compiler, all of them measured on Zen 5:
// - vpexpand and vpcompress with a memory operand are microcoded (Zen) or slow (Intel), and compilers fold a load into
//   them; `opaque` keeps the load apart.
// - with zero masking their result still waits for the old contents of the register; merging into `nothing()`, a copy of
//   a zero that the compiler cannot see through, does not.
// - a mask loaded straight from memory into a mask register spares the slow way through a general one; the small
//   `mask16/32/64` do that.
#pragma once
#include <immintrin.h>

#include "numbers.h"

#if defined(_MSC_VER) && !defined(__clang__)
#define WINNOW_STATIC static __forceinline
#define WINNOW_OPAQUE(v)
#else
#define WINNOW_STATIC static inline __attribute__((always_inline))
#define WINNOW_OPAQUE(v) __asm__("" : "+v"(v))
#endif

namespace winnow {

WINNOW_STATIC __m512i opaque(__m512i v) {
  WINNOW_OPAQUE(v);
  return v;
}

WINNOW_STATIC __m512i nothing() { return opaque(_mm512_setzero_si512()); }

WINNOW_STATIC uint64_t word64(const uint8_t* p) {
  uint64_t word;
  std::memcpy(&word, p, 8);
  return word;
}

WINNOW_STATIC uint32_t word32(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return word;
}

WINNOW_STATIC __mmask16 mask16(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  return bits;
}

WINNOW_STATIC __mmask32 mask32(const uint8_t* p) { return word32(p); }

WINNOW_STATIC __mmask64 mask64(const uint8_t* p) { return word64(p); }

WINNOW_STATIC __m512i expand8(__mmask64 k, __m512i v) { return _mm512_mask_expand_epi8(nothing(), k, opaque(v)); }
WINNOW_STATIC __m512i expand16(__mmask32 k, __m512i v) { return _mm512_mask_expand_epi16(nothing(), k, opaque(v)); }
WINNOW_STATIC __m512i expand32(__mmask16 k, __m512i v) { return _mm512_mask_expand_epi32(nothing(), k, opaque(v)); }
WINNOW_STATIC __m512i compress8(__mmask64 k, __m512i v) { return _mm512_mask_compress_epi8(nothing(), k, opaque(v)); }

}  // namespace winnow
