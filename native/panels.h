// The sparse product for many columns: x is brought into panels of up to kPanel columns that the `times` kernels like
// (aligned, nothing else in between), whatever it looked like before.
#pragma once
#include "winnow.h"

namespace winnow {

constexpr int64_t kPanel = 128;  // columns

// Where the columns of x come from and where those of y go.
struct Panels {
  virtual ~Panels() = default;
  // panel[(c - c0) * ld + i] = x[c, j + i] for c0 <= c < c1 and 0 <= i < n.
  virtual void pack(int64_t j, int64_t n, int64_t c0, int64_t c1, float* panel, int64_t ld) const = 0;
  // y[r, j + i] = tile[(r - r0) * ld + i] for r0 <= r < r1 and 0 <= i < n.
  virtual void put(int64_t j, int64_t n, int64_t r0, int64_t r1, const float* tile, int64_t ld) const = 0;
};

// y = w x for `columns` columns.
void multiply(const Kernels& k, const Matrix& w, int64_t columns, const Panels& panels, int threads);

}  // namespace winnow
