#include "avx512.h"
#include "prepare.h"

namespace winnow {

const Kernels* avx512_kernels() {
  static const Kernels kernels = [] {
    Kernels k = *portable_kernels();
    k.name = "avx512";
    k.prepare = prepare_activations;
    return k;
  }();
  return &kernels;
}

}  // namespace winnow
