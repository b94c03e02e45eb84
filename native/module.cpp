// The extension module winnow.kernels._native. It takes addresses: the caller has checked types, shapes and strides and
// keeps the memory alive. Nothing here needs torch's headers, so one build serves every version of torch.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cpu.h"
#include "winnow.h"

namespace nb = nanobind;
using namespace winnow;

namespace {

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

const Kernels& kernels_named(const std::string& isa) {
  for (const Kernels* k : usable_kernels())
    if (isa == k->name) return *k;
  throw std::invalid_argument("this processor or build has no " + isa + " kernels");
}

}  // namespace

NB_MODULE(_native, m) {
  nb::class_<Matrix>(m, "Matrix")
      .def("__init__",
           [](Matrix* self, int64_t rows, int64_t cols, int values, int block, int64_t group, uintptr_t mask,
              int64_t stride, uintptr_t data, int64_t data_bytes, uintptr_t starts, uintptr_t scales) {
             new (self) Matrix{rows, cols,       values,     block, group, at<const uint8_t>(mask), stride,
                               at<const uint8_t>(data), data_bytes, at<const uint32_t>(starts), at<const uint16_t>(scales)};
           });
  nb::class_<Kernels>(m, "Kernels").def_ro("name", &Kernels::name);
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Kernels* k : usable_kernels()) names.push_back(k->name);
    return names;
  });
  m.def("kernels", [](const std::string& isa) { return &kernels_named(isa); }, nb::rv_policy::reference);
  m.def("use_openmp", [](uintptr_t gomp_parallel) { use_openmp(at<void>(gomp_parallel)); });
  m.def("starts", [](const Matrix& w, uintptr_t starts) { return find_starts(w, at<uint32_t>(starts)); });
  m.def("linear",
        [](const Kernels& k, const Matrix& w, uintptr_t x, int64_t ldx, int type, int64_t batch, uintptr_t bias,
           uintptr_t y, int64_t ldy, bool int8_activations, int threads) {
          nb::gil_scoped_release release;
          linear(k, w, at<const void>(x), ldx, Type(type), batch, at<const float>(bias), at<void>(y), ldy,
                 int8_activations, threads);
        });
  m.def("expand", [](const Kernels& k, const Matrix& w, int64_t r0, int64_t r1, uintptr_t out, int64_t ldo, int type,
                     int threads) {
    nb::gil_scoped_release release;
    expand(k, w, r0, r1, at<void>(out), ldo, Type(type), threads);
  });
  m.def("times", [](const Kernels& k, const Matrix& w, uintptr_t x, int64_t ldx, int64_t n, uintptr_t bias, uintptr_t y,
                    int64_t ldy, int threads) {
    nb::gil_scoped_release release;
    times(k, w, at<const float>(x), ldx, n, at<const float>(bias), at<float>(y), ldy, threads);
  });
  m.def("linear_many", [](const Kernels& k, const Matrix& w, uintptr_t x, int64_t ldx, int type, int64_t batch,
                          uintptr_t bias, uintptr_t y, int64_t ldy, int threads) {
    nb::gil_scoped_release release;
    linear_many(k, w, at<const void>(x), ldx, Type(type), batch, at<const float>(bias), at<void>(y), ldy, threads);
  });
  // `sizes`: images, channels, height, width, height and width of y; then kernel, stride, padding, dilation by twos.
  m.def("convolve", [](const Kernels& k, const Matrix& w, uintptr_t x, const std::vector<int64_t>& sizes, uintptr_t bias,
                       uintptr_t y, int threads) {
    if (sizes.size() != 14) throw std::invalid_argument("convolve takes 14 sizes");
    const int64_t* s = sizes.data();
    const Images images{s[0], s[1], s[2], s[3], s[4], s[5], {s[6], s[7]}, {s[8], s[9]}, {s[10], s[11]}, {s[12], s[13]}};
    nb::gil_scoped_release release;
    convolve(k, w, at<const float>(x), images, at<const float>(bias), at<float>(y), threads);
  });
}
