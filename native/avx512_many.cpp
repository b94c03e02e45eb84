// int8 in blocks of four columns times many rows of x of one digit: the four products of a kept block with sixteen rows of
// x are one instruction, and a pruned block costs nothing. Sums are exact.
#include "avx512_codes.h"

namespace winnow {
namespace {

constexpr int kVectors = kMany / 16;   // of x: as many sums as there are registers for
constexpr int64_t kRows = 64;          // rows of weights that use a tile of x one after the other
constexpr int64_t kTile = 64;          // blocks of columns of x: with all vectors 32 KiB
constexpr int64_t kPanel = 16 * kTile; // blocks whose places are listed at a time

// 16 x 16 double words.
WINNOW_INLINE void transpose(__m512i* v) {
  __m512i t[16];
  each<8>([&](auto i) WINNOW_LAMBDA {
    t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
  });
  each<4>([&](auto i) WINNOW_LAMBDA {
    v[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    v[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    v[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    v[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  });
  each<4>([&](auto i) WINNOW_LAMBDA {
    t[i] = _mm512_shuffle_i32x4(v[i], v[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(v[i], v[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0xdd);
  });
  each<4>([&](auto i) WINNOW_LAMBDA {
    v[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    v[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    v[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    v[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
  });
}

// The kept blocks of a row, in order, in some tiles from block `first` on, and counted from it; ends[i] of them lie in
// the first i tiles.
void list_blocks(const Matrix& w, int64_t r, int64_t first, int64_t tiles, uint16_t* blocks, uint16_t* ends) {
  const uint8_t* mask = w.mask + r * w.stride;
  __m512i at = _mm512_set_epi16(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9,
                                8, 7, 6, 5, 4, 3, 2, 1, 0);
  int count = 0;
  ends[0] = 0;
  for (int64_t i = 0; i < tiles * kTile; i += 32) {
    const int64_t byte = (first + i) / 8;
    uint32_t keep = 0;
    if (byte + 4 <= w.stride)
      std::memcpy(&keep, mask + byte, 4);
    else
      for (int64_t j = byte; j < w.stride; ++j) keep |= uint32_t(mask[j]) << 8 * (j - byte);
    _mm512_storeu_si512(blocks + count, _mm512_maskz_compress_epi16(keep, at));
    count += int(_mm_popcnt_u32(keep));
    at = _mm512_add_epi16(at, _mm512_set1_epi16(32));
    if ((i + 32) % kTile == 0) ends[(i + 32) / kTile] = uint16_t(count);
  }
}

int32_t sum_of(const uint8_t* data, int64_t bytes) {
  __m512i sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < bytes; i += 64) {
    const __mmask64 some = bytes - i >= 64 ? ~0ull : (1ull << (bytes - i)) - 1;
    sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), _mm512_maskz_loadu_epi8(some, data + i));
  }
  return _mm512_reduce_add_epi32(sum);
}

// Adds `count` kept blocks of a row times T vectors of x, sixteen rows of x a vector.
template <int T>
void add_blocks(const uint8_t* data, const uint16_t* blocks, int64_t count, const uint8_t* x, int64_t ldx, __m512i* out) {
  __m512i sum[T];
  each<T>([&](auto t) WINNOW_LAMBDA { sum[t] = out[t]; });
  for (int64_t i = 0; i < count; ++i) {
    int32_t four;
    std::memcpy(&four, data + 4 * i, 4);
    const __m512i v = _mm512_set1_epi32(four);
    const uint8_t* from = x + blocks[i] * ldx;
    each<T>([&](auto t) WINNOW_LAMBDA {
      sum[t] = _mm512_dpbusd_epi32(sum[t], _mm512_load_si512(from + 64 * t), v);
      WINNOW_KEEP(sum[t]);
    });
  }
  each<T>([&](auto t) WINNOW_LAMBDA { out[t] = sum[t]; });
}

using AddBlocks = void (*)(const uint8_t* data, const uint16_t* blocks, int64_t count, const uint8_t* x, int64_t ldx,
                           __m512i* out);
constexpr AddBlocks kAddBlocks[kVectors] = {add_blocks<1>, add_blocks<2>, add_blocks<3>, add_blocks<4>,
                                            add_blocks<5>, add_blocks<6>, add_blocks<7>, add_blocks<8>};

// Up to kRows rows from r on: a tile of x stays in the first-level cache while all of them use it.
void sum_rows(const Matrix& w, const uint8_t* x, int64_t ldx, int64_t vectors, int64_t r, int64_t rows,
              __m512i (*sums)[kVectors]) {
  const AddBlocks add = kAddBlocks[vectors - 1];
  uint16_t blocks[kRows][kPanel + 32], ends[kRows][kPanel / kTile + 1];
  const uint8_t* data[kRows];
  for (int64_t i = 0; i < rows; ++i) {
    data[i] = w.data + w.starts[r + i];
    const __m512i offset = _mm512_set1_epi32(-128 * sum_of(data[i], int64_t(w.starts[r + i + 1]) - w.starts[r + i]));
    for (int64_t t = 0; t < vectors; ++t) sums[i][t] = offset;
  }
  const int64_t all = w.cols / 4;
  for (int64_t first = 0; first < all; first += kPanel) {
    const int64_t tiles = all - first < kPanel ? (all - first + kTile - 1) / kTile : kPanel / kTile;
    for (int64_t i = 0; i < rows; ++i) list_blocks(w, r + i, first, tiles, blocks[i], ends[i]);
    for (int64_t tile = 0; tile < tiles; ++tile)
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t from = ends[i][tile], count = ends[i][tile + 1] - from;
        add(data[i] + 4 * from, blocks[i] + from, count, x + first * ldx, ldx, sums[i]);
      }
    for (int64_t i = 0; i < rows; ++i) data[i] += 4 * ends[i][tiles];
  }
}

}  // namespace

void avx512_interleave(const Acts& x, uint8_t* out, int64_t ld) {
  for (int64_t c = 0; c < x.width; c += kLane) {
    __m512i v[16];
    for (int64_t b = 0; b < 16; ++b)
      v[b] = _mm512_xor_si512(b < x.batch ? _mm512_load_si512(x.d + b * x.width + c) : _mm512_setzero_si512(),
                              _mm512_set1_epi8(char(128)));
    transpose(v);
    for (int64_t i = 0; i < 16; ++i) _mm512_store_si512(out + (c / 4 + i) * ld, v[i]);
  }
}

void avx512_many(const Matrix& w, const uint8_t* x, int64_t ldx, const float* x_scales, int64_t batch, int64_t r0,
                 int64_t r1, float* out, int64_t ldo) {
  __m512i sums[kRows][kVectors];
  const int64_t vectors = (batch + 15) / 16;
  for (int64_t r = r0; r < r1; r += kRows) {
    sum_rows(w, x, ldx, vectors, r, r1 - r < kRows ? r1 - r : kRows, sums);
    for (int64_t i = r; i < r1 && i < r + kRows; i += 16) {
      const int64_t rows = r1 - i < 16 ? r1 - i : 16;
      const __mmask16 some = __mmask16((1u << rows) - 1);
      const __m512 scale = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, w.scales + i));
      for (int64_t t = 0; t < vectors; ++t) {
        __m512i v[16];
        each<16>([&](auto k) WINNOW_LAMBDA { v[k] = sums[i - r + k][t]; });
        transpose(v);
        for (int64_t b = 16 * t; b < batch && b < 16 * t + 16; ++b) {
          const __m512 y = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(v[b % 16]), scale), _mm512_set1_ps(x_scales[b]));
          _mm512_mask_storeu_ps(out + b * ldo + i - r0, some, y);
        }
      }
    }
  }
}

}  // namespace winnow
