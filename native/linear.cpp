// The three products: activations are prepared once, then bands of rows are handed to the threads.
#include <algorithm>
#include <bitset>
#include <cstring>
#include <memory>
#include <vector>

#include "numbers.h"
#include "winnow.h"

namespace winnow {
namespace {

constexpr int64_t kBandBytes = 32 << 10;  // packed bytes of a band: stays in the first-level cache for a second chunk of x
constexpr int64_t kBandRows = 256;

struct Free {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t(64)); }
};
using Bytes = std::unique_ptr<char, Free>;

Bytes aligned(int64_t bytes) {
  return Bytes(static_cast<char*>(::operator new(size_t(std::max<int64_t>(bytes, 64)), std::align_val_t(64))));
}

int64_t band_rows(const Matrix& w, int threads, int64_t rows) {
  const int64_t row_bytes = (w.mask ? w.stride : 0) + w.data_bytes / std::max<int64_t>(w.rows, 1) + 1;
  const int64_t even = (rows + 4 * threads - 1) / (4 * threads);  // at least four bands a thread: they rarely end together
  return std::clamp<int64_t>(std::min(kBandBytes / row_bytes, even), 1, kBandRows);
}

template <typename Body>
void for_bands(int threads, int64_t rows, int64_t step, Body body) {
  struct Context {
    Body& body;
    int64_t rows, step;
  } context{body, rows, step};
  parallel(
      threads, (rows + step - 1) / step,
      [](void* p, int64_t i) {
        Context& c = *static_cast<Context*>(p);
        c.body(i * c.step, std::min(c.rows, (i + 1) * c.step));
      },
      &context);
}

void store(float value, void* y, int64_t i, Type type) {
  if (type == kFloat) static_cast<float*>(y)[i] = value;
  if (type == kBfloat) static_cast<uint16_t*>(y)[i] = to_bfloat(value);
  if (type == kHalf) static_cast<uint16_t*>(y)[i] = to_half(value);
}

// Up to kBatch rows of x, prepared.
struct Chunk {
  Acts acts{};
  Bytes memory;
};

Chunk prepare(const Kernels& k, const Matrix& w, const void* x, int64_t ldx, Type type, int64_t batch,
              bool int8_activations) {
  Chunk chunk;
  Acts& a = chunk.acts;
  a.form = k.form(w, type, int8_activations);
  a.batch = batch;
  a.width = (w.cols + kLane - 1) / kLane * kLane;
  a.digits = int8_activations ? 1 : 3;
  const bool digits = a.form == kFormDigits;
  const auto round = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
  const int64_t f = round((a.form == kFormFloat ? batch : 1) * a.width * 4);
  const int64_t h = a.form == kFormBfloat ? round(batch * a.width * 2) : 0;
  const int64_t d = digits ? round(batch * a.digits * a.width) : 0;
  const int64_t s = digits ? round(batch * 4) : 0;
  const int64_t sums = digits ? round(batch * a.digits * groups_of(w) * 4) : 0;
  chunk.memory = aligned(f + h + d + s + sums);
  char* p = chunk.memory.get();
  a.f = reinterpret_cast<float*>(p);
  a.h = reinterpret_cast<uint16_t*>(p += f);
  a.d = reinterpret_cast<int8_t*>(p += h);
  a.scale = reinterpret_cast<float*>(p += d);
  a.sums = reinterpret_cast<int32_t*>(p += s);
  k.prepare(w, x, ldx, type, a);
  return chunk;
}

}  // namespace

void linear(const Kernels& k, const Matrix& w, const void* x, int64_t ldx, Type type, int64_t batch, const float* bias,
            void* y, int64_t ldy, bool int8_activations, int threads) {
  const int64_t item = type == kFloat ? 4 : 2;
  std::vector<Chunk> chunks((batch + kBatch - 1) / kBatch);
  for_bands(threads, int64_t(chunks.size()), 1, [&](int64_t i, int64_t) {
    chunks[i] = prepare(k, w, static_cast<const char*>(x) + i * kBatch * ldx * item, ldx, type,
                        std::min(kBatch, batch - i * kBatch), int8_activations);
  });
  for_bands(threads, w.rows, band_rows(w, threads, w.rows), [&](int64_t r0, int64_t r1) {
    float out[kBatch * kBandRows];
    const int64_t ldo = r1 - r0;
    for (size_t i = 0; i < chunks.size(); ++i) {
      const Acts& acts = chunks[i].acts;
      k.rows(w, acts, r0, r1, out, ldo);
      for (int64_t b = 0; b < acts.batch; ++b) {
        const int64_t line = (int64_t(i) * kBatch + b) * ldy;
        for (int64_t r = r0; r < r1; ++r) store(out[b * ldo + r - r0] + (bias ? bias[r] : 0), y, line + r, type);
      }
    }
  });
}

void expand(const Kernels& k, const Matrix& w, int64_t r0, int64_t r1, void* out, int64_t ldo, Type type, int threads) {
  const int64_t item = type == kFloat ? 4 : type == kCodes ? 1 : 2;
  for_bands(threads, r1 - r0, band_rows(w, threads, r1 - r0), [&](int64_t a, int64_t b) {
    k.expand(w, r0 + a, r0 + b, static_cast<char*>(out) + a * ldo * item, ldo, type);
  });
}

void times(const Kernels& k, const Matrix& w, const float* x, int64_t ldx, int64_t n, const float* bias, float* y,
           int64_t ldy, int threads) {
  for_bands(threads, w.rows, band_rows(w, threads, w.rows), [&](int64_t r0, int64_t r1) {
    k.times(w, r0, r1, x, ldx, n, y, ldy);
    if (!bias) return;
    for (int64_t r = r0; r < r1; ++r)
      for (int64_t j = 0; j < n; ++j) y[r * ldy + j] += bias[r];
  });
}

bool find_starts(const Matrix& w, uint32_t* starts) {
  int64_t at = 0;
  const int64_t entries = (w.cols + w.block - 1) / w.block;
  for (int64_t r = 0; r < w.rows; ++r) {
    starts[r] = uint32_t(at);
    int64_t count = w.cols;
    if (w.mask) {
      const uint8_t* mask = w.mask + r * w.stride;
      int64_t set = 0, i = 0;
      for (; i + 8 <= w.stride; i += 8) {
        uint64_t word;
        std::memcpy(&word, mask + i, 8);
        set += int64_t(std::bitset<64>(word).count());
      }
      for (; i < w.stride; ++i) set += int64_t(std::bitset<8>(mask[i]).count());
      if (entries % 8 && mask[w.stride - 1] >> entries % 8) return false;
      count = set * w.block;
    }
    at += w.values == kF32 ? 4 * count : w.values == kI8 ? count : w.values == kI4 ? (count + 1) / 2 : 2 * count;
    if (at > w.data_bytes || at > int64_t(UINT32_MAX)) return false;
  }
  starts[w.rows] = uint32_t(at);
  return at == w.data_bytes;
}

}  // namespace winnow
