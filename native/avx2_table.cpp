#include "avx2.h"
#include "prepare.h"

namespace winnow {

const Kernels* avx2_kernels() {
  static const Kernels kernels = [] {
    Kernels k = *portable_kernels();
    k.name = "avx2";
    k.prepare = prepare_activations;
    return k;
  }();
  return &kernels;
}

}  // namespace winnow
