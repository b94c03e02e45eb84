#include "panels.h"

#include <algorithm>
#include <memory>
#include <new>

#include "numbers.h"

namespace winnow {
namespace {

constexpr int64_t kChunk = 256;  // features that one task packs
constexpr int64_t kBand = 256;   // rows that one task multiplies at most

struct Free {
  void operator()(float* p) const { ::operator delete(p, std::align_val_t(64)); }
};
using Floats = std::unique_ptr<float, Free>;

Floats floats(int64_t count) {
  return Floats(static_cast<float*>(::operator new(size_t(count) * 4 + 64, std::align_val_t(64))));
}

Matrix band_of(const Matrix& w, int64_t r0, int64_t r1) {
  Matrix band = w;
  band.rows = r1 - r0;
  if (w.mask) band.mask = w.mask + r0 * w.stride;
  band.starts = w.starts + r0;
  if (w.scales) band.scales = w.scales + r0 * groups_of(w);
  return band;
}

template <typename Body>
void each(int threads, int64_t tasks, Body body) {
  parallel(threads, tasks, [](void* p, int64_t i) { (*static_cast<Body*>(p))(i); }, &body);
}

// One panel: packed, then multiplied by `band` rows a task.
void tile(const Kernels& k, const Matrix& w, const Panels& panels, int64_t j, int64_t n, int64_t ld, float* panel,
          int64_t band, int threads) {
  each(threads, (w.cols + kChunk - 1) / kChunk, [&](int64_t i) {
    panels.pack(j, n, i * kChunk, std::min(w.cols, (i + 1) * kChunk), panel + i * kChunk * ld, ld);
  });
  each(threads, (w.rows + band - 1) / band, [&](int64_t i) {
    const int64_t r0 = i * band, r1 = std::min(w.rows, r0 + band);
    const Floats out = floats((r1 - r0) * ld);
    k.times(band_of(w, r0, r1), 0, r1 - r0, panel, ld, n, out.get(), ld);
    panels.put(j, n, r0, r1, out.get(), ld);
  });
}

}  // namespace

void multiply(const Kernels& k, const Matrix& w, int64_t columns, const Panels& panels, int threads) {
  if (w.rows == 0 || columns == 0) return;
  threads = threads_for(threads, columns * (kept_in(w) + w.cols));  // each column is laid out and multiplied
  const int64_t tiles = (columns + kPanel - 1) / kPanel;
  const int64_t width = ((columns + tiles - 1) / tiles + 15) / 16 * 16;  // all of one size
  const auto run = [&](int64_t i, int64_t band, int inside) {
    const Floats panel = floats(w.cols * width);
    const int64_t j = i * width;
    tile(k, w, panels, j, std::min(columns - j, width), width, panel.get(), band, inside);
  };
  const int64_t there = (columns + width - 1) / width;
  if (there >= 4 * threads) {  // every thread has panels of its own, in its own cache
    each(threads, there, [&](int64_t i) { run(i, kBand, 1); });
  } else {
    const int64_t band = std::clamp<int64_t>((w.rows + 2 * threads - 1) / (2 * threads), 1, kBand);
    for (int64_t i = 0; i < there; ++i) run(i, band, threads);
  }
}

namespace {

// x [cols, n] and y [rows, n], feature-major.
struct FeatureMajor final : Panels {
  const float* x;
  int64_t ldx;
  const float* bias;
  float* y;
  int64_t ldy;

  void pack(int64_t j, int64_t n, int64_t c0, int64_t c1, float* panel, int64_t ld) const override {
    for (int64_t c = c0; c < c1; ++c) std::memcpy(panel + (c - c0) * ld, x + c * ldx + j, size_t(n) * 4);
  }

