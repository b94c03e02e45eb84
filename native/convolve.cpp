// Convolution as a sparse product: the windows of an image are laid out panel by panel, in cache, never all at once.
#include <algorithm>
#include <cstring>
#include <memory>

#include "panels.h"

namespace winnow {
namespace {

// x [images, channels, height, width] already has its padding.
struct Windows final : Panels {
  const Images* at;
  const float* x;
  bool slack;  // 16 floats behind x may be read
  const float* bias;
  float* y;
  int64_t rows;

  // out[t] = from[t * stride]. With `beyond`, up to 15 floats more may be read and written.
  static void sweep(const float* from, int64_t stride, int64_t count, bool beyond, float* out) {
    if (stride != 1) {
      for (int64_t t = 0; t < count; ++t) out[t] = from[t * stride];
    } else if (beyond) {
      for (int64_t t = 0; t < count; t += 16) std::memcpy(out + t, from + t, 64);
    } else {
      std::memcpy(out, from, size_t(count) * 4);
    }
  }

  void pack(int64_t j, int64_t n, int64_t c0, int64_t c1, float* panel, int64_t ld) const override {
    const Images& g = *at;
    const int64_t area = g.out_height * g.out_width;
    for (int64_t c = c0; c < c1; ++c, panel += ld) {
      const int64_t channel = c / (g.kernel[0] * g.kernel[1]);
      const int64_t down = c / g.kernel[1] % g.kernel[0] * g.dilation[0];
      const int64_t right = c % g.kernel[1] * g.dilation[1];
      int64_t image = j / area, row = j % area / g.out_width, column = j % g.out_width;
      for (int64_t i = 0; i < n;) {
        const int64_t count = std::min(n - i, g.out_width - column);
        const int64_t line = (image * g.channels + channel) * g.height + row * g.stride[0] + down;
        const bool beyond = slack && i + (count + 15) / 16 * 16 <= ld;
        sweep(x + line * g.width + column * g.stride[1] + right, g.stride[1], count, beyond, panel + i);
        i += count;
        column = 0;
        if (++row == g.out_height) row = 0, ++image;
      }
    }
  }

  void put(int64_t j, int64_t n, int64_t r0, int64_t r1, const float* tile, int64_t ld) const override {
    const int64_t area = at->out_height * at->out_width;
    for (int64_t i = 0; i < n;) {
      const int64_t image = (j + i) / area, place = (j + i) % area;
      const int64_t count = std::min(n - i, area - place);
      for (int64_t r = r0; r < r1; ++r) {
        float* to = y + (image * rows + r) * area + place;
        const float* from = tile + (r - r0) * ld + i;
        const float plus = bias ? bias[r] : 0;
        for (int64_t t = 0; t < count; ++t) to[t] = from[t] + plus;
      }
      i += count;
    }
  }
};

// The images with zeros around them.
std::unique_ptr<float[]> padded(const float* x, const Images& g, int64_t height, int64_t width, int threads) {
  std::unique_ptr<float[]> out(new float[size_t(g.images * g.channels * height * width) + 16]);
  struct Context {
    const float* x;
    const Images& g;
    int64_t height, width;
    float* out;
  } context{x, g, height, width, out.get()};
  parallel(
      threads, g.images * g.channels,
      [](void* p, int64_t i) {
        const Context& c = *static_cast<Context*>(p);
        const float* from = c.x + i * c.g.height * c.g.width;
        float* to = c.out + i * c.height * c.width;
        std::fill(to, to + c.height * c.width, 0.0f);
        to += c.g.padding[0] * c.width + c.g.padding[1];
        for (int64_t r = 0; r < c.g.height; ++r, from += c.g.width, to += c.width)
          std::memcpy(to, from, size_t(c.g.width) * 4);
      },
      &context);
  return out;
}

}  // namespace

void convolve(const Kernels& k, const Matrix& w, const float* x, const Images& images, const float* bias, float* y,
              int threads) {
  Images g = images;
  const int64_t area = g.out_height * g.out_width;
  std::unique_ptr<float[]> memory;
  if (g.padding[0] || g.padding[1]) {
    const int64_t height = g.height + 2 * g.padding[0], width = g.width + 2 * g.padding[1];
    memory = padded(x, g, height, width, threads_for(threads, g.images * g.channels * height * width));
    x = memory.get();
    g.height = height;
    g.width = width;
  } else if (g.kernel[0] * g.kernel[1] * g.stride[0] * g.stride[1] == 1) {  // then an image is one long line
    if (area >= 2 * kPanel) {
      for (int64_t i = 0; i < g.images; ++i)
        times(k, w, x + i * g.channels * area, area, area, bias, y + i * w.rows * area, area, threads);
      return;
    }
    g.height = g.out_height = 1;
    g.width = g.out_width = area;
  }
  Windows panels;
  panels.at = &g, panels.x = x, panels.slack = memory != nullptr;
  panels.bias = bias, panels.y = y, panels.rows = w.rows;
  multiply(k, w, g.images * area, panels, threads);
}

}  // namespace winnow
