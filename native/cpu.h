// Which kernels this processor can run, slowest first.
#pragma once
#include <vector>

#include "winnow.h"

namespace winnow {

std::vector<const Kernels*> usable_kernels();

}  // namespace winnow