  void put(int64_t j, int64_t n, int64_t r0, int64_t r1, const float* tile, int64_t ld) const override {
    for (int64_t r = r0; r < r1; ++r) {
      const float plus = bias ? bias[r] : 0;
      for (int64_t i = 0; i < n; ++i) y[r * ldy + j + i] = tile[(r - r0) * ld + i] + plus;
    }
  }
};

template <Type kType>
float read(const void* x, int64_t i) {
  if constexpr (kType == kFloat) return static_cast<const float*>(x)[i];
  const uint16_t h = static_cast<const uint16_t*>(x)[i];
  return kType == kBfloat ? from_bfloat(h) : from_half(h);
}

template <Type kType>
void write(float value, void* y, int64_t i) {
  if constexpr (kType == kFloat) {
    static_cast<float*>(y)[i] = value;
  } else {
    static_cast<uint16_t*>(y)[i] = kType == kBfloat ? to_bfloat(value) : to_half(value);
  }
}

// x [n, cols] and y [n, rows], as linear layers have them: transposed in blocks of a cache line.
template <Type kType>
struct BatchMajor final : Panels {
  const void* x;
  int64_t ldx;
  const float* bias;
  void* y;
  int64_t ldy;

  void pack(int64_t j, int64_t n, int64_t c0, int64_t c1, float* panel, int64_t ld) const override {
    for (int64_t c = c0; c < c1; c += 16) {
      const int64_t stop = std::min(c + 16, c1);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t d = c; d < stop; ++d) panel[(d - c0) * ld + i] = read<kType>(x, (j + i) * ldx + d);
    }
  }

  void put(int64_t j, int64_t n, int64_t r0, int64_t r1, const float* tile, int64_t ld) const override {
    for (int64_t r = r0; r < r1; r += 16) {
      const int64_t stop = std::min(r + 16, r1);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t s = r; s < stop; ++s)
          write<kType>(tile[(s - r0) * ld + i] + (bias ? bias[s] : 0), y, (j + i) * ldy + s);
    }
  }
};

template <Type kType>
void many(const Kernels& k, const Matrix& w, const void* x, int64_t ldx, int64_t batch, const float* bias, void* y,
          int64_t ldy, int threads) {
  BatchMajor<kType> panels;
  panels.x = x, panels.ldx = ldx, panels.bias = bias, panels.y = y, panels.ldy = ldy;
  multiply(k, w, batch, panels, threads);
}

}  // namespace

void times(const Kernels& k, const Matrix& w, const float* x, int64_t ldx, int64_t n, const float* bias, float* y,
           int64_t ldy, int threads) {
  threads = threads_for(threads, n * kept_in(w));
  // Vectors that lie across cache lines, and lines that fall into the same few places of the cache, cost more than a copy.
  const bool aligned = reinterpret_cast<uintptr_t>(x) % 64 == 0 && ldx % 16 == 0;
  if (!aligned || (ldx > kPanel && ldx % 512 == 0)) {
    FeatureMajor panels;
    panels.x = x, panels.ldx = ldx, panels.bias = bias, panels.y = y, panels.ldy = ldy;
    return multiply(k, w, n, panels, threads);
  }
  const int64_t tiles = n >= kPanel * threads ? (n + kPanel - 1) / kPanel : 1;
  const int64_t parts = tiles >= 4 * threads ? 1 : threads == 1 ? 1 : 2 * threads;
  const int64_t band = std::max<int64_t>((w.rows + parts - 1) / parts, 1);
  const int64_t bands = (w.rows + band - 1) / band;
  each(threads, tiles * bands, [&](int64_t task) {
    const int64_t j = tiles == 1 ? 0 : task / bands * kPanel, count = tiles == 1 ? n : std::min(kPanel, n - j);
    const int64_t r0 = task % bands * band, r1 = std::min(w.rows, r0 + band);
    k.times(w, r0, r1, x + j, ldx, count, y + j, ldy);
    if (!bias) return;
    for (int64_t r = r0; r < r1; ++r)
      for (int64_t i = 0; i < count; ++i) y[r * ldy + j + i] += bias[r];
  });
}

void linear_many(const Kernels& k, const Matrix& w, const void* x, int64_t ldx, Type type, int64_t batch,
                 const float* bias, void* y, int64_t ldy, int threads) {
  const auto run = type == kFloat ? many<kFloat> : type == kBfloat ? many<kBfloat> : many<kHalf>;
  run(k, w, x, ldx, batch, bias, y, ldy, threads);
}

}  // namespace winnow
