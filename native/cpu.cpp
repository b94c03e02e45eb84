#include "cpu.h"

#if defined(__x86_64__) || defined(_M_X64)
#ifdef _MSC_VER
#include <immintrin.h>
#include <intrin.h>
#else
#include <cpuid.h>
#include <immintrin.h>
#endif
#define WINNOW_X86
#endif

namespace winnow {
namespace {

#ifdef WINNOW_X86

struct Registers {
  unsigned a, b, c, d;
};

Registers cpuid(unsigned leaf, unsigned part) {
  Registers r{};
#ifdef _MSC_VER
  int out[4];
  __cpuidex(out, int(leaf), int(part));
  r = {unsigned(out[0]), unsigned(out[1]), unsigned(out[2]), unsigned(out[3])};
#else
  __get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d);
#endif
  return r;
}

bool has(unsigned bits, std::initializer_list<int> wanted) {
  for (int bit : wanted)
    if (!(bits >> bit & 1)) return false;
  return true;
}

uint64_t saved_state() {  // XCR0: what the operating system keeps when it switches threads
#ifdef _MSC_VER
  return _xgetbv(0);
#else
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
#endif
}

bool runs_avx2() {
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0);
  return has(one.c, {12 /* FMA */, 23 /* POPCNT */, 27 /* OSXSAVE */, 28 /* AVX */, 29 /* F16C */}) &&
         has(seven.b, {3 /* BMI1 */, 5 /* AVX2 */, 8 /* BMI2 */}) && (saved_state() & 0x6) == 0x6;
}

bool runs_avx512() {
  const Registers seven = cpuid(7, 0), more = cpuid(7, 1);
  return runs_avx2() && has(seven.b, {16 /* F */, 17 /* DQ */, 30 /* BW */, 31 /* VL */}) &&
         has(seven.c, {1 /* VBMI */, 6 /* VBMI2 */, 11 /* VNNI */}) && has(more.a, {5 /* BF16 */}) &&
         (saved_state() & 0xe6) == 0xe6;
}

#endif

}  // namespace

std::vector<const Kernels*> usable_kernels() {
  static const std::vector<const Kernels*> found = [] {
    std::vector<const Kernels*> list{portable_kernels()};
#ifdef WINNOW_X86
    if (runs_avx2()) list.push_back(avx2_kernels());
    if (runs_avx512()) list.push_back(avx512_kernels());
#endif
    return list;
  }();
  return found;
}

}  // namespace winnow
